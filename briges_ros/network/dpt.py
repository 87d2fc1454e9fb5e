"""The DPT decoder: four token maps -> inverse depth.

Source: Ranftl et al., Vision Transformers for Dense Prediction (arXiv 2103.13413), in the shape
that Depth Anything uses for ViT-S (64 fusion channels; 48, 96, 192, 384 reassembled channels).
Ours stops at 8/14 of the input's size: the pipeline resizes to the camera's size anyway, and the
last full-size convolutions would cost a fifth of the whole network.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

FEATURES = 64
CHANNELS = (48, 96, 192, 384)


class ResidualConv(nn.Module):
    """Two 3x3 convolutions with a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(FEATURES, FEATURES, 3, padding=1)
        self.conv2 = nn.Conv2d(FEATURES, FEATURES, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class Fusion(nn.Module):
    """Adds a finer level to the coarse path, refines, and resizes to ``size``."""

    def __init__(self, coarsest: bool) -> None:
        super().__init__()
        self.skip = None if coarsest else ResidualConv()
        self.refine = ResidualConv()
        self.project = nn.Conv2d(FEATURES, FEATURES, 1)

    def forward(self, level: Tensor, coarse: Tensor | None, size: tuple[int, int] | None) -> Tensor:
        x = level if self.skip is None else coarse + self.skip(level)
        x = self.project(self.refine(x))  # 1x1 before the resize: the same map, 4x cheaper
        if size is None:
            return F.interpolate(x, scale_factor=2.0, mode='bilinear', align_corners=False)
        return F.interpolate(x, size=size, mode='bilinear', align_corners=False)


class DptDecoder(nn.Module):
    """Four maps (B, width, h, w) -> inverse depth (B, 1, 8 h, 8 w), up to scale and shift.

    There is no last ReLU: it dies early in training, and the affine fit needs none.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.ModuleList(nn.Conv2d(width, c, 1) for c in CHANNELS)
        self.resize = nn.ModuleList(
            [
                nn.ConvTranspose2d(CHANNELS[0], CHANNELS[0], 4, 4),
                nn.ConvTranspose2d(CHANNELS[1], CHANNELS[1], 2, 2),
                nn.Identity(),
                nn.Conv2d(CHANNELS[3], CHANNELS[3], 3, stride=2, padding=1),
            ]
        )
        self.reduce = nn.ModuleList(
            nn.Conv2d(c, FEATURES, 3, padding=1, bias=False) for c in CHANNELS
        )
        self.fusion = nn.ModuleList(Fusion(coarsest=c == CHANNELS[-1]) for c in CHANNELS)
        self.head = nn.Sequential(
            nn.Conv2d(FEATURES, FEATURES // 2, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(FEATURES // 2, 1, 3, padding=1),
        )

    def forward(self, levels: list[Tensor]) -> Tensor:
        maps = [
            reduce(resize(project(level)))
            for level, project, resize, reduce in zip(
                levels, self.project, self.resize, self.reduce, strict=True
            )
        ]
        x: Tensor | None = None
        for i in reversed(range(len(maps))):
            size = (maps[i - 1].shape[2], maps[i - 1].shape[3]) if i > 0 else None
            x = self.fusion[i](maps[i], x, size)
        assert x is not None
        return self.head(x)
