"""Compose a model bundle: graphs without weights + published weights + ours. No torch, seconds.

    bundle = skeletons (shipped) filled with { DINOv2 from its own package
                                             + adapters and decoder (shipped), adapters merged
                                             + segmentation encoder and gates (shipped), if any }

so what ships is small, and nothing that is somebody else's is shipped. The graphs are float32 and
keep height and width dynamic (multiples of the patch): one bundle serves every camera, and an
engine that wants fixed sizes fixes them when it builds.

A model's folder holds, for its plain network and (in brackets) for the gated one besides:

    weights.safetensors             [segmentation.safetensors, gate.safetensors]
    depth_encoder.skeleton.onnx     [segmentation_encoder.skeleton.onnx]
    gate_decoder.skeleton.onnx      [gate_decoder.light.skeleton.onnx instead]
    selfcheck.npz                   [selfcheck.light.npz instead]
    GRAPH.int8.skeleton.onnx        of each graph of the plain network, if it was calibrated
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from safetensors import SafetensorError
from safetensors.numpy import load_file

from briges_ros.errors import BrigesError
from briges_ros.inference.bundle import (
    FORMAT,
    GRAPHS,
    ModelBundle,
    SegmentationInput,
    file_sha256,
)
from briges_ros.inference.engine import open_engine
from briges_ros.inference.preprocess import IMAGENET_MEAN, IMAGENET_STD
from briges_ros.inference.selfcheck import open_checked_engine
from briges_ros.network import dinov2_weights, int8

WEIGHTS = 'weights.safetensors'
SEGMENTATION = 'segmentation.safetensors'
GATE = 'gate.safetensors'
GATES = ('none', 'light')
TRANSPOSED = '^T'  # ends the name of an initialiser that holds the tensor transposed
DEFAULT_TOKENS = 588  # 392 x 294 for a 4:3 camera: what the compact model was trained at
# Of briges_ros.network.segmentation, which needs torch.
SEGMENTATION_INPUT = SegmentationInput(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), patch=16)
SEGMENTATION_PREFIX = 'segmentation_encoder.'  # of its tensors in the graphs
TEMPERED_SELFCHECK = 'selfcheck.tau.npz'

Tensors = dict[str, NDArray[np.float32]]


def graph_names(gate: str) -> tuple[str, ...]:
    """The graphs of a bundle with this gate."""
    return GRAPHS if gate != 'none' else tuple(g for g in GRAPHS if g != 'segmentation_encoder')


def skeleton_file(graph: str, gate: str = 'none') -> str:
    """Name of the file that holds a graph without its weights."""
    kind = f'.{gate}' if graph == 'gate_decoder' and gate != 'none' else ''
    return f'{graph}{kind}.skeleton.onnx'


def selfcheck_file(gate: str = 'none') -> str:
    """Name of the file that holds the reference inputs and output."""
    return 'selfcheck.npz' if gate == 'none' else f'selfcheck.{gate}.npz'


def compose_compact(
    source: Path,
    folder: Path,
    gate: str | None = None,
    tau_cross: float = 1.0,
    tau_self: float = 1.0,
) -> Path:
    """Compose the compact model's bundle.

    Args:
        source: the model's folder in the source tree: trained weights, skeletons, self-checks.
        folder: where the bundle goes. ``model.json`` is removed first and written last, so one
            that was killed on the way never leaves a bundle that loads and is not whole.
        gate: 'none' or 'light'. Default: 'light' if the source has a gate.
        tau_cross, tau_self: Attention Temperature Scaling of the gates' attention to the
            segmentation, and among the depth tokens; 1 = off.

    Returns:
        The bundle's folder.

    Raises:
        BrigesError: a part is missing or does not fit the others, or a setting is impossible.
    """
    if gate is None:
        gate = 'light' if (source / GATE).is_file() else 'none'
    tempered = (tau_cross, tau_self) != (1.0, 1.0)
    _check_settings(gate, tau_cross, tau_self)
    weights = {'adapters and decoder': WEIGHTS}
    if gate != 'none':
        weights |= {'segmentation encoder': SEGMENTATION, 'gates': GATE}
    skeletons = {graph: skeleton_file(graph, gate) for graph in graph_names(gate)}
    selfcheck = selfcheck_file(gate)
    for name in (*weights.values(), *skeletons.values(), selfcheck):
        if not (source / name).is_file():
            raise BrigesError(f'{source / name} is missing; it comes with the source checkout')
    tensors = merged_tensors(_load(source / WEIGHTS), dinov2_weights.dinov2_tensors())
    if gate != 'none':
        tensors |= gate_tensors(_load(source / SEGMENTATION), _load(source / GATE))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'model.json').unlink(missing_ok=True)
    used = {
        name
        for graph, skeleton in skeletons.items()
        for name in _write_graph(source / skeleton, tensors, folder / f'{graph}.onnx')
    }
    _check_all_used(tensors, used, source)
    if source.resolve() != folder.resolve():
        shutil.copyfile(source / selfcheck, folder / selfcheck)
    description = _description(gate)
    description['sources'] = [DINOV2, *(_source(k, source / name) for k, name in weights.items())]
    _write_description(folder, description, selfcheck)
    if gate == 'none' and (source / int8.skeleton_file(GRAPHS[0])).is_file():
        bundle = ModelBundle.load(folder)
        int8.add_graphs(
            bundle,
            {
                graph: int8.filled_skeleton(source / int8.skeleton_file(graph), path)
                for graph, path in bundle.graphs.items()
            },
        )
    if tempered:
        _write_graph(
            source / skeletons['gate_decoder'],
            temper(tensors, tau_cross, tau_self),
            folder / 'gate_decoder.partial.onnx',
        )
        _write_tempered_selfcheck(folder)
        description['attention_temperature'] = {'cross': tau_cross, 'self': tau_self}
        (folder / 'model.json').unlink()
        (folder / 'gate_decoder.partial.onnx').replace(folder / 'gate_decoder.onnx')
        _write_description(folder, description, TEMPERED_SELFCHECK)
    return folder


def _check_settings(gate: str, tau_cross: float, tau_self: float) -> None:
    if gate not in GATES:
        raise BrigesError(f'unknown gate {gate!r}; the compact model has: {", ".join(GATES)}')
    for tau in (tau_cross, tau_self):
        if not (math.isfinite(tau) and tau > 0):
            raise BrigesError(f'an attention temperature must be positive and finite, not {tau}')
        if gate == 'none' and tau != 1.0:
            raise BrigesError('an attention temperature needs a gate, and this bundle has none')


def _load(path: Path) -> Tensors:
    try:
        tensors: Tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise BrigesError(f'{path} is no whole safetensors file ({error}); get it anew') from error
    return tensors


def _write_graph(skeleton: Path, tensors: Tensors, path: Path) -> set[str]:
    """Fill a skeleton and save the graph; returns the names of the tensors that it took."""
    graph = onnx.load(str(skeleton))
    used = fill(graph, tensors)
    partial = path.with_suffix('.partial')
    onnx.save(graph, str(partial))
    partial.replace(path)
    return used


def _check_all_used(tensors: Tensors, used: set[str], source: Path) -> None:
    """A gate that the graph does not know would be left out without a word."""
    ours = {name for name in tensors if name.startswith(('gates.', SEGMENTATION_PREFIX))}
    if unused := sorted(ours - used):
        raise BrigesError(
            f'the graphs in {source} have no place for {unused[0]}; '
            'take both from the same version of the source'
        )


def _write_tempered_selfcheck(folder: Path) -> None:
    """The reference of a network with a temperature that torch never ran.

    onnxruntime's float32 stands in for torch here, once it has given torch's own reference for the
    same network without the temperature.

    Args:
        folder: holds the whole bundle without it, and the graph with it as
            ``gate_decoder.partial.onnx``.
    """
    bundle = ModelBundle.load(folder)
    open_checked_engine(bundle, 'onnxruntime')
    graphs = {**bundle.graphs, 'gate_decoder': folder / 'gate_decoder.partial.onnx'}
    engine = open_engine(replace(bundle, graphs=graphs), 'onnxruntime')
    with np.load(bundle.selfcheck) as data:
        arrays = {name: data[name] for name in data.files}
    arrays['inverse_depth'] = engine.infer(arrays['image'], arrays['segmentation_image'])
    np.savez_compressed(folder / TEMPERED_SELFCHECK, **arrays)


def merged_tensors(trained: Tensors, dinov2: Tensors) -> Tensors:
    """The whole network's tensors, each adapter folded into its layer.

    Args:
        trained: adapters (``encoder.LAYER.up``, ``.down``) and decoder, any float type.
        dinov2: the published encoder, without the prefix ``encoder.``.
    """
    tensors = {f'encoder.{name}': array for name, array in dinov2.items()}
    for name, array in trained.items():
        if name.endswith('.up'):
            layer = name.removesuffix('.up')
            up, down = array.astype(np.float32), trained[f'{layer}.down'].astype(np.float32)
            tensors[f'{layer}.weight'] = tensors[f'{layer}.weight'] + up @ down
        elif not name.endswith('.down'):
            tensors[name] = array.astype(np.float32)
    return tensors


def gate_tensors(segmentation: Tensors, gates: Tensors) -> Tensors:
    """What the gated network has besides, by its names in the graphs.

    Args:
        segmentation: the compact segmentation encoder, normalisations fused, any float type.
        gates: ``gates.LEVEL.…``, any float type.
    """
    named = {**{SEGMENTATION_PREFIX + name: a for name, a in segmentation.items()}, **gates}
    return {name: array.astype(np.float32) for name, array in named.items()}


def temper(tensors: Tensors, tau_cross: float, tau_self: float) -> Tensors:
    """Fold Attention Temperature Scaling into the gates' queries.

    ``softmax(q k^T / sqrt(d) / tau)`` is what dividing the weight and the bias that make q by tau
    gives.
    """
    taus = {'.cross.query.': tau_cross, '.self_attention.query.': tau_self}
    tempered = dict(tensors)
    for name, array in tensors.items():
        for part, tau in taus.items():
            if name.startswith('gates.') and part in name:
                tempered[name] = array / np.float32(tau)
    return tempered


def fill(graph: onnx.ModelProto, tensors: Tensors) -> set[str]:
    """Give every empty initialiser the tensor that it is named after.

    Returns:
        The names of the tensors that the graph took.

    Raises:
        BrigesError: there is no such tensor, or it has another shape.
    """
    used = set()
    for initializer in graph.graph.initializer:
        if initializer.raw_data:
            continue
        name = initializer.name
        array = tensors.get(name.removesuffix(TRANSPOSED))
        used.add(name.removesuffix(TRANSPOSED))
        if array is not None and name.endswith(TRANSPOSED):
            array = array.T
        if array is None or list(array.shape) != list(initializer.dims):
            raise BrigesError(
                f'the graph wants {name} {list(initializer.dims)} and the weights have '
                f'{"none" if array is None else list(array.shape)}; '
                'take both from the same version of the source'
            )
        filled = numpy_helper.from_array(np.ascontiguousarray(array, np.float32), name)
        initializer.CopyFrom(filled)
    return used


DINOV2 = {
    'name': 'DINOv2 ViT-S/14',
    'package': f'{dinov2_weights.WEIGHTS_PACKAGE}=={dinov2_weights.WEIGHTS_VERSION}',
    'file': dinov2_weights.WEIGHTS_FILE,
    'sha256': dinov2_weights.WEIGHTS_SHA256,
    'licence': 'Apache-2.0 (DINOv2), MIT (package)',
}


def _source(name: str, path: Path) -> dict[str, str]:
    return {
        'name': name,
        'file': path.name,
        'sha256': file_sha256(path),
        'licence': 'research only',
    }


def _description(gate: str) -> dict[str, object]:
    """``model.json``, but for its files."""
    description = 'DINOv2 ViT-S/14 with low-rank adapters and a DPT decoder'
    values: dict[str, object] = {
        'format': FORMAT,
        'name': 'compact',
        'description': description,
        'licence': 'research only (trained on NYUv2 and KITTI); see the model card',
        'gate': gate,
        'attention_temperature': {'cross': 1.0, 'self': 1.0},
        'output': 'relative_inverse_depth',
        'input': {
            'patch': dinov2_weights.PATCH,
            'token_budget': DEFAULT_TOKENS,
            'mean': list(IMAGENET_MEAN),
            'std': list(IMAGENET_STD),
        },
    }
    if gate != 'none':
        values['description'] = f'{description}, bridged to a convolutional segmentation encoder'
        values['segmentation_input'] = {
            'patch': SEGMENTATION_INPUT.patch,
            'mean': list(SEGMENTATION_INPUT.mean),
            'std': list(SEGMENTATION_INPUT.std),
        }
    return values


def _write_description(folder: Path, description: dict[str, object], selfcheck: str) -> None:
    """Write ``model.json`` with the files and their sha256."""
    graphs = {graph: f'{graph}.onnx' for graph in graph_names(str(description['gate']))}
    values = {
        **description,
        'graphs': {graph: _file_entry(folder / name) for graph, name in graphs.items()},
        'selfcheck': _file_entry(folder / selfcheck),
    }
    partial = folder / 'model.json.partial'
    partial.write_text(json.dumps(values, indent=2) + '\n')
    partial.replace(folder / 'model.json')


def _file_entry(path: Path) -> dict[str, str]:
    return {'file': path.name, 'sha256': file_sha256(path)}
