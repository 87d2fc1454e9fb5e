"""From a trained network to what its bundle is composed of: graphs without weights, self-checks.

This needs torch and happens once, when a model is trained. What it writes is small and ships with
the source; `briges_ros.network.compose` fills the weights in where the model is used.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from torch import nn

from briges_ros.inference.preprocess import network_input
from briges_ros.network.briges import Briges
from briges_ros.network.compact import load_compact_briges
from briges_ros.network.compose import (
    SEGMENTATION_INPUT,
    TRANSPOSED,
    fill,
    selfcheck_file,
    skeleton_file,
)
from briges_ros.network.dinov2_weights import PATCH
from briges_ros.network.graphs import (
    GRID,
    LEVEL_NAMES,
    Array,
    decoder_graph,
    encoder_graph,
    gate_decoder_graph,
    onnx_graph,
    segmentation_graph,
    selfcheck_image,
)
from briges_ros.network.int8 import skeleton_file as int8_skeleton_file

TOLERANCE = 1e-4  # greatest error of a filled graph, relative to the greatest output


def write_skeletons(folder: Path) -> None:
    """Write the graphs and self-checks that belong to the weights in a model's folder.

    Args:
        folder: holds ``weights.safetensors``, and ``segmentation.safetensors`` and
            ``gate.safetensors`` if the model has gates; the other files are put beside them. Int8
            skeletons are removed: they are calibrated anew.

    Raises:
        BrigesError: the weights do not fit the networks.
        ValueError: a graph, filled with the weights, does not compute what torch does.
    """
    for stale in folder.glob(int8_skeleton_file('*')):
        stale.unlink()  # the ranges in it are those of other weights
    network = load_compact_briges(folder)
    example = _run(network)
    levels = {name: example[name] for name in LEVEL_NAMES}
    level_sizes = {name: {2: 'rows', 3: 'cols'} for name in LEVEL_NAMES}
    _write(
        folder / skeleton_file('depth_encoder'),
        encoder_graph(network),
        {'image': example['image']},
        {'image': {2: f'{PATCH}*rows', 3: f'{PATCH}*cols'}},
        levels,
    )
    _write(
        folder / skeleton_file('gate_decoder'),
        decoder_graph(network),
        levels,
        level_sizes,
        {'inverse_depth': example['plain']},
    )
    if network.segmentation_encoder is not None:
        patch = SEGMENTATION_INPUT.patch
        segmentation = {'segmentation': example['segmentation']}
        _write(
            folder / skeleton_file('segmentation_encoder'),
            segmentation_graph(network),
            {'image': example['segmentation_image']},
            {'image': {2: f'{patch}*rows', 3: f'{patch}*cols'}},
            segmentation,
        )
        # The map's size is its own: in a strip of an image it is not that of the depth tokens.
        _write(
            folder / skeleton_file('gate_decoder', network.gate_kind),
            gate_decoder_graph(network),
            {**levels, **segmentation},
            {**level_sizes, 'segmentation': {2: 'segmentation_rows', 3: 'segmentation_cols'}},
            {'inverse_depth': example['gated']},
        )
    _save_selfchecks(folder, network, example)


def write_selfchecks(folder: Path) -> None:
    """Write only the self-checks, for new weights of a network whose skeletons are there.

    Raises:
        BrigesError: the weights do not fit the networks.
    """
    network = load_compact_briges(folder)
    _save_selfchecks(folder, network, _run(network))


def _save_selfchecks(folder: Path, network: Briges, example: dict[str, Array]) -> None:
    """What `briges_ros.inference.selfcheck` reads."""
    features: dict[str, Any] = {name: example[name] for name in ('image', *LEVEL_NAMES)}
    np.savez_compressed(folder / selfcheck_file(), **features, inverse_depth=example['plain'][0, 0])
    if network.segmentation_encoder is not None:
        features |= {name: example[name] for name in ('segmentation_image', 'segmentation')}
        np.savez_compressed(
            folder / selfcheck_file(network.gate_kind),
            **features,
            inverse_depth=example['gated'][0, 0],
        )


@torch.no_grad()
def _run(network: Briges) -> dict[str, Array]:
    """Every graph's inputs and outputs for the self-check's image; what both decoders give."""
    rows, cols = GRID
    image = network_input(selfcheck_image(), PATCH * cols, PATCH * rows)
    levels = network.depth_encoder(torch.from_numpy(image))
    arrays = {'image': image, 'plain': network.decoder(levels).numpy()}
    arrays |= {name: level.numpy() for name, level in zip(LEVEL_NAMES, levels, strict=True)}
    if network.segmentation_encoder is not None:
        size = SEGMENTATION_INPUT.pixels(cols, rows)
        image = network_input(
            selfcheck_image(), *size, SEGMENTATION_INPUT.mean, SEGMENTATION_INPUT.std
        )
        segmentation = network.segmentation_encoder(torch.from_numpy(image))
        arrays |= {
            'segmentation_image': image,
            'segmentation': segmentation.numpy(),
            'gated': network.decode(levels, segmentation).numpy(),
        }
    return arrays


def _write(
    path: Path,
    module: nn.Module,
    inputs: dict[str, Array],
    dynamic: dict[str, dict[int, str]],
    outputs: dict[str, Array],
) -> None:
    """Export a graph, take the weights out, check that it can be filled again, and save it.

    Args:
        path: of the skeleton.
        module: takes ``inputs`` in their order.
        inputs: an example.
        dynamic: by input and dimension, what its size is: a name, or ``FACTOR*NAME``.
        outputs: what the module gives for the example.
    """
    stand_in = _with_random_weights(module)
    graph = onnx_graph(stand_in, inputs, dynamic, list(outputs))
    take_weights_out(graph, _named_tensors(stand_in))
    filled = onnx.ModelProto()
    filled.CopyFrom(graph)
    fill(filled, _named_tensors(module))
    session = onnxruntime.InferenceSession(filled.SerializeToString())
    for (name, expected), array in zip(
        outputs.items(), session.run(list(outputs), inputs), strict=True
    ):
        error = float(np.abs(array - expected).max() / np.abs(expected).max())
        if not error < TOLERANCE:
            raise ValueError(f'{path.name}: {name} differs from torch by {error:.2g}')
    onnx.save(graph, str(path))


def _with_random_weights(module: nn.Module) -> nn.Module:
    """A copy of a network in which no two tensors are alike.

    The exporter renames, transposes and merges equal constants as it likes. The real weights may
    hold many equal tensors (zero biases, LayerNorms that are still ones), which could then no
    longer be told apart; random ones can.
    """
    stand_in = copy.deepcopy(module).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in stand_in.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return stand_in


def _named_tensors(module: nn.Module) -> dict[str, Array]:
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


def take_weights_out(model: onnx.ModelProto, tensors: dict[str, Array]) -> None:
    """Empty every initialiser that is one of the network's tensors, and name it after that.

    They are recognised by their values, so these must all differ: see `_with_random_weights`. A
    transposed one is named ``NAME`` + `TRANSPOSED`.

    Raises:
        ValueError: a tensor is not in the graph as it is, so it could not be filled in again.
    """
    by_content: dict[tuple[tuple[int, ...], bytes], str] = {}
    for name, array in tensors.items():
        by_content[array.shape, array.tobytes()] = name
        if array.ndim == 2:
            by_content.setdefault((array.T.shape, array.T.tobytes()), name + TRANSPOSED)
    renamed = {}
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        match = by_content.get((array.shape, array.tobytes()))
        if match is not None:
            renamed[tensor.name] = tensor.name = match
            tensor.ClearField('raw_data')
    found = {name.removesuffix(TRANSPOSED) for name in renamed.values()}
    if missing := sorted(tensors.keys() - found):
        raise ValueError(f'{missing[0]} is not in the graph ({len(missing)} such tensors)')
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
