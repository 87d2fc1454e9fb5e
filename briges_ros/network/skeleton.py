"""From a trained network to what its bundle is composed of: graphs without weights, a self-check.

This needs torch and happens once, when a model is trained. What it writes is small and ships with
the source; `briges_ros.network.compose` fills the weights in where the model is used.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import cv2
import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from briges_ros.inference.preprocess import network_input
from briges_ros.network.compact import load_compact
from briges_ros.network.compose import SELFCHECK, TRANSPOSED, WEIGHTS, skeleton_file
from briges_ros.network.dinov2 import DinoV2
from briges_ros.network.dinov2_weights import PATCH

OPSET = 18
SMALLEST_WEIGHT = 256  # elements; anything smaller is a constant of the graph and stays in it


class _EncoderGraph(nn.Module):
    def __init__(self, encoder: DinoV2) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.encoder(image))


class _DecoderGraph(nn.Module):
    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, level0: Tensor, level1: Tensor, level2: Tensor, level3: Tensor) -> Tensor:
        return self.decoder([level0, level1, level2, level3])


def write_skeletons(folder: Path) -> None:
    """Write the graphs and the self-check that belong to the weights in a model's folder.

    Args:
        folder: holds ``weights.safetensors``; the other files are put beside it.
    """
    model = load_compact(folder / WEIGHTS)
    model.encoder.merge_adapters()
    image = network_input(selfcheck_image(), 336, 252)
    with torch.no_grad():
        levels = model.encoder(torch.from_numpy(image))
        reference = model.decoder(levels)
    rows, cols = torch.export.Dim('rows', min=2, max=512), torch.export.Dim('cols', min=2, max=512)
    encoder = _export(
        _EncoderGraph(model.encoder),
        (torch.from_numpy(image),),
        {'image': {2: PATCH * rows, 3: PATCH * cols}},
        ['image'],
        [f'level{i}' for i in range(4)],
    )
    decoder = _export(
        _DecoderGraph(model.decoder),
        tuple(levels),
        {f'level{i}': {2: rows, 3: cols} for i in range(4)},
        [f'level{i}' for i in range(4)],
        ['inverse_depth'],
    )
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    for name, graph in (('depth_encoder', encoder), ('gate_decoder', decoder)):
        take_weights_out(graph, tensors)
        onnx.save(graph, str(folder / skeleton_file(name)))
    np.savez_compressed(
        folder / SELFCHECK,
        image=image.astype(np.float32),
        inverse_depth=reference[0, 0].numpy(),
    )


def _export(
    module: nn.Module,
    example: tuple[Tensor, ...],
    dynamic_shapes: dict[str, dict[int, torch.export.Dim]],
    input_names: list[str],
    output_names: list[str],
) -> onnx.ModelProto:
    logging.getLogger('torch.onnx').setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of the exporter about itself
        program = torch.onnx.export(
            module.eval(),
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=input_names,
            output_names=output_names,
            dynamic_shapes=dynamic_shapes,
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


def take_weights_out(model: onnx.ModelProto, tensors: dict[str, NDArray[np.float32]]) -> None:
    """Empty every initialiser that is one of the network's tensors, and name it after that.

    The exporter renames and transposes weights as it likes, so they are recognised by their
    values; a transposed one is named ``NAME`` + `TRANSPOSED`.

    Raises:
        ValueError: a large initialiser is none of the tensors.
    """
    by_content: dict[tuple[tuple[int, ...], bytes], str] = {}
    for name, array in tensors.items():
        by_content[array.shape, array.tobytes()] = name
        if array.ndim == 2:
            by_content.setdefault((array.T.shape, array.T.tobytes()), name + TRANSPOSED)
    renamed = {}
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.size < SMALLEST_WEIGHT:
            continue
        match = by_content.get((array.shape, array.tobytes()))
        if match is None:
            raise ValueError(f'{tensor.name} {array.shape} is no tensor of the network')
        renamed[tensor.name] = tensor.name = match
        tensor.ClearField('raw_data')
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)


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
