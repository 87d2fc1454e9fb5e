"""Compose a model bundle: graphs without weights + published weights + ours. No torch, seconds.

    bundle = skeletons (shipped) filled with { DINOv2 from its own package
                                             + adapters and decoder (shipped), adapters merged }

so what ships is small, and nothing that is somebody else's is shipped. The graphs are float32 and
keep height and width dynamic (multiples of the patch): one bundle serves every camera, and an
engine that wants fixed sizes fixes them when it builds.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from safetensors.numpy import load_file

from briges_ros.errors import BrigesError
from briges_ros.inference.bundle import FORMAT, file_sha256
from briges_ros.inference.preprocess import IMAGENET_MEAN, IMAGENET_STD
from briges_ros.network import dinov2_weights

WEIGHTS = 'weights.safetensors'
SELFCHECK = 'selfcheck.npz'
TRANSPOSED = '^T'  # ends the name of an initialiser that holds the tensor transposed
DEFAULT_TOKENS = 588  # 392 x 294 for a 4:3 camera: what the compact model was trained at
GRAPHS = ('depth_encoder', 'gate_decoder')  # no gate yet, hence no segmentation encoder

Tensors = dict[str, NDArray[np.float32]]


def skeleton_file(graph: str) -> str:
    """Name of the file that holds a graph without its weights."""
    return f'{graph}.skeleton.onnx'


def compose_compact(source: Path, folder: Path) -> Path:
    """Compose the compact model's bundle.

    Args:
        source: the model's folder in the source tree: trained weights, skeletons, self-check.
        folder: where the bundle goes. ``model.json`` is removed first and written last, so one
            that was killed on the way never leaves a bundle that loads and is not whole.

    Returns:
        The bundle's folder.

    Raises:
        BrigesError: a part is missing or does not fit the others.
    """
    for name in (WEIGHTS, SELFCHECK, *map(skeleton_file, GRAPHS)):
        if not (source / name).is_file():
            raise BrigesError(f'{source / name} is missing; it comes with the source checkout')
    tensors = merged_tensors(load_file(source / WEIGHTS), dinov2_weights.dinov2_tensors())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'model.json').unlink(missing_ok=True)
    for name in GRAPHS:
        graph = onnx.load(str(source / skeleton_file(name)))
        fill(graph, tensors)
        partial = folder / f'{name}.partial'
        onnx.save(graph, str(partial))
        partial.replace(folder / f'{name}.onnx')
    if source.resolve() != folder.resolve():
        shutil.copyfile(source / SELFCHECK, folder / SELFCHECK)
    description = _description(source / WEIGHTS, folder)
    partial = folder / 'model.json.partial'
    partial.write_text(json.dumps(description, indent=2) + '\n')
    partial.replace(folder / 'model.json')
    return folder


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


def fill(graph: onnx.ModelProto, tensors: Tensors) -> None:
    """Give every empty initialiser the tensor that it is named after.

    Raises:
        BrigesError: there is no such tensor, or it has another shape.
    """
    for initializer in graph.graph.initializer:
        if initializer.raw_data:
            continue
        name = initializer.name
        array = tensors.get(name.removesuffix(TRANSPOSED))
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


def _description(weights: Path, folder: Path) -> dict[str, object]:
    return {
        'format': FORMAT,
        'name': 'compact',
        'description': 'DINOv2 ViT-S/14 with low-rank adapters and a DPT decoder',
        'licence': 'research only (trained on NYUv2 and KITTI); see the model card',
        'gate': 'none',
        'output': 'relative_inverse_depth',
        'input': {
            'patch': dinov2_weights.PATCH,
            'token_budget': DEFAULT_TOKENS,
            'mean': list(IMAGENET_MEAN),
            'std': list(IMAGENET_STD),
        },
        'sources': [
            {
                'name': 'DINOv2 ViT-S/14',
                'package': f'{dinov2_weights.WEIGHTS_PACKAGE}=={dinov2_weights.WEIGHTS_VERSION}',
                'file': dinov2_weights.WEIGHTS_FILE,
                'sha256': dinov2_weights.WEIGHTS_SHA256,
                'licence': 'Apache-2.0 (DINOv2), MIT (package)',
            },
            {
                'name': 'adapters and decoder',
                'file': weights.name,
                'sha256': file_sha256(weights),
                'licence': 'research only',
            },
        ],
        'graphs': {
            name: {'file': f'{name}.onnx', 'sha256': file_sha256(folder / f'{name}.onnx')}
            for name in GRAPHS
        },
        'selfcheck': {'file': SELFCHECK, 'sha256': file_sha256(folder / SELFCHECK)},
    }
