"""The network of a gate training: frozen parts with their weights, and new gates between them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from briges_ros.errors import BrigesError
from briges_ros.inference.bundle import SegmentationInput, model_folders
from briges_ros.inference.preprocess import IMAGENET_MEAN, IMAGENET_STD
from briges_ros.network.briges import Briges, check_trained_on
from briges_ros.network.checkpoints import load_checked, load_tensors, read_frozen, read_tensors
from briges_ros.network.compact import load_compact
from briges_ros.network.compose import SEGMENTATION, WEIGHTS
from briges_ros.network.dinov2_weights import WIDTH
from briges_ros.network.gate import LightGate, PaperGate
from briges_ros.network.segmentation import CHANNELS, MEAN, STD, STRIDE, CompactSegmentation
from briges_ros.training.gate_config import GateConfig


@dataclass(frozen=True, eq=False)
class GateNetwork:
    """What is trained, and how its segmentation encoder wants images.

    Attributes:
        model: all parts frozen but those that are trained.
        segmentation_input: None if the model has no gates.
    """

    model: Briges
    segmentation_input: SegmentationInput | None


def open_network(config: GateConfig, accept_noncommercial: bool = False) -> GateNetwork:
    """The network of an experiment: frozen parts with their weights, new gates.

    Args:
        config: the experiment.
        accept_noncommercial: take published weights that must not be used commercially, too.

    Raises:
        BrigesError: a part is missing or does not fit the others.
    """
    depth_encoder, decoder, width = _open_depth(config.depth, accept_noncommercial)
    if config.train == 'decoder':
        model = Briges(depth_encoder, decoder).freeze()
        model.decoder.requires_grad_(True)
        return GateNetwork(model, None)
    encoder, wanted, segmentation_width = _open_segmentation(
        config.segmentation, accept_noncommercial, before_neck=config.gate == 'paper'
    )
    if config.gate == 'paper' and segmentation_width != width:
        raise BrigesError(
            f'the paper gate needs encoders of one width; depth {config.depth} has {width} and '
            f'segmentation {config.segmentation} {segmentation_width}: pair ViT-B with SAM ViT-B, '
            'ViT-L with SAM ViT-L, or take gate: light'
        )
    torch.manual_seed(config.seed)
    gates: dict[int, nn.Module] = {
        level: PaperGate(width) if config.gate == 'paper' else LightGate(width, segmentation_width)
        for level in sorted(config.levels)
    }
    return GateNetwork(Briges(depth_encoder, decoder, encoder, gates).freeze(), wanted)


def _open_depth(name: str, accept_noncommercial: bool) -> tuple[nn.Module, nn.Module, int]:
    """Encoder, decoder, and the width of the levels between them."""
    path = _compact_weights(name, WEIGHTS)
    if path is not None:
        compact = load_compact(path)
        return compact.encoder, compact.decoder, WIDTH
    from briges_ros.network.depth_anything import RELATIVE, DepthAnything
    from briges_ros.network.published import open_published

    network = open_published(name, accept_noncommercial).network
    if not isinstance(network, DepthAnything):
        raise BrigesError(f'depth: {name} is no depth network')
    if network.decoder.output != RELATIVE:
        raise BrigesError(
            f'depth: {name} gives {network.decoder.output}, and the affine-invariant loss '
            'trains relative networks; give the variant without "metric"'
        )
    return network.encoder, network.decoder, network.encoder.width


def _open_segmentation(
    name: str, accept_noncommercial: bool, before_neck: bool
) -> tuple[nn.Module, SegmentationInput, int]:
    """Encoder, what it takes, and the channels of its map."""
    path = _compact_weights(name, SEGMENTATION)
    if path is not None:
        encoder = CompactSegmentation().fuse()
        load_checked(encoder, path)
        return encoder, SegmentationInput(MEAN, STD, patch=STRIDE), CHANNELS
    from briges_ros.network.depth_anything import DepthAnything
    from briges_ros.network.published import open_published

    network = open_published(name, accept_noncommercial, before_neck=before_neck).network
    if isinstance(network, DepthAnything):
        raise BrigesError(f'segmentation: {name} is a depth network')
    size = network.size, network.size
    return network, SegmentationInput(IMAGENET_MEAN, IMAGENET_STD, size=size), network.channels


def _compact_weights(name: str, file: str) -> Path | None:
    """The weights of our own network that a setting names; None if it names a published one."""
    if name.endswith('.safetensors'):
        return Path(name)
    if name != 'compact':
        return None
    folders = [folder / 'compact' for folder in model_folders()]
    found = next((folder / file for folder in folders if (folder / file).is_file()), None)
    if found is None:
        raise BrigesError(f'no {file} in {", ".join(map(str, folders))}; give a .safetensors file')
    return found


def load_gates(path: Path, model: Briges) -> None:
    """Load what gate training released into a network of the same shape.

    Args:
        path: a ``gate.safetensors``, or the ``decoder.safetensors`` of that ablation.
        model: gets the values in place.

    Raises:
        BrigesError: no safetensors file, not exactly this network's tensors, or trained beside
            other weights than this network's.
    """
    tensors = read_tensors(path)
    part = 'decoder' if any(name.startswith('decoder.') for name in tensors) else 'gates'
    load_tensors(
        getattr(model, part),
        {name.removeprefix(f'{part}.'): tensor for name, tensor in tensors.items()},
        path,
    )
    check_trained_on(model, read_frozen(path), path)
