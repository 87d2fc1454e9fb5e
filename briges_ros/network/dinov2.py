"""DINOv2 ViT-S/14 as a plain torch module, with the adapters that specialise it for depth.

Source: Oquab et al., DINOv2 (arXiv 2304.07193); Hu et al., LoRA (arXiv 2106.09685).
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from briges_ros.network.dinov2_weights import (
    DEPTH,
    GRID,
    HEADS,
    LEVELS,
    PATCH,
    WIDTH,
    dinov2_tensors,
)


class LoraLinear(nn.Linear):
    """A frozen linear layer plus a trainable low-rank update ``W + up @ down``.

    ``up`` starts at zero, so an untrained adapter leaves the layer exactly as it was.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.down: nn.Parameter | None = None
        self.up: nn.Parameter | None = None

    def add_adapter(self, rank: int) -> None:
        """Attach an adapter of the given rank."""
        self.down = nn.Parameter(torch.randn(rank, self.in_features) / self.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(self.out_features, rank))

    def merge_adapter(self) -> None:
        """Fold the adapter into the weight, so that the exported graph is a plain ViT."""
        if self.up is not None and self.down is not None:
            with torch.no_grad():
                self.weight += self.up @ self.down
            self.up = self.down = None

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight, self.bias)
        if self.up is not None and self.down is not None:
            y = y + F.linear(F.linear(x, self.down), self.up)
        return y


class Block(nn.Module):
    """A pre-norm transformer block with LayerScale, (B, N, 384) -> (B, N, 384)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH, eps=1e-6)
        self.query = LoraLinear(WIDTH, WIDTH)
        self.key = LoraLinear(WIDTH, WIDTH)
        self.value = LoraLinear(WIDTH, WIDTH)
        self.project = LoraLinear(WIDTH, WIDTH)
        self.scale1 = nn.Parameter(torch.ones(WIDTH))
        self.norm2 = nn.LayerNorm(WIDTH, eps=1e-6)
        self.fc1 = LoraLinear(WIDTH, 4 * WIDTH)
        self.fc2 = LoraLinear(4 * WIDTH, WIDTH)
        self.scale2 = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape

        def heads(y: Tensor) -> Tensor:
            return y.reshape(batch, tokens, HEADS, WIDTH // HEADS).transpose(1, 2)

        y = self.norm1(x)
        y = F.scaled_dot_product_attention(
            heads(self.query(y)), heads(self.key(y)), heads(self.value(y))
        )
        y = y.transpose(1, 2).reshape(batch, tokens, WIDTH)
        x = x + self.scale1 * self.project(y)
        return x + self.scale2 * self.fc2(F.gelu(self.fc1(self.norm2(x))))


class DinoV2(nn.Module):
    """The ViT-S/14 encoder: normalised image (B, 3, 14 h, 14 w) -> four token maps.

    ``forward`` returns the outputs of blocks ``LEVELS``, each through the final LayerNorm with the
    class token dropped, as Depth Anything reads them: four tensors (B, 384, h, w).
    """

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))  # its position is added already
        self.position = nn.Parameter(torch.zeros(1, WIDTH, GRID, GRID))
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)

    def embed(self, image: Tensor) -> Tensor:
        """(B, 3, 14 h, 14 w) -> tokens (B, 1 + h w, 384), the class token first."""
        x = self.patch(image)
        batch, _, h, w = x.shape
        position = F.interpolate(self.position, size=(h, w), mode='bicubic', align_corners=False)
        x = (x + position).flatten(2).transpose(1, 2)
        return torch.cat([self.cls_token.expand(batch, -1, -1), x], dim=1)

    def run_blocks(self, x: Tensor, first: int, last: int) -> list[Tensor]:
        """Run blocks first..last-1 and return the raw outputs of those among ``LEVELS``."""
        taps = []
        for index in range(first, last):
            x = self.blocks[index](x)
            if index in LEVELS:
                taps.append(x)
        return taps

    def level_map(self, tokens: Tensor, h: int, w: int) -> Tensor:
        """(B, 1 + h w, 384) -> (B, 384, h, w) after the final LayerNorm."""
        x = self.norm(tokens[:, 1:])
        return x.transpose(1, 2).reshape(x.shape[0], WIDTH, h, w)

    def forward(self, image: Tensor) -> list[Tensor]:
        h, w = image.shape[2] // PATCH, image.shape[3] // PATCH
        taps = self.run_blocks(self.embed(image), 0, DEPTH)
        return [self.level_map(tap, h, w) for tap in taps]

    def add_adapters(self, rank: int, first_block: int) -> list[nn.Parameter]:
        """Attach adapters to every linear layer from ``first_block`` on; returns their weights."""
        parameters = []
        for block in list(self.blocks)[first_block:]:
            for layer in block.modules():
                if isinstance(layer, LoraLinear):
                    layer.add_adapter(rank)
                    parameters += [layer.down, layer.up]
        return [p for p in parameters if p is not None]

    def merge_adapters(self) -> None:
        """Fold every adapter into its layer."""
        for layer in self.modules():
            if isinstance(layer, LoraLinear):
                layer.merge_adapter()


def load_dinov2(path: Path | None = None) -> DinoV2:
    """The frozen encoder with its published weights.

    Args:
        path: the ONNX file that holds them; default: out of the installed weights package.
    """
    encoder = DinoV2()
    state = {name: torch.from_numpy(array.copy()) for name, array in dinov2_tensors(path).items()}
    encoder.load_state_dict(state)
    return encoder.eval().requires_grad_(False)
