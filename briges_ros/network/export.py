"""Export any BriGeS network to a model bundle: three ONNX graphs, a self-check, and provenance.

The compact model that ships does not come this way: it is composed without torch, from graphs
without weights (`briges_ros.network.compose`). One that you have trained yourself does.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from briges_ros.errors import BrigesError
from briges_ros.inference.bundle import FORMAT, SegmentationInput, file_sha256
from briges_ros.inference.preprocess import IMAGENET_MEAN, IMAGENET_STD, network_input
from briges_ros.network.briges import LEVELS, Briges, check_trained_on
from briges_ros.network.checkpoints import load_tensors, read_frozen, read_tensors
from briges_ros.network.compact import load_compact_briges
from briges_ros.network.compose import (
    DEFAULT_TOKENS,
    DINOV2,
    GATE,
    SEGMENTATION,
    SEGMENTATION_INPUT,
    WEIGHTS,
)
from briges_ros.network.depth_anything import RELATIVE, DepthAnything
from briges_ros.network.dinov2_weights import PATCH
from briges_ros.network.gate import AttentionTemperature, LightGate, PaperGate
from briges_ros.network.graphs import (
    GRID,
    LEVEL_NAMES,
    Array,
    encoder_graph,
    gate_decoder_graph,
    onnx_graph,
    segmentation_graph,
    selfcheck_image,
)
from briges_ros.network.published import OpenedNetwork, open_published

TOKENS = 1369  # 37 x 37 patches: the 518 x 518 pixels that Depth Anything was trained at
TOLERANCE = 1e-3  # greatest error of a graph in onnxruntime, relative to its greatest output
LARGEST_FILE = 1 << 30  # bytes; protobuf ends at 2 GiB, so larger graphs keep their weights apart
SELFCHECK = 'selfcheck.npz'


@dataclass(frozen=True)
class BundleInfo:
    """What a bundle's ``model.json`` says that its graphs do not.

    Attributes:
        name, description, licence: for people.
        output: 'relative_inverse_depth' or 'metric_depth'.
        patch: pixels along a patch's side of the depth encoder.
        token_budget: most patches at the default size.
        sources: what it is made of, with licences and sha256.
        segmentation_input: None without gates.
    """

    name: str
    description: str
    licence: str
    output: str
    patch: int
    token_budget: int
    sources: list[dict[str, str]]
    segmentation_input: SegmentationInput | None = None


def export_bundle(
    network: Briges,
    folder: Path,
    info: BundleInfo,
    temperature: AttentionTemperature | None = None,
) -> Path:
    """Export a network, compare every graph with torch in onnxruntime, and write the bundle.

    Args:
        network: with its weights.
        folder: of the bundle. ``model.json`` is removed first and written last, so one that was
            killed on the way never leaves a bundle that loads and is not whole.
        info: the rest of ``model.json``.
        temperature: Attention Temperature Scaling that is built into the gates; None = off.

    Returns:
        The folder.

    Raises:
        BrigesError: a graph does not compute what torch does.
    """
    temperature = temperature or AttentionTemperature()
    network.eval().set_temperature(temperature)
    try:
        return _export(network, folder, info, temperature)
    finally:
        network.set_temperature(AttentionTemperature())


def _export(
    network: Briges, folder: Path, info: BundleInfo, temperature: AttentionTemperature
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'model.json').unlink(missing_ok=True)
    rows, cols = GRID
    pixels = selfcheck_image()
    image = network_input(pixels, info.patch * cols, info.patch * rows)
    selfcheck = {'image': image}
    with torch.no_grad():
        maps = network.depth_encoder(torch.from_numpy(image))
        levels = {name: level.numpy() for name, level in zip(LEVEL_NAMES, maps, strict=True)}
        segmentation = {}
        if info.segmentation_input is not None and network.segmentation_encoder is not None:
            wanted = info.segmentation_input
            selfcheck['segmentation_image'] = network_input(
                pixels, *wanted.pixels(cols, rows), wanted.mean, wanted.std
            )
            features = network.segmentation_encoder(
                torch.from_numpy(selfcheck['segmentation_image'])
            )
            segmentation = {'segmentation': features.numpy()}
        output = network.decode(maps, *map(torch.from_numpy, segmentation.values())).numpy()
    entries = {
        'depth_encoder': _write(
            folder / 'depth_encoder.onnx',
            encoder_graph(network),
            {'image': image},
            {'image': {2: f'{info.patch}*rows', 3: f'{info.patch}*cols'}},
            levels,
        )
    }
    sizes = {name: {2: 'rows', 3: 'cols'} for name in LEVEL_NAMES}
    if segmentation:
        patch = info.segmentation_input.patch if info.segmentation_input else None
        entries['segmentation_encoder'] = _write(
            folder / 'segmentation_encoder.onnx',
            segmentation_graph(network),
            {'image': selfcheck['segmentation_image']},
            {'image': {2: f'{patch}*rows', 3: f'{patch}*cols'}} if patch else {},
            segmentation,
        )
        if patch:
            sizes['segmentation'] = {2: 'segmentation_rows', 3: 'segmentation_cols'}
    entries['gate_decoder'] = _write(
        folder / 'gate_decoder.onnx',
        gate_decoder_graph(network),
        {**levels, **segmentation},
        sizes,
        {'inverse_depth': output},
    )
    arrays: dict[str, Any] = {**selfcheck, **levels, **segmentation, 'inverse_depth': output[0, 0]}
    np.savez_compressed(folder / SELFCHECK, **arrays)
    _write_description(folder, network, info, temperature, entries)
    return folder


def _write(
    path: Path,
    module: torch.nn.Module,
    inputs: dict[str, Array],
    dynamic: dict[str, dict[int, str]],
    outputs: dict[str, Array],
) -> dict[str, str]:
    """Export one graph, save it, and compare it with torch; returns its entry of the bundle."""
    graph = onnx_graph(module, inputs, dynamic, list(outputs))
    data = path.with_suffix('.onnx.data')
    for old in (path, data):
        old.unlink(missing_ok=True)
    size = sum(len(tensor.raw_data) for tensor in graph.graph.initializer)
    if size > LARGEST_FILE:
        onnx.save(graph, str(path), save_as_external_data=True, location=data.name)
    else:
        onnx.save(graph, str(path))
    del graph
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    for (name, expected), array in zip(
        outputs.items(), session.run(list(outputs), inputs), strict=True
    ):
        error = float(np.abs(array - expected).max() / max(float(np.abs(expected).max()), 1e-12))
        if not error < TOLERANCE:
            raise BrigesError(
                f'{path.name}: {name} differs from torch by {error:.2g} of its greatest value, in '
                'onnxruntime; this is a bug of the export: report it with the name of the network'
            )
    entry = {'file': path.name, 'sha256': file_sha256(path)}
    if data.is_file():
        entry |= {'data_file': data.name, 'data_sha256': file_sha256(data)}
    return entry


def _write_description(
    folder: Path,
    network: Briges,
    info: BundleInfo,
    temperature: AttentionTemperature,
    entries: dict[str, dict[str, str]],
) -> None:
    values: dict[str, object] = {
        'format': FORMAT,
        'name': info.name,
        'description': info.description,
        'licence': info.licence,
        'gate': network.gate_kind,
        'attention_temperature': {
            'cross': temperature.cross,
            'self': temperature.self_attention,
        },
        'output': info.output,
        'input': {
            'patch': info.patch,
            'token_budget': info.token_budget,
            'mean': list(IMAGENET_MEAN),
            'std': list(IMAGENET_STD),
        },
        'sources': info.sources,
        'graphs': entries,
        'selfcheck': {'file': SELFCHECK, 'sha256': file_sha256(folder / SELFCHECK)},
    }
    wanted = info.segmentation_input
    if wanted is not None:
        values['segmentation_input'] = {
            'mean': list(wanted.mean),
            'std': list(wanted.std),
            **({'patch': wanted.patch} if wanted.patch else {'size': list(wanted.size or ())}),
        }
    partial = folder / 'model.json.partial'
    partial.write_text(json.dumps(values, indent=2) + '\n')
    partial.replace(folder / 'model.json')


def open_folder(folder: Path) -> tuple[Briges, BundleInfo]:
    """A compact model out of its folder, and what its bundle says of it.

    Args:
        folder: what trainings released: ``weights.safetensors``, and for one with gates
            ``segmentation.safetensors`` and ``gate.safetensors``.

    Raises:
        BrigesError: a file is missing or does not fit the others.
    """
    network = load_compact_briges(folder)
    weights = [name for name in (WEIGHTS, SEGMENTATION, GATE) if (folder / name).is_file()]
    ours = [
        {'name': name, 'file': name, 'sha256': file_sha256(folder / name)}
        for name in (weights if network.gates else [WEIGHTS])
    ]
    return network, BundleInfo(
        name=folder.resolve().name,
        description='DINOv2 ViT-S/14 with low-rank adapters and a DPT decoder'
        + (', bridged to a convolutional segmentation encoder' if network.gates else ''),
        licence='that of the data it was trained on',
        output=RELATIVE,
        patch=PATCH,
        token_budget=DEFAULT_TOKENS,
        sources=[DINOV2, *ours],
        segmentation_input=SEGMENTATION_INPUT if network.gates else None,
    )


@dataclass(frozen=True)
class PublishedPair:
    """Which published networks to join.

    Attributes:
        depth: name or folder of a Depth Anything.
        segmentation: name or folder of a SAM or SAM 2.1; None = no gates.
        gates: what gate training released for this pair; None only without gates.
        accept_noncommercial: weights that must not be used commercially may be taken.
    """

    depth: str
    segmentation: str | None = None
    gates: Path | None = None
    accept_noncommercial: bool = False


def open_pair(pair: PublishedPair) -> tuple[Briges, BundleInfo]:
    """The network of a pair and what its bundle says of it.

    Raises:
        BrigesError: a part is missing, of another kind, or does not fit the others.
    """
    depth = open_published(pair.depth, pair.accept_noncommercial)
    if not isinstance(depth.network, DepthAnything):
        raise BrigesError(f'{pair.depth} is no depth network; give it as --segmentation')
    encoder, decoder = depth.network.encoder, depth.network.decoder
    if (pair.segmentation is None) != (pair.gates is None):
        raise BrigesError(
            'a segmentation encoder is bridged by trained gates: give both --segmentation and '
            '--gates, or neither for the plain depth network'
        )
    if pair.segmentation is None or pair.gates is None:
        return Briges(encoder, decoder), BundleInfo(
            name=depth.name,
            description=f'{depth.name}, as published',
            licence=depth.licence,
            output=decoder.output,
            patch=encoder.patch,
            token_budget=TOKENS,
            sources=depth.sources,
        )
    tensors = read_tensors(pair.gates)
    levels = [i for i in range(LEVELS) if any(name.startswith(f'gates.{i}.') for name in tensors)]
    if not levels:
        raise BrigesError(f'{pair.gates} holds no gate: there is no tensor named gates.LEVEL...')
    paper = not any('.reduce.' in name for name in tensors)
    segmentation: OpenedNetwork = open_published(
        pair.segmentation, pair.accept_noncommercial, before_neck=paper
    )
    sam = segmentation.network
    if isinstance(sam, DepthAnything):
        raise BrigesError(f'{pair.segmentation} is a depth network; give a SAM or SAM 2.1')
    if paper and sam.channels != encoder.width:
        raise BrigesError(
            f"{pair.gates} holds the paper's gates, which need encoders of one width: {depth.name} "
            f'has {encoder.width}, {segmentation.name} {sam.channels}'
        )
    gates: dict[int, torch.nn.Module] = {
        level: PaperGate(encoder.width) if paper else LightGate(encoder.width, sam.channels)
        for level in levels
    }
    network = Briges(encoder, decoder, sam, gates)
    load_tensors(torch.nn.ModuleDict({'gates': network.gates}), tensors, pair.gates)
    check_trained_on(network, read_frozen(pair.gates), pair.gates)
    gate_source = {'name': 'gates', 'file': pair.gates.name, 'sha256': file_sha256(pair.gates)}
    return network, BundleInfo(
        name=f'{depth.name}_{segmentation.name}',
        description=f'{depth.name} bridged to {segmentation.name}',
        licence=f'{depth.licence} and {segmentation.licence}; of the gates: see their training',
        output=decoder.output,
        patch=encoder.patch,
        token_budget=TOKENS,
        sources=[*depth.sources, *segmentation.sources, gate_source],
        segmentation_input=SegmentationInput(
            IMAGENET_MEAN, IMAGENET_STD, size=(sam.size, sam.size)
        ),
    )
