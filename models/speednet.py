"""A network that learns CIFAR-10 in minutes on a CPU and in seconds on a GPU: that of cifar10-airbench94.

Keller Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", arXiv:2404.00498. The first layer is fixed and
whitens patches (David Page's "How to train your ResNet" for DAWNBench; both signs of every filter: hlb-CIFAR10 by
tysam-code). The identity initialisation is the paper's.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.norm import choose_norm

PATCH = 2  # pixels: side of the whitened patches
WHITENING_EPS = 5e-4  # added to the variances, so that directions without any are not blown up
TIE_BREAK = 1e-6  # far below WHITENING_EPS; see whitening_filters
LOGIT_SCALE = 1 / 9
BATCH_NORM_MOMENTUM = 0.4  # as torch counts it, the weight of the new batch: 1 - 0.6 in the source


class ConvGroup(nn.Module):
    """Two 3x3 convolutions with a pooling: (N, in_channels, H, W) to (N, channels, H // 2, W // 2), at least 1x1."""

    def __init__(self, in_channels: int, channels: int, norm_layer: Callable[[int], nn.Module]):
        super().__init__()
        self.conv1 = _identity_conv(in_channels, channels)
        self.norm1 = _norm(norm_layer, channels)
        self.conv2 = _identity_conv(channels, channels)
        self.norm2 = _norm(norm_layer, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = F.max_pool2d(x, (min(2, x.shape[2]), min(2, x.shape[3])))  # an image of 8 pixels arrives here as one pixel
        x = F.gelu(self.norm1(x))
        return F.gelu(self.norm2(self.conv2(x)))


class SpeedNet(nn.Module):
    """Whitening, three groups of two convolutions, a linear layer.

    An image of 32x32 pixels leaves the whitening layer at 31x31 and the groups at 15x15, 7x7 and 3x3; images of 8
    pixels and more fit.

    The whitening filters and the weights of the norm layers are parameters without a gradient: saved and loaded with
    the others, never trained. The bias of the whitening layer, which the source trains in the first 3 of 9.9 epochs, is
    an ordinary parameter here (`whiten.bias`). To freeze it later, set its learning rate to 0: DDP
    waits for the gradient of every parameter that required one at the start.

    Batch norm keeps torch's epsilon of 1e-5, not the source's 1e-12: on CIFAR-10 the variances are far above both, but
    the whitened colours of grey images are rounding noise (variance 1e-10), which 1e-12 would blow up to 1.

    In training, batch norm needs more than one value per channel: it raises ValueError for a single image of 16 pixels
    or less.

    Args:
        num_classes: outputs of the linear layer.
        norm: "batch", or "group", which has no batch statistics.
        width: channels of the first group; the other two have four times as many. 64 is the source's.
    """

    def __init__(self, num_classes: int = 10, norm: str = "batch", width: int = 64):
        super().__init__()
        norm_layer = choose_norm(norm, width, momentum=BATCH_NORM_MOMENTUM)
        whitened = 2 * 3 * PATCH**2
        self.whiten = nn.Conv2d(3, whitened, PATCH)
        self.whiten.weight.requires_grad_(False)
        nn.init.zeros_(self.whiten.bias)  # type: ignore[arg-type]
        self.group1 = ConvGroup(whitened, width, norm_layer)
        self.group2 = ConvGroup(width, 4 * width, norm_layer)
        self.group3 = ConvGroup(4 * width, 4 * width, norm_layer)
        self.fc = nn.Linear(4 * width, num_classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of normalised images (N, 3, H, W)."""
        return LOGIT_SCALE * self.fc(self.forward_features(x))

    def layers(self) -> list[tuple[str, ...]]:
        """The names of the modules of each layer, from the input on."""
        return [("whiten",), ("group1",), ("group2",), ("group3",), ("fc",)]

    def forward_features(self, x: Tensor) -> Tensor:
        """Penultimate features (N, 4 * width): the maximum of each channel over what is left of the image."""
        x = F.gelu(self.whiten(x))
        x = self.group3(self.group2(self.group1(x)))
        return torch.flatten(F.max_pool2d(x, x.shape[2:]), 1)

    @torch.no_grad()
    def initialise_from(self, inputs: Tensor) -> None:
        """Sets the whitening filters from normalised training images (N, 3, H, W), float32; a few thousand are plenty.

        To be called once, before training. Until then the filters are random.
        """
        filters = whitening_filters(inputs)
        self.whiten.weight.copy_(torch.cat([filters, -filters]))


def whitening_filters(inputs: Tensor) -> Tensor:
    """The 12 filters of 2x2 pixels whose responses to these images are uncorrelated: float64 (12, 3, 2, 2), on the CPU.

    They are the eigenvectors of the second moments of all patches of (N, 3, H, W) images, the largest eigenvalue
    first, each divided by sqrt(eigenvalue + WHITENING_EPS): where the eigenvalue is well above that, the response has a
    mean square of 1; where it is 0, as for images of one colour, so is the response.

    The filters are a function of the images, not of the linear algebra library at hand: an eigenvector's sign is fixed
    by its first large component, and where eigenvalues coincide (grey images: 8 are 0) a tiny ramp on the diagonal
    chooses the vectors.
    """
    size = 3 * PATCH**2
    moments, count = torch.zeros(size, size, dtype=torch.float64), 0
    for part in inputs.split(256):  # all patches at once would be 12 times the images, in float64
        patches = F.unfold(part.to("cpu", torch.float64), PATCH).transpose(0, 1).flatten(1)
        moments += patches @ patches.T
        count += patches.shape[1]
    ramp = torch.linspace(0, TIE_BREAK, size, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(moments / count + ramp.diag())
    values, vectors = values.flip(0), vectors.flip(1).T
    large = vectors.abs() >= vectors.abs().amax(dim=1, keepdim=True) / 2
    first = vectors.gather(1, large.int().argmax(dim=1, keepdim=True))
    filters = vectors * first.sign() / (values[:, None] + WHITENING_EPS).sqrt()
    return filters.view(size, 3, PATCH, PATCH)


def _identity_conv(in_channels: int, channels: int) -> nn.Conv2d:
    """A convolution that is the identity in its first channels; the others have torch's initialisation."""
    conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
    if not conv.weight.is_meta:  # on meta dirac_ would still visit every channel
        with torch.no_grad():
            nn.init.dirac_(conv.weight[:in_channels])
    return conv


def _norm(norm_layer: Callable[[int], nn.Module], channels: int) -> nn.Module:
    """A norm layer whose weight stays 1, as in the source; its bias is trained."""
    layer = norm_layer(channels)
    layer.weight.requires_grad_(False)
    return layer
