"""Does the method earn its cost? The gate beside everything that could explain its gain.

On frames that never trained, with 95 % intervals, each row beside the frozen network in the same
run: the gate with the features it should see, with those of another frame, and with none; a gate
*trained* without any (the same parameters, no semantics); the decoder fine-tuned alone; and
Attention Temperature Scaling. Trainings are found by their work folders:

    briges train gate --config config/training/gate_compact.yaml
    briges train gate --config config/training/gate_compact_blank.yaml
    briges train gate --config config/training/gate_compact_decoder.yaml
    python benchmarks/gate.py --runs runs --output benchmarks/results/gate.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from briges_ros.evaluation.bootstrap import Interval, mean_interval, paired_difference
from briges_ros.evaluation.frames import SingleFrames
from briges_ros.evaluation.metrics import depth_metrics
from briges_ros.evaluation.protocol import PROTOCOLS, Protocol
from briges_ros.inference.preprocess import input_size, network_input
from briges_ros.network.briges import Briges
from briges_ros.network.gate import AttentionTemperature
from briges_ros.training.datasets import open_dataset
from briges_ros.training.gate_config import GateConfig, read_config
from briges_ros.training.gate_network import load_gates, open_network

CONFIGS = Path(__file__).parents[1] / 'config' / 'training'
TOKENS = 588
TAUS = (1.5, 2.0, 3.0, 5.0)
TRAINED_ON = {'d13_kitticity'}  # single frames that are also frames of the drive's training part
TIMED = 15  # runs of each part, of which the median counts


@dataclass(frozen=True)
class Row:
    """One network, or one way to feed it.

    Attributes:
        name: of the row.
        decode: (levels, right segmentation, another frame's) -> (1, 1, h, w).
        parameters: what it has besides the frozen depth network (its segmentation encoder too).
        trained: of these, what was trained against depth.
    """

    name: str
    decode: Callable[[list[Tensor], Tensor, Tensor], Tensor]
    parameters: int
    trained: int


def experiment(name: str, runs: Path) -> Briges:
    """The network of an experiment with its trained weights."""
    config = read_config(GateConfig, CONFIGS / f'{name}.yaml')
    model = open_network(config).model
    load_gates(runs / f'gate-{name}' / 'release' / 'gate.safetensors', model)
    return model.eval()


def count(module: nn.Module | None) -> int:
    """Parameters of a module."""
    return 0 if module is None else sum(p.numel() for p in module.parameters())


def make_rows(gated: Briges, blank: Briges, tuned: Briges) -> list[Row]:
    """All rows; the first is the frozen network."""
    gates = count(gated.gates)
    everything = gates + count(gated.segmentation_encoder)

    def tempered(cross: float, own: float) -> Callable[[list[Tensor], Tensor, Tensor], Tensor]:
        def decode(levels: list[Tensor], right: Tensor, _other: Tensor) -> Tensor:
            gated.set_temperature(AttentionTemperature(cross, own))
            output = gated.decode(levels, right)
            gated.set_temperature(AttentionTemperature())
            return output

        return decode

    rows = [
        Row('frozen, no gate', lambda x, _right, _other: gated.decoder(x), 0, 0),
        Row('gate', lambda x, right, _other: gated.decode(x, right), everything, gates),
        Row(
            "gate, another frame's features",
            lambda x, _right, other: gated.decode(x, other),
            everything,
            gates,
        ),
        Row(
            'gate, blank features',
            lambda x, right, _other: gated.decode(x, torch.zeros_like(right)),
            everything,
            gates,
        ),
        Row(
            'gate trained on blank features',
            lambda x, right, _other: blank.decode(x, torch.zeros_like(right)),
            gates,
            gates,
        ),
        Row(
            'decoder fine-tuned, no gate',
            lambda x, _right, _other: tuned.decoder(x),
            0,
            count(tuned.decoder),
        ),
    ]
    for tau in TAUS:
        for cross, own, what in [(tau, 1, 'cross'), (1, tau, 'self'), (tau, tau, 'both')]:
            name = f'gate, tau {tau:g}, {what}'
            rows.append(Row(name, tempered(cross, own), everything, gates))
    return rows


@dataclass(frozen=True, eq=False)
class Frame:
    """A frame to score: image (H, W, 3), truth (H, W) metres or NaN, and how to compare them."""

    image: NDArray[np.uint8]
    truth: NDArray[np.float32]
    protocol: Protocol


def nyu_frames(data: Path) -> Iterator[Frame]:
    """The held-out blocks of NYUv2."""
    yield from dataset_frames('nyuv2', data / 'nyuv2', PROTOCOLS['nyuv2'])


def kitti_frames(data: Path) -> Iterator[Frame]:
    """The unseen part of the drive."""
    yield from dataset_frames('kitti_drive', data / 'kitti_drive', PROTOCOLS['kitti'])


def dataset_frames(kind: str, root: Path, protocol: Protocol) -> Iterator[Frame]:
    """What is held out of a data set."""
    dataset = open_dataset(kind, root, 'held_out')
    for index in range(len(dataset)):
        sample = dataset[index]
        with np.errstate(divide='ignore'):
            yield Frame(sample.image, 1.0 / sample.inverse, protocol)


def single_frames(data: Path) -> Iterator[Frame]:
    """The single frames of other data sets."""
    frames = SingleFrames(data / 'frames')
    for index in range(len(frames)):
        frame = frames[index]
        if frame.name not in TRAINED_ON:
            yield Frame(frame.image, frame.depth, PROTOCOLS[f'frames-{frame.kind}'])


SETS = {
    'NYUv2 held-out': nyu_frames,
    'single frames': single_frames,
    'KITTI drive, unseen': kitti_frames,
}


@torch.no_grad()
def score(rows: list[Row], gated: Briges, frames: list[Frame], name: str) -> NDArray[np.float64]:
    """AbsRel and delta1 of every row on every frame: (rows, frames, 2)."""
    wanted = open_network(read_config(GateConfig, CONFIGS / 'gate_compact.yaml')).segmentation_input
    assert wanted is not None and gated.segmentation_encoder is not None
    grids, segmentations = [], []
    for frame in track(frames, f'{name}: segmentation'):
        height, width = frame.image.shape[:2]
        size = input_size(width, height, TOKENS)
        grids.append(size)
        pixels = wanted.pixels(size[0] // 14, size[1] // 14)
        image = network_input(frame.image, *pixels, wanted.mean, wanted.std)
        segmentations.append(gated.segmentation_encoder(torch.from_numpy(image)))
    results = np.full((len(rows), len(frames), 2), np.nan)
    for index, frame in enumerate(track(frames, f'{name}: depth')):
        levels = gated.depth_encoder(torch.from_numpy(network_input(frame.image, *grids[index])))
        scored = frame.protocol.scored_truth(frame.truth)
        other = segmentations[(index + len(frames) // 2) % len(frames)]
        for number, row in enumerate(rows):
            relative = row.decode(levels, segmentations[index], other)[0, 0].numpy()
            result = depth_metrics(frame.protocol.aligned_depth(relative, scored), scored)
            results[number, index] = result.abs_rel, result.delta1
    return results


@torch.no_grad()
def milliseconds(rows: list[Row], gated: Briges) -> list[float]:
    """Median time of one 392x294 frame through each row, torch float32, encoders included."""
    image, small = torch.randn(1, 3, 294, 392), torch.randn(1, 3, 336, 448)
    assert gated.segmentation_encoder is not None
    right = gated.segmentation_encoder(small)

    def once(row: Row) -> float:
        start = time.perf_counter()
        levels = gated.depth_encoder(image)
        if row.parameters > row.trained:  # it looks at segmentation features
            gated.segmentation_encoder(small)
        row.decode(levels, right, right)
        return 1e3 * (time.perf_counter() - start)

    times: list[list[float]] = [[] for _ in rows]
    for _ in track(range(TIMED + 2), 'time'):  # interleaved, so that a busy machine slows all alike
        for row, mine in zip(rows, times, strict=True):
            mine.append(once(row))
    return [statistics.median(mine[2:]) for mine in times]


def main() -> None:
    """Measure, print and, if asked, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--runs', type=Path, default=Path('runs'), help='work folders of briges')
    parser.add_argument('--data', type=Path, default=Path('../shared/data'))
    parser.add_argument('--every', type=int, default=1, help='only every n-th frame')
    parser.add_argument('--output', type=Path, help='JSON file to write')
    options = parser.parse_args()
    gated = experiment('gate_compact', options.runs)
    rows = make_rows(
        gated,
        experiment('gate_compact_blank', options.runs),
        experiment('gate_compact_decoder', options.runs),
    )
    times = milliseconds(rows, gated)
    values = []
    for name, read in SETS.items():
        frames = list(read(options.data))[:: options.every]
        results = score(rows, gated, frames, name)
        block = frames[0].protocol.block
        table = Table(title=f'{name}, {len(frames)} frames, affine-invariant, torch float32')
        for title in (
            'network',
            'AbsRel',
            'to frozen',
            'minus frozen',
            'gate minus it',
            'delta1',
            'extra M',
            'ms',
        ):
            table.add_column(title)
        for number, row in enumerate(rows):
            abs_rel, delta1 = (mean_interval(results[number, :, i], block) for i in (0, 1))
            change = paired_difference(results[number, :, 0], results[0, :, 0], block)
            gain = paired_difference(results[1, :, 0], results[number, :, 0], block)
            ratio = abs_rel.mean / float(np.nanmean(results[0, :, 0]))
            table.add_row(
                row.name,
                interval(abs_rel),
                f'{ratio:.3f} x',
                interval(change, '+.4f'),
                interval(gain, '+.4f'),
                interval(delta1),
                f'{row.parameters / 1e6:.1f}',
                f'{times[number]:.0f}',
            )
            values.append(
                {
                    'set': name,
                    'network': row.name,
                    'abs_rel': asdict(abs_rel),
                    'abs_rel_to_frozen': ratio,
                    'abs_rel_change': asdict(change),
                    'gate_minus_this': asdict(gain),
                    'abs_rel_by_frame': results[number, :, 0].tolist(),
                    'delta1': asdict(delta1),
                    'extra_parameters': row.parameters,
                    'trained_parameters': row.trained,
                    'milliseconds': times[number],
                }
            )
        Console(width=150).print(table)
    if options.output:
        options.output.write_text(json.dumps(values, indent=2) + '\n')


def interval(value: Interval, spec: str = '.4f') -> str:
    """Mean and 95 % interval."""
    return f'{value.mean:{spec}} ({value.low:{spec}} to {value.high:{spec}})'


if __name__ == '__main__':
    main()
