"""The compact segmentation encoder: convolutions only, 256 channels at stride 16.

An EfficientNet-Lite0 trunk (Tan and Le, arXiv 1905.11946; the Lite variant has no squeeze and
excitation, and ReLU6 instead of swish) under a small feature pyramid. It takes the place of SAM's
image encoder where SAM is too slow, the way NanoSAM's student does; `briges train segmentation`
distils it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIDE = 16
CHANNELS = 256
MEAN = STD = (0.5, 0.5, 0.5)  # what the published trunk was trained with
BATCH_NORM_EPSILON = 1e-3

# (expansion, kernel, stride, output channels, repeats) of each stage
STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
STEM = 32
STRIDE_8, STRIDE_16, STRIDE_32 = 2, 4, 6  # the stages that the pyramid reads
FINE = 64  # channels that stride 8 brings to the pyramid


class ConvNorm(nn.Module):
    """Convolution and batch normalisation; `fuse` folds the second into the first."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        # The published trunk pads like TensorFlow: one pixel less before than after when it halves
        # an even size.
        before = (kernel - stride) // 2
        after = kernel - stride - before
        self.pad = (before, after, before, after) if before != after else None
        self.conv = nn.Conv2d(
            inputs,
            outputs,
            kernel,
            stride,
            padding=0 if self.pad else before,
            groups=groups,
            bias=False,
        )
        self.norm: nn.Module = nn.BatchNorm2d(outputs, eps=BATCH_NORM_EPSILON)

    def fuse(self) -> None:
        """Fold the normalisation into the convolution, for inference."""
        if isinstance(self.norm, nn.BatchNorm2d):
            self.conv = torch.nn.utils.fusion.fuse_conv_bn_eval(self.conv.eval(), self.norm.eval())
            self.norm = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if self.pad:
            x = F.pad(x, self.pad)
        return self.norm(self.conv(x))


class InvertedResidual(nn.Module):
    """Expand, depthwise convolution, project; with a skip where the shape stays."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = ConvNorm(inputs, hidden) if expansion > 1 else None
        self.depthwise = ConvNorm(hidden, hidden, kernel, stride, groups=hidden)
        self.project = ConvNorm(hidden, outputs)
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.skip else y


class Trunk(nn.Module):
    """EfficientNet-Lite0 without its head: image -> maps at strides 8 (40), 16 (112), 32 (320)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(3, STEM, 3, 2)
        self.stages = nn.ModuleList()
        width = STEM
        for expansion, kernel, stride, outputs, repeats in STAGES:
            blocks = []
            for index in range(repeats):
                step = stride if index == 0 else 1
                blocks.append(InvertedResidual(width, outputs, kernel, step, expansion))
                width = outputs
            self.stages.append(nn.Sequential(*blocks))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = F.relu6(self.stem(image))
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps[STRIDE_8], maps[STRIDE_16], maps[STRIDE_32]


class CompactSegmentation(nn.Module):
    """Normalised image (B, 3, 16 h, 16 w) -> features (B, 256, h, w); 3.8 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = Trunk()
        self.fine = nn.Sequential(ConvNorm(40, FINE), nn.ReLU(), ConvNorm(FINE, CHANNELS, 3, 2))
        self.middle = ConvNorm(112, CHANNELS)
        self.coarse = ConvNorm(320, CHANNELS)
        self.mix = ConvNorm(CHANNELS, CHANNELS, 3)

    def forward(self, image: Tensor) -> Tensor:
        fine, middle, coarse = self.trunk(image)
        x = self.middle(middle) + self.fine(fine)
        size = (x.shape[2], x.shape[3])
        coarse = F.interpolate(self.coarse(coarse), size=size, mode='bilinear', align_corners=False)
        x = F.relu(x + coarse)
        return x + self.mix(x)

    def fuse(self) -> CompactSegmentation:
        """Fold every batch normalisation away: what is exported and shipped."""
        for module in self.modules():
            if isinstance(module, ConvNorm):
                module.fuse()
        return self.eval()


def published_trunk_names() -> dict[str, str]:
    """Names of our trunk's tensors -> those of the published EfficientNet-Lite0 checkpoint."""
    names = {}

    def pair(ours: str, conv: str, norm: str) -> None:
        names[f'{ours}.conv.weight'] = f'{conv}.weight'
        for kind in ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked'):
            names[f'{ours}.norm.{kind}'] = f'{norm}.{kind}'

    pair('stem', '_conv_stem', '_bn0')
    number = 0
    for stage, (expansion, _, _, _, repeats) in enumerate(STAGES):
        for index in range(repeats):
            ours, theirs = f'stages.{stage}.{index}', f'_blocks.{number}'
            if expansion > 1:
                pair(f'{ours}.expand', f'{theirs}._expand_conv', f'{theirs}._bn0')
            pair(f'{ours}.depthwise', f'{theirs}._depthwise_conv', f'{theirs}._bn1')
            pair(f'{ours}.project', f'{theirs}._project_conv', f'{theirs}._bn2')
            number += 1
    return names
