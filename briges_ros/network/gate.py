"""The Bridging Gate: depth tokens look at segmentation tokens, then at one another.

Source: BriGeS (arXiv 2505.23400). One gate sits on each of the depth encoder's four levels; both
encoders and the decoder stay frozen, only gates are trained. Two kinds with one signature:

    gate(level, segmentation) -> level
        level         (B, d, h, w)   one level of the depth encoder
        segmentation  (B, C, hs, ws) the segmentation encoder's one map, of any size
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

MLP_RATIO = 4
EPSILON = 1e-6


@dataclass(frozen=True)
class AttentionTemperature:
    """Attention Temperature Scaling: ``softmax(q k^T / sqrt(d_head) / tau)``.

    A tau above 1 flattens attention, so that it does not rest on a few tokens. It is a setting of
    inference; training always uses 1.

    Attributes:
        cross: tau of the attention to the segmentation tokens.
        self_attention: tau of the attention among the depth tokens.
    """

    cross: float = 1.0
    self_attention: float = 1.0

    def __post_init__(self) -> None:
        for tau in (self.cross, self.self_attention):
            if not (math.isfinite(tau) and tau > 0):
                raise ValueError(f'an attention temperature must be positive and finite, got {tau}')


class Attention(nn.Module):
    """Multi-head attention (B, N, d) x (B, M, d) -> (B, N, d), with a temperature.

    Attributes:
        tau: the temperature, 1 by default; see `AttentionTemperature`.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f'width {width} is no multiple of {heads} heads')
        self.heads = heads
        self.tau = 1.0
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        def split(tokens: Tensor) -> Tensor:
            batch, count, width = tokens.shape
            return tokens.reshape(batch, count, self.heads, width // self.heads).transpose(1, 2)

        scale = 1.0 / (math.sqrt(x.shape[2] // self.heads) * self.tau)
        out = F.scaled_dot_product_attention(
            split(self.query(x)), split(self.key(y)), split(self.value(y)), scale=scale
        )
        return self.project(out.transpose(1, 2).flatten(2))


class Mlp(nn.Sequential):
    """Two linear layers with GELU between, over the last dimension."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))


class GateCore(nn.Module):
    """Cross-attention, MLP, self-attention, MLP; pre-norm, 24 width^2 parameters and biases.

    Args:
        width: of the tokens, both kinds.
        heads: of both attentions.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_query = nn.LayerNorm(width, eps=EPSILON)
        self.norm_segmentation = nn.LayerNorm(width, eps=EPSILON)
        self.cross = Attention(width, heads)
        self.norm_mlp1 = nn.LayerNorm(width, eps=EPSILON)
        self.mlp1 = Mlp(width, MLP_RATIO * width, width)
        self.norm_self = nn.LayerNorm(width, eps=EPSILON)
        self.self_attention = Attention(width, heads)
        self.norm_mlp2 = nn.LayerNorm(width, eps=EPSILON)
        self.mlp2 = Mlp(width, MLP_RATIO * width, width)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Depth tokens (B, N, d) and segmentation tokens (B, M, d) -> (B, N, d)."""
        x = x + self.cross(self.norm_query(x), self.norm_segmentation(y))
        x = x + self.mlp1(self.norm_mlp1(x))
        z = self.norm_self(x)
        x = x + self.self_attention(z, z)
        return x + self.mlp2(self.norm_mlp2(x))


def align_segmentation(segmentation: Tensor, h: int, w: int) -> Tensor:
    """Resolution alignment: (B, C, hs, ws) -> (B, C, 2 h, 2 w), bilinear.

    Both gates halve it from here to the depth tokens' (h, w): the paper's by 2x2 max-pooling, the
    light one by a convolution of stride 2.
    """
    return F.interpolate(segmentation, size=(2 * h, 2 * w), mode='bilinear', align_corners=False)


def to_tokens(maps: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h w, C)."""
    return maps.flatten(2).transpose(1, 2)


def to_map(tokens: Tensor, h: int, w: int) -> Tensor:
    """(B, h w, C) -> (B, C, h, w)."""
    return tokens.transpose(1, 2).unflatten(2, (h, w))


class PaperGate(nn.Module):
    """The gate of the paper: no projection, so both encoders have the same width.

    ViT-B with SAM-B (768), ViT-L with SAM-L (1024, both before SAM's neck). There is no outer
    skip, so an untrained one disturbs the frozen model; 14.2 M parameters a level at 768.

    Args:
        width: of both encoders.
        heads: of both attentions.
    """

    def __init__(self, width: int, heads: int = 16) -> None:
        super().__init__()
        self.width = width
        self.core = GateCore(width, heads)

    def forward(self, level: Tensor, segmentation: Tensor) -> Tensor:
        """See the module."""
        h, w = level.shape[2:]
        aligned = F.max_pool2d(align_segmentation(segmentation, h, w), 2)
        return to_map(self.core(to_tokens(level), to_tokens(aligned)), h, w)


class LightGate(nn.Module):
    """The gate for narrow encoders: attention at 256 channels inside an outer residual.

    ``level + expand(core(reduce(level) + s, s))`` with ``s = convolutions(segmentation)``, brought
    to the depth tokens. Attention alone finds what is alike, but not what is in the same place: a
    convolutional encoder's map has no position in it. So each depth token meets its own
    segmentation token first (ours, not the paper's). The last layer of ``expand`` starts at zero,
    so that an untrained gate returns its input bit for bit. 3.2 M parameters a level at width 384.

    Args:
        width: of the depth encoder.
        segmentation_width: channels of the segmentation map.
        channels: width of the attention.
        heads: of both attentions.
    """

    def __init__(
        self, width: int, segmentation_width: int = 256, channels: int = 256, heads: int = 4
    ) -> None:
        super().__init__()
        self.reduce = Mlp(width, channels, channels)
        self.segmentation = nn.Sequential(
            nn.Conv2d(segmentation_width, channels, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )
        self.core = GateCore(channels, heads)
        self.expand = Mlp(channels, width, width)
        last = self.expand[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, level: Tensor, segmentation: Tensor) -> Tensor:
        """See the module."""
        h, w = level.shape[2:]
        aligned = to_tokens(self.segmentation(align_segmentation(segmentation, h, w)))
        tokens = self.core(self.reduce(to_tokens(level)) + aligned, aligned)
        return level + to_map(self.expand(tokens), h, w)


def set_temperature(module: nn.Module, temperature: AttentionTemperature) -> None:
    """Set Attention Temperature Scaling on every gate inside ``module``."""
    for core in module.modules():
        if isinstance(core, GateCore):
            core.cross.tau = temperature.cross
            core.self_attention.tau = temperature.self_attention
