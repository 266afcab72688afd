"""ResNet-18 and ResNet-34 for small images (He et al. 2015, arXiv:1512.03385).

As on ImageNet, but for the stem: one 3x3 convolution with stride 1 and no pooling, so that a 32x32 image reaches the
four stages at 32, 16, 8 and 4 pixels.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.norm import choose_norm


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (N, in_channels, H, W) to (N, channels, H / stride, W / stride)."""

    def __init__(self, in_channels: int, channels: int, stride: int, norm_layer: Callable[[int], nn.Module]):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.norm1 = norm_layer(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = norm_layer(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False), norm_layer(channels))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class ResNet(nn.Module):
    """A ResNet of basic blocks.

    Args:
        blocks: blocks in each of the four stages.
        num_classes: outputs of the linear layer.
        norm: "batch", or "group" (up to 32 groups, Wu and He 2018), which has no batch statistics.
        width: channels of the first stage; each later one has twice as many. 64 is the paper's.
    """

    def __init__(self, blocks: tuple[int, int, int, int], num_classes: int = 10, norm: str = "batch", width: int = 64):
        super().__init__()
        norm_layer = choose_norm(norm, width)
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm1 = norm_layer(width)
        channels, stages = width, []
        for stage, count in enumerate(blocks):
            layers = []
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(BasicBlock(channels, width * 2**stage, stride, norm_layer))
                channels = width * 2**stage
            stages.append(nn.Sequential(*layers))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of normalised images (N, 3, H, W)."""
        return self.fc(self.forward_features(x))

    def layers(self) -> list[tuple[str, ...]]:
        """The names of the modules of each layer, from the input on: stem, blocks, head."""
        stages = {name: getattr(self, name) for name in ("layer1", "layer2", "layer3", "layer4")}
        blocks = [(f"{name}.{block}",) for name, stage in stages.items() for block in range(len(stage))]
        return [("conv1", "norm1"), *blocks, ("fc",)]

    def forward_features(self, x: Tensor) -> Tensor:
        """Penultimate features (N, 8 * width)."""
        x = F.relu(self.norm1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)
