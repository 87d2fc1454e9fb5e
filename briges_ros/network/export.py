"""From a trained network to a model bundle: ONNX graphs, their description, a self-check.

The graphs are float32 and keep height and width dynamic (multiples of the patch), so one bundle
serves every camera; an engine that wants fixed sizes fixes them when it builds.
"""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path

import cv2
import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from briges_ros.errors import BrigesError
from briges_ros.inference.bundle import FORMAT, file_sha256
from briges_ros.inference.preprocess import IMAGENET_MEAN, IMAGENET_STD, network_input
from briges_ros.network import dinov2
from briges_ros.network.compact import load_compact

OPSET = 18
DEFAULT_TOKENS = 588  # 392 x 294 for a 4:3 camera: what the compact model was trained at


class _EncoderGraph(nn.Module):
    def __init__(self, encoder: dinov2.DinoV2) -> None:
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


def export_compact(weights: Path, folder: Path) -> Path:
    """Compose the compact model's bundle.

    Args:
        weights: the trained adapters and decoder (safetensors).
        folder: where the bundle goes; its files are replaced one by one, ``model.json`` last, so a
            killed export never leaves a bundle that loads and is not whole.

    Returns:
        The bundle's folder.
    """
    if not weights.is_file():
        raise BrigesError(f'{weights} is missing; it comes with the source checkout')
    model = load_compact(weights)
    model.encoder.merge_adapters()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'model.json').unlink(missing_ok=True)

    image = network_input(selfcheck_image(), 336, 252)
    with torch.no_grad():
        levels = model.encoder(torch.from_numpy(image))
        reference = model.decoder(levels)
    rows, cols = torch.export.Dim('rows', min=2, max=512), torch.export.Dim('cols', min=2, max=512)
    _export_graph(
        _EncoderGraph(model.encoder),
        (torch.from_numpy(image),),
        {'image': {2: dinov2.PATCH * rows, 3: dinov2.PATCH * cols}},
        ['image'],
        [f'level{i}' for i in range(4)],
        folder / 'depth_encoder.onnx',
    )
    _export_graph(
        _DecoderGraph(model.decoder),
        tuple(levels),
        {f'level{i}': {2: rows, 3: cols} for i in range(4)},
        [f'level{i}' for i in range(4)],
        ['inverse_depth'],
        folder / 'gate_decoder.onnx',
    )
    np.savez_compressed(
        folder / 'selfcheck.npz',
        image=image.astype(np.float32),
        inverse_depth=reference[0, 0].numpy(),
    )
    description = {
        'format': FORMAT,
        'name': 'compact',
        'description': 'DINOv2 ViT-S/14 with low-rank adapters and a DPT decoder',
        'licence': 'research only (trained on NYUv2 and KITTI); see the model card',
        'gate': 'none',
        'output': 'relative_inverse_depth',
        'input': {
            'patch': dinov2.PATCH,
            'token_budget': DEFAULT_TOKENS,
            'mean': list(IMAGENET_MEAN),
            'std': list(IMAGENET_STD),
        },
        'sources': [
            {
                'name': 'DINOv2 ViT-S/14',
                'package': f'{dinov2.WEIGHTS_PACKAGE}=={dinov2.WEIGHTS_VERSION}',
                'file': dinov2.WEIGHTS_FILE,
                'sha256': dinov2.WEIGHTS_SHA256,
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
            for name in ('depth_encoder', 'gate_decoder')
        },
        'selfcheck': {
            'file': 'selfcheck.npz',
            'sha256': file_sha256(folder / 'selfcheck.npz'),
        },
    }
    partial = folder / 'model.json.partial'
    partial.write_text(json.dumps(description, indent=2) + '\n')
    partial.replace(folder / 'model.json')
    return folder


def _export_graph(
    module: nn.Module,
    example: tuple[Tensor, ...],
    dynamic_shapes: dict[str, dict[int, torch.export.Dim]],
    input_names: list[str],
    output_names: list[str],
    path: Path,
) -> None:
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
    partial = path.with_suffix('.partial')
    onnx.save(program.model_proto, str(partial))
    partial.replace(path)


def selfcheck_image() -> NDArray[np.uint8]:
    """A drawn corridor with boxes, (480, 640, 3) uint8: the same on every machine."""
    image = np.zeros((480, 640, 3), np.uint8)
    image[:] = np.linspace(200, 120, 480).astype(np.uint8)[:, None, None]
    far = np.array([[260, 200], [380, 200], [380, 280], [260, 280]])
    near = np.array([[0, 0], [639, 0], [639, 479], [0, 479]])
    for side, colour in enumerate(
        [(230, 225, 220), (170, 160, 150), (110, 95, 80), (180, 170, 160)]
    ):
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
