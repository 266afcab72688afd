"""MixUp (Zhang et al. 2018, arXiv:1710.09412) and CutMix (Yun et al. 2019, arXiv:1905.04899), by torchvision.

torchvision mixes each image of a batch with the one before it. A rank also gets the image before its part
(data.loaders.Steps, `lead`), so that every image has the same partner however the batch is divided.
"""

import torch
from torch import Tensor


class Mixing:
    """Mixes a rank's part of a global batch; one ratio (or box) per global batch.

    Args:
        mixup, cutmix: the alpha of each one's Beta(alpha, alpha); 0: not used. With both, each batch draws one of them.
            Below 0.01 (utils.config.consistency.SMALLEST_ALPHA) torch's sampler underflows to a ratio of one half.
    """

    def __init__(self, mixup: float, cutmix: float, num_classes: int):
        from torchvision.transforms import v2

        kinds = [(v2.MixUp, mixup), (v2.CutMix, cutmix)]
        self._mix = v2.RandomChoice(
            [kind(alpha=float(alpha), num_classes=num_classes) for kind, alpha in kinds if alpha > 0]
        )

    def __call__(self, inputs: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Images (n + 1, 3, H, W) with labels (n + 1,), the partner of the first in front, as the n mixed images and
        their class shares (n, classes). `seed` is the same on every rank."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            mixed, shares = self._mix(inputs, labels)
        return mixed[1:], shares[1:]
