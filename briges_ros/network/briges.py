"""BriGeS: two frozen encoders, gates between them, a frozen decoder.

    image --------------> depth encoder --- level0..3 ---> gates ---> decoder ---> inverse depth
    segmentation image -> segmentation encoder ---------------^

Every part keeps one signature, whatever network it is, so that any pair of encoders can be joined,
trained and exported by the same code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from briges_ros.errors import BrigesError
from briges_ros.network.gate import AttentionTemperature, LightGate, PaperGate, set_temperature

LEVELS = 4


class Briges(nn.Module):
    """The whole network.

    Args:
        depth_encoder: normalised image (B, 3, H, W) -> list of four maps (B, d, h, w), the final
            LayerNorm applied and the class token dropped.
        decoder: list of four maps -> (B, 1, H', W'), inverse depth up to scale and shift (or
            metres, for a metric network).
        segmentation_encoder: normalised image (B, 3, Hs, Ws) -> one map (B, C, hs, ws). None
            together with no gates.
        gates: by level, 0 (earliest) to 3; levels that are not named pass as they are. Empty:
            plain Depth Anything, the baseline.

    Raises:
        ValueError: gates without a segmentation encoder, or a level that does not exist.
    """

    def __init__(
        self,
        depth_encoder: nn.Module,
        decoder: nn.Module,
        segmentation_encoder: nn.Module | None = None,
        gates: dict[int, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        gates = gates or {}
        if bool(gates) != (segmentation_encoder is not None):
            raise ValueError('gates need a segmentation encoder, and it needs gates')
        if not set(gates) <= set(range(LEVELS)):
            raise ValueError(f'gates on levels {sorted(gates)}; there are 0 to {LEVELS - 1}')
        self.depth_encoder = depth_encoder
        self.decoder = decoder
        self.segmentation_encoder = segmentation_encoder
        self.gates = nn.ModuleDict({str(level): gate for level, gate in sorted(gates.items())})

    @property
    def gate_kind(self) -> str:
        """'none', 'light' or 'paper'."""
        kinds = {PaperGate: 'paper', LightGate: 'light'}
        return next((kinds[type(gate)] for gate in self.gates.values()), 'none')

    def frozen_parts(self) -> dict[str, nn.Module]:
        """What gate training must not change, by name."""
        parts = {'depth_encoder': self.depth_encoder, 'decoder': self.decoder}
        if self.segmentation_encoder is not None:
            parts['segmentation_encoder'] = self.segmentation_encoder
        return parts

    def freeze(self) -> Briges:
        """Freeze all but the gates, for good: they are put in evaluation mode too."""
        for part in self.frozen_parts().values():
            part.requires_grad_(False).eval()
        return self

    def train(self, mode: bool = True) -> Briges:
        """Switch the gates; frozen parts stay in evaluation mode (BatchNorm must not move)."""
        super().train(mode)
        for part in self.frozen_parts().values():
            if not any(p.requires_grad for p in part.parameters()):
                part.eval()
        return self

    def decode(self, levels: list[Tensor], segmentation: Tensor | None = None) -> Tensor:
        """Gates and decoder: features -> (B, 1, H', W').

        Args:
            levels: four maps (B, d, h, w).
            segmentation: (B, C, hs, ws); None only without gates.
        """
        # One memory layout with and without gates: convolutions round differently by layout, and
        # an untrained light gate must not change a bit.
        return self.decoder([level.contiguous() for level in self.bridge(levels, segmentation)])

    def bridge(self, levels: list[Tensor], segmentation: Tensor | None) -> list[Tensor]:
        """The gates alone: four maps in, four maps out."""
        if not self.gates:
            return levels
        if segmentation is None:
            raise ValueError('this network has gates: it needs segmentation features')
        return [
            self.gates[str(i)](level, segmentation) if str(i) in self.gates else level
            for i, level in enumerate(levels)
        ]

    def forward(self, image: Tensor, segmentation_image: Tensor | None = None) -> Tensor:
        """Normalised images -> (B, 1, H', W')."""
        segmentation = None
        if self.segmentation_encoder is not None:
            segmentation = self.segmentation_encoder(segmentation_image)
        return self.decode(self.depth_encoder(image), segmentation)

    def set_temperature(self, temperature: AttentionTemperature) -> None:
        """Attention Temperature Scaling, for inference and export."""
        set_temperature(self.gates, temperature)


def state_sha256(module: nn.Module) -> str:
    """Digest of a module's parameters and buffers, names and values: has anything changed?"""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}\n'.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def check_trained_on(network: Briges, digests: Mapping[str, str], origin: Path) -> None:
    """Refuse gates that were trained between other weights: they would run, and be wrong.

    Args:
        network: with the weights of its frozen parts.
        digests: by frozen part, `state_sha256` when the gates were trained; parts that are not in
            it are not checked.
        origin: file of the gates, for the error.

    Raises:
        BrigesError: a part has other weights, or the network has no such part.
    """
    parts = network.frozen_parts()
    for name, digest in digests.items():
        ours = state_sha256(parts[name]) if name in parts else 'none'
        if ours != digest:
            raise BrigesError(
                f'{origin} was trained with another {name} (sha256 {digest[:12]} then, '
                f'{ours[:12]} here); give the weights it was trained with, or train it anew'
            )
