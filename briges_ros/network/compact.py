"""The compact model: DINOv2 ViT-S/14 with adapters, our decoder, our segmentation encoder, gates.

Only what we trained is stored (a few MB); the frozen encoder comes from its own package.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from briges_ros.errors import BrigesError
from briges_ros.network.briges import LEVELS, Briges, check_trained_on
from briges_ros.network.checkpoints import (
    load_checked,
    load_tensors,
    put_in_place,
    read_frozen,
    read_tensors,
)
from briges_ros.network.compose import GATE, SEGMENTATION, WEIGHTS
from briges_ros.network.dinov2 import load_dinov2
from briges_ros.network.dinov2_weights import DEPTH, PATCH, WIDTH
from briges_ros.network.dpt import DptDecoder
from briges_ros.network.gate import LightGate
from briges_ros.network.segmentation import CompactSegmentation

ADAPTER_RANK = 16
FIRST_ADAPTED_BLOCKS = (0, 6)  # the trunk below stays frozen, so training can cache its output


class CompactDepth(nn.Module):
    """Normalised image (B, 3, 14 h, 14 w) -> inverse depth (B, 8 h, 8 w) up to scale and shift.

    Args:
        first_adapted_block: of the encoder's 12; 0 adapts them all, 6 the upper half.
    """

    def __init__(self, first_adapted_block: int = 6) -> None:
        super().__init__()
        if first_adapted_block not in FIRST_ADAPTED_BLOCKS:
            raise ValueError(f'first_adapted_block must be one of {FIRST_ADAPTED_BLOCKS}')
        self.first_adapted_block = first_adapted_block
        self.encoder = load_dinov2()
        self.adapters = self.encoder.add_adapters(ADAPTER_RANK, first_adapted_block)
        self.decoder = DptDecoder(WIDTH)

    def trunk(self, image: Tensor) -> Tensor:
        """The frozen part, worth caching: raw token maps (B, 1 or 2, 1 + h w, 384).

        These are the levels among the frozen blocks, or the embedded image if there are none.
        """
        x = self.encoder.embed(image)
        return torch.stack(self.encoder.run_blocks(x, 0, self.first_adapted_block) or [x], dim=1)

    def from_trunk(self, trunk: Tensor, h: int, w: int) -> Tensor:
        """The rest of the network, from a (cached) trunk; h, w in patches."""
        lower = trunk.unbind(1) if self.first_adapted_block else ()
        upper = self.encoder.run_blocks(trunk[:, -1], self.first_adapted_block, DEPTH)
        maps = [self.encoder.level_map(x, h, w) for x in [*lower, *upper]]
        return self.decoder(maps)[:, 0]

    def forward(self, image: Tensor) -> Tensor:
        return self.from_trunk(self.trunk(image), image.shape[2] // PATCH, image.shape[3] // PATCH)

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """What training changes and what ships: adapters and decoder, by name."""
        return {
            name: parameter
            for name, parameter in self.named_parameters()
            if name.startswith('decoder.') or name.endswith(('.up', '.down'))
        }


def save_trained(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write trained tensors as float16 safetensors, atomically."""
    partial = path.with_suffix('.partial')
    half = {name: tensor.detach().half().contiguous() for name, tensor in tensors.items()}
    save_file(half, str(partial), metadata=metadata)
    put_in_place(partial, path)


def load_compact(path: Path, first_adapted_block: int | None = None) -> CompactDepth:
    """The depth network with its trained weights, ready for inference.

    Args:
        path: of the weights.
        first_adapted_block: adapters from here on. Default: those of the file. Adapters of lower
            blocks than the file's are new, and change nothing until they are trained.

    Raises:
        BrigesError: the file's tensors are not exactly those that were trained.
    """
    tensors = read_tensors(path)
    lower = any(f'encoder.blocks.{i}.query.up' in tensors for i in range(max(FIRST_ADAPTED_BLOCKS)))
    theirs = 0 if lower else max(FIRST_ADAPTED_BLOCKS)
    first = theirs if first_adapted_block is None else first_adapted_block
    model = CompactDepth(first)
    new = tuple(f'encoder.blocks.{i}.' for i in range(first, theirs))
    trained = {name for name in model.trained_parameters() if not name.startswith(new)}
    kept = {name: t for name, t in model.state_dict().items() if name not in trained}
    load_tensors(model, {**kept, **tensors}, path)
    return model.eval().requires_grad_(False)


def load_compact_briges(folder: Path) -> Briges:
    """The whole network of a model's folder, adapters merged, ready for inference.

    Args:
        folder: holds ``weights.safetensors``, and ``segmentation.safetensors`` and
            ``gate.safetensors`` if the model has gates.

    Raises:
        BrigesError: a file is missing or does not fit its network, or the gates were trained
            with others.
    """
    depth = load_compact(folder / WEIGHTS)
    path = folder / GATE
    if not path.is_file():
        depth.encoder.merge_adapters()
        return Briges(depth.encoder, depth.decoder).eval()
    segmentation = CompactSegmentation().fuse()
    load_checked(segmentation, folder / SEGMENTATION)
    tensors = read_tensors(path)
    levels = [i for i in range(LEVELS) if any(n.startswith(f'gates.{i}.') for n in tensors)]
    if not levels:
        raise BrigesError(f'{path} holds no gate: there is no tensor named gates.LEVEL...')
    gates: dict[int, nn.Module] = {level: LightGate(WIDTH) for level in levels}
    network = Briges(depth.encoder, depth.decoder, segmentation, gates)
    load_tensors(nn.ModuleDict({'gates': network.gates}), tensors, path)
    check_trained_on(network, read_frozen(path), path)  # adapters were apart in training
    depth.encoder.merge_adapters()
    return network.eval().requires_grad_(False)
