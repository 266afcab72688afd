"""Test-time augmentation: the mean of the logits of several views of an image."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

TTA = ("none", "flip", "flip_translate")


def tta_logits(model: Callable[[Tensor], Tensor], inputs: Tensor, tta: str) -> Tensor:
    """Logits (N, classes) of images (N, 3, H, W).

    - flip: the mean over the image and its mirror image.
    - flip_translate: the mean of that and the mean over the image shifted by one pixel to the upper left and to the
      lower right, each mirrored too (Jordan 2024, arXiv:2404.00498).
    """
    if tta == "none":
        return model(inputs)
    logits = (model(inputs) + model(inputs.flip(3))) / 2
    if tta == "flip":
        return logits
    padded = F.pad(inputs, (1, 1, 1, 1), mode="reflect")
    shifted = [padded[:, :, start : start + inputs.shape[2], start : start + inputs.shape[3]] for start in (0, 2)]
    return (logits + sum(tta_logits(model, view, "flip") for view in shifted) / 2) / 2
