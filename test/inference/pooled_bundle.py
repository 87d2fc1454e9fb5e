"""A bundle with a gate, small enough to run in no time: patches' means instead of transformers."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from briges_ros.inference.bundle import ModelBundle, SegmentationInput
from briges_ros.inference.engine import open_engine
from briges_ros.inference.preprocess import prepare

CAMERA = (64, 48)
HALF = (0.5, 0.5, 0.5)


def picture(seed=0, size=CAMERA):
    """(H, W, 3) uint8 noise."""
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)


def graph_of(name, inputs, nodes, outputs, weights=None):
    def values(shapes):
        return [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()]

    tensors = [numpy_helper.from_array(np.asarray(a), n) for n, a in (weights or {}).items()]
    graph = helper.make_graph(nodes, name, values(inputs), values(outputs), tensors)
    opset = [helper.make_opsetid('', 18)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def pooled(patch):
    return helper.make_node(
        'AveragePool', ['image'], ['mean'], kernel_shape=[patch] * 2, strides=[patch] * 2
    )


def pooled_bundle(folder: Path) -> ModelBundle:
    """A bundle in a folder, without its model.json."""
    image, grid = (1, 3, 'h', 'w'), (1, 3, 'rows', 'cols')
    levels = [f'level{i}' for i in range(4)]
    factors = {f'f{i}': np.float32(i + 1) for i in range(4)}
    graphs = {
        'depth_encoder': graph_of(
            'depth_encoder',
            {'image': image},
            [
                pooled(14),
                *(helper.make_node('Mul', ['mean', f'f{i}'], [levels[i]]) for i in range(4)),
            ],
            dict.fromkeys(levels, grid),
            factors,
        ),
        'segmentation_encoder': graph_of(
            'segmentation_encoder',
            {'image': image},
            [pooled(16), helper.make_node('Mul', ['mean', 'f'], ['segmentation'])],
            {'segmentation': grid},
            {'f': np.float32(-0.5)},
        ),
        'gate_decoder': graph_of(
            'gate_decoder',
            {**dict.fromkeys(levels, grid), 'segmentation': grid},
            [
                helper.make_node('Sum', [*levels, 'segmentation'], ['sum']),
                helper.make_node('ReduceMean', ['sum', 'axes'], ['grey'], keepdims=1),
                helper.make_node('Abs', ['grey'], ['positive']),
                helper.make_node('Add', ['positive', 'one'], ['one_more']),
                helper.make_node(
                    'Resize', ['one_more', '', 'scales'], ['inverse_depth'], mode='linear'
                ),
            ],
            {'inverse_depth': (1, 1, 'height', 'width')},
            {
                'axes': np.array([1]),
                'one': np.float32(1),
                'scales': np.array([1, 1, 8, 8], np.float32),
            },
        ),
    }
    paths = {}
    for name, model in graphs.items():
        paths[name] = folder / f'{name}.onnx'
        onnx.save(model, str(paths[name]))
    bundle = ModelBundle(
        folder=folder,
        name='pooled',
        description='',
        licence='',
        gate='light',
        output='relative_inverse_depth',
        patch=14,
        token_budget=12,
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.3, 0.4),
        graphs=paths,
        selfcheck=folder / 'selfcheck.npz',
        segmentation_input=SegmentationInput(HALF, HALF, patch=16),
        sha256='1' * 64,
    )
    inputs = dict(zip(('image', 'segmentation_image'), prepare(picture(9), bundle), strict=True))
    engine = open_engine(bundle, 'onnxruntime', 'fp32', 1)
    features = engine.run_graph('depth_encoder', {'image': inputs['image']})
    features |= engine.run_graph('segmentation_encoder', {'image': inputs['segmentation_image']})
    np.savez(bundle.selfcheck, **inputs, **features, inverse_depth=engine.infer(*inputs.values()))
    return bundle
