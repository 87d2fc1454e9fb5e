"""The three graphs of a bundle as torch modules, and their export to ONNX.

depth_encoder         image -> level0..level3
segmentation_encoder  image -> segmentation
gate_decoder          level0..level3 [, segmentation] -> inverse_depth
"""

from __future__ import annotations

import logging
import warnings

import cv2
import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from briges_ros.network.briges import LEVELS, Briges

OPSET = 18
GRID = (12, 16)  # rows and columns of patches in the self-check
LEVEL_NAMES = tuple(f'level{i}' for i in range(LEVELS))

Array = NDArray[np.float32]


class _EncoderGraph(nn.Module):
    """The depth encoder, by the names that its tensors have in the graphs."""

    def __init__(self, network: Briges) -> None:
        super().__init__()
        self.encoder = network.depth_encoder

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.encoder(image))


class _SegmentationGraph(nn.Module):
    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.segmentation_encoder = encoder

    def forward(self, image: Tensor) -> Tensor:
        return self.segmentation_encoder(image)


class _PlainDecoderGraph(nn.Module):
    def __init__(self, network: Briges) -> None:
        super().__init__()
        self.decoder = network.decoder

    def forward(self, level0: Tensor, level1: Tensor, level2: Tensor, level3: Tensor) -> Tensor:
        return self.decoder([level0, level1, level2, level3])


class _GateDecoderGraph(nn.Module):
    def __init__(self, network: Briges) -> None:
        super().__init__()
        self.gates, self.decoder = network.gates, network.decoder

    def forward(
        self, level0: Tensor, level1: Tensor, level2: Tensor, level3: Tensor, segmentation: Tensor
    ) -> Tensor:
        levels = [level0, level1, level2, level3]
        for level, gate in self.gates.items():
            levels[int(level)] = gate(levels[int(level)], segmentation)
        return self.decoder(levels)


def encoder_graph(network: Briges) -> nn.Module:
    """Image -> level0..level3."""
    return _EncoderGraph(network)


def segmentation_graph(network: Briges) -> nn.Module:
    """Image -> segmentation; only for a network with gates."""
    if network.segmentation_encoder is None:
        raise ValueError('this network has no segmentation encoder')
    return _SegmentationGraph(network.segmentation_encoder)


def decoder_graph(network: Briges) -> nn.Module:
    """level0..level3 -> inverse_depth, past the gates."""
    return _PlainDecoderGraph(network)


def gate_decoder_graph(network: Briges) -> nn.Module:
    """level0..level3, and segmentation if there are gates -> inverse_depth."""
    return _GateDecoderGraph(network) if network.gates else _PlainDecoderGraph(network)


def onnx_graph(
    module: nn.Module,
    inputs: dict[str, Array],
    dynamic: dict[str, dict[int, str]],
    output_names: list[str],
) -> onnx.ModelProto:
    """Export one graph.

    Args:
        module: takes ``inputs`` in their order.
        inputs: an example.
        dynamic: by input and dimension, what its size is: a name, or ``FACTOR*NAME``.
        output_names: of what the module returns.
    """
    dims = {
        size.split('*')[-1]: torch.export.Dim(size.split('*')[-1], min=2, max=512)
        for sizes in dynamic.values()
        for size in sizes.values()
    }

    def dim(size: str) -> torch.export.Dim:
        factor, _, name = size.rpartition('*')
        return int(factor) * dims[name] if factor else dims[name]

    logging.getLogger('torch.onnx').setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of the exporter about itself
        program = torch.onnx.export(
            module.eval(),
            tuple(torch.from_numpy(array) for array in inputs.values()),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=output_names,
            dynamic_shapes={
                name: {axis: dim(size) for axis, size in dynamic.get(name, {}).items()}
                for name in inputs
            },
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    # What the exporter notes of where each node came from names this machine's folders.
    del model.metadata_props[:], model.graph.metadata_props[:]
    for node in model.graph.node:
        node.doc_string = ''
        del node.metadata_props[:]
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        del value.metadata_props[:]
    return model


def selfcheck_image() -> NDArray[np.uint8]:
    """A drawn corridor with boxes, (480, 640, 3) uint8: the same on every machine."""
    image = np.zeros((480, 640, 3), np.uint8)
    far = np.array([[260, 200], [380, 200], [380, 280], [260, 280]])
    near = np.array([[0, 0], [639, 0], [639, 479], [0, 479]])
    walls = [(230, 225, 220), (170, 160, 150), (110, 95, 80), (180, 170, 160)]
    for side, colour in enumerate(walls):
        following = (side + 1) % 4
        wall = np.array([near[side], near[following], far[following], far[side]])
        cv2.fillPoly(image, [wall], colour)
    cv2.rectangle(image, (260, 200), (380, 280), (90, 110, 130), -1)
    for x, y, w, h, colour in [
        (60, 250, 130, 200, (60, 90, 160)),
        (430, 270, 70, 90, (150, 60, 50)),
        (300, 255, 25, 35, (70, 130, 70)),
    ]:
        cv2.rectangle(image, (x, y), (x + w, y + h), colour, -1)
        cv2.rectangle(image, (x, y), (x + w, y + h), (30, 30, 30), 2)
    return cv2.GaussianBlur(image, (0, 0), 1.0).astype(np.uint8)
