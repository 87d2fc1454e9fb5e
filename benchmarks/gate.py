"""Does the method earn its cost? The gate beside everything that could explain its gain.

On frames that never trained, with 95 % intervals, each row beside the frozen network in the same
run: the gate with the features it should see, with those of another scene, and with none; a gate
*trained* without any (the same parameters, no semantics); the decoder fine-tuned alone; and
Attention Temperature Scaling. AbsRel and delta1 are affine-invariant; at the borders of objects
(`briges_ros.evaluation.borders`), AbsRel and the wide F1. Trainings are found by their folders:

    briges train gate --config config/training/gate_compact.yaml
    briges train gate --config config/training/gate_compact_blank.yaml
    briges train gate --config config/training/gate_compact_decoder.yaml
    python benchmarks/gate.py --runs runs --output benchmarks/results/gate.json
    python benchmarks/gate.py --print benchmarks/results/gate.json    # as in docs/results.md
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from briges_ros.evaluation.bootstrap import mean_interval, paired_difference
from briges_ros.evaluation.borders import border_metrics
from briges_ros.evaluation.frames import SingleFrames
from briges_ros.evaluation.metrics import depth_metrics
from briges_ros.evaluation.protocol import PROTOCOLS, Protocol
from briges_ros.inference.bundle import SegmentationInput
from briges_ros.inference.preprocess import input_size, network_input
from briges_ros.network.briges import Briges
from briges_ros.network.dinov2_weights import PATCH
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
        decode: (levels, right segmentation, another scene's) -> (1, 1, h, w).
        parameters: what it has besides the frozen depth network (its segmentation encoder too).
        trained: of these, what was trained against depth.
        borders: measure it at the borders of objects, too, which takes longer.
    """

    name: str
    decode: Callable[[list[Tensor], Tensor, Tensor], Tensor]
    parameters: int
    trained: int
    borders: bool = True


def experiment(name: str, runs: Path) -> Briges:
    """The network of an experiment with its trained weights."""
    config = read_config(GateConfig, CONFIGS / f'{name}.yaml')
    model = open_network(config).model
    part = 'gate' if model.gates else 'decoder'
    load_gates(runs / f'gate-{name}' / 'release' / f'{part}.safetensors', model)
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
            "gate, another scene's features",
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
            rows.append(Row(name, tempered(cross, own), everything, gates, borders=False))
    return rows


@dataclass(frozen=True, eq=False)
class Frame:
    """A frame to score.

    Attributes:
        image: (H, W, 3) RGB.
        truth: (H, W) metres, NaN = unknown.
        labels: (H, W) ids of regions, if people drew them.
        protocol: how they are compared.
    """

    image: NDArray[np.uint8]
    truth: NDArray[np.float32]
    labels: NDArray[np.uint8] | None
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
            yield Frame(sample.image, 1.0 / sample.inverse, sample.labels, protocol)


def single_frames(data: Path) -> Iterator[Frame]:
    """The single frames of other data sets."""
    frames = SingleFrames(data / 'frames')
    for index in range(len(frames)):
        frame = frames[index]
        if frame.name not in TRAINED_ON:
            yield Frame(frame.image, frame.depth, None, PROTOCOLS[f'frames-{frame.kind}'])


SETS = {
    'NYUv2 held-out': nyu_frames,
    'single frames': single_frames,
    'KITTI drive, unseen': kitti_frames,
}


MEASURES = ('abs_rel', 'delta1', 'border_abs_rel', 'border_f1')


@torch.no_grad()
def score(
    rows: list[Row],
    gated: Briges,
    wanted: SegmentationInput,
    frames: list[Frame],
    others: list[NDArray[np.uint8]],
    name: str,
) -> NDArray[np.float64]:
    """Every row on every frame.

    Args:
        rows: what is measured.
        gated: has the encoders.
        wanted: what its segmentation encoder takes.
        frames: what is scored.
        others: for each frame the image of another scene.
        name: of the set.

    Returns:
        (rows, frames, measures), NaN where there is nothing to measure.
    """
    encoder = gated.segmentation_encoder
    assert encoder is not None
    results = np.full((len(rows), len(frames), len(MEASURES)), np.nan)
    for index, (frame, other) in enumerate(zip(track(frames, name), others, strict=True)):
        height, width = frame.image.shape[:2]
        size = input_size(width, height, TOKENS)
        levels = gated.depth_encoder(torch.from_numpy(network_input(frame.image, *size)))
        pixels = wanted.pixels(size[0] // PATCH, size[1] // PATCH)
        right, wrong = (
            encoder(torch.from_numpy(network_input(image, *pixels, wanted.mean, wanted.std)))
            for image in (frame.image, other)
        )
        scored = frame.protocol.scored_truth(frame.truth)
        for number, row in enumerate(rows):
            relative = row.decode(levels, right, wrong)[0, 0].numpy()
            depth = frame.protocol.aligned_depth(relative, scored)
            whole = depth_metrics(depth, scored)
            results[number, index, :2] = whole.abs_rel, whole.delta1
            if row.borders:
                edges = border_metrics(depth, scored, frame.labels)
                results[number, index, 2:] = edges.abs_rel, edges.wide_f1
    return results


@torch.no_grad()
def milliseconds(rows: list[Row], gated: Briges) -> list[float]:
    """Median time of one 392x294 frame through each row, torch float32, encoders included."""
    image, small = torch.randn(1, 3, 294, 392), torch.randn(1, 3, 336, 448)
    encoder = gated.segmentation_encoder
    assert encoder is not None
    right = encoder(small)

    def once(row: Row) -> float:
        start = time.perf_counter()
        levels = gated.depth_encoder(image)
        if row.parameters > row.trained:  # it looks at segmentation features
            encoder(small)
        row.decode(levels, right, right)
        return 1e3 * (time.perf_counter() - start)

    times: list[list[float]] = [[] for _ in rows]
    for _ in track(range(TIMED + 2), 'time'):  # interleaved, so that a busy machine slows all alike
        for row, mine in zip(rows, times, strict=True):
            mine.append(once(row))
    return [statistics.median(mine[2:]) for mine in times]


def measure(runs: Path, data: Path, every: int) -> list[dict[str, Any]]:
    """All sets: one entry for each set and row."""
    config = read_config(GateConfig, CONFIGS / 'gate_compact.yaml')
    wanted = open_network(config).segmentation_input
    assert wanted is not None
    gated = experiment('gate_compact', runs)
    rows = make_rows(
        gated,
        experiment('gate_compact_blank', runs),
        experiment('gate_compact_decoder', runs),
    )
    times = milliseconds(rows, gated)
    values = []
    rooms = [frame.image for frame in nyu_frames(data)]
    for name, read in SETS.items():
        frames = list(read(data))[::every]
        # Half the set away is another room; the frames of the drive are all of one street.
        others = [rooms[(i * every + len(rooms) // 2) % len(rooms)] for i in range(len(frames))]
        results = score(rows, gated, wanted, frames, others, name)
        block = frames[0].protocol.block
        for number, row in enumerate(rows):
            means = [mean_interval(results[number, :, i], block) for i in range(len(MEASURES))]
            mine, frozen, gate = (results[i, :, 0] for i in (number, 0, 1))
            values.append(
                {
                    'set': name,
                    'frames': len(frames),
                    'network': row.name,
                    **{m: asdict(mean) for m, mean in zip(MEASURES, means, strict=True)},
                    'abs_rel_to_frozen': means[0].mean / float(np.nanmean(frozen)),
                    'abs_rel_less_frozen': asdict(paired_difference(mine, frozen, block)),
                    'gate_less_this': asdict(paired_difference(gate, mine, block)),
                    'abs_rel_by_frame': mine.tolist(),
                    'extra_parameters': row.parameters,
                    'trained_parameters': row.trained,
                    'milliseconds': times[number],
                }
            )
    return values


COLUMNS = (
    'network',
    'AbsRel',
    'x frozen',
    'less frozen',
    'gate less this',
    'delta1',
    'border AbsRel',
    'border F1',
    'extra M',
    'ms',
)


def tables(values: list[dict[str, Any]]) -> Iterator[tuple[str, list[tuple[str, ...]]]]:
    """Title and rows of the table of each set, as text."""
    for name in dict.fromkeys(value['set'] for value in values):
        mine = [value for value in values if value['set'] == name]
        yield (
            f'{name}, {mine[0]["frames"]} frames',
            [
                (
                    value['network'],
                    interval(value['abs_rel']),
                    f'{value["abs_rel_to_frozen"]:.3f}',
                    interval(value['abs_rel_less_frozen'], '+.4f'),
                    interval(value['gate_less_this'], '+.4f'),
                    interval(value['delta1'], '.3f'),
                    plain(value['border_abs_rel']['mean'], '.4f'),
                    plain(value['border_f1']['mean'], '.3f'),
                    f'{value["extra_parameters"] / 1e6:.1f}',
                    f'{value["milliseconds"]:.0f}',
                )
                for value in mine
            ],
        )


def interval(value: dict[str, float], spec: str = '.4f') -> str:
    """Mean and 95 % interval."""
    return f'{value["mean"]:{spec}} ({value["low"]:{spec}} to {value["high"]:{spec}})'


def plain(value: float, spec: str) -> str:
    """A number, or nothing."""
    return '' if math.isnan(value) else f'{value:{spec}}'


def markdown(values: list[dict[str, Any]]) -> str:
    """The tables for people who read files."""
    lines = []
    for title, rows in tables(values):
        lines += [f'### {title}', '', _cells(COLUMNS), _cells(['---'] * len(COLUMNS))]
        lines += [*map(_cells, rows), '']
    return '\n'.join(lines)


def _cells(texts: Sequence[str]) -> str:
    return f'| {" | ".join(texts)} |'


def main() -> None:
    """Measure, print and, if asked, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--runs', type=Path, default=Path('runs'), help='work folders of briges')
    parser.add_argument('--data', type=Path, default=Path('../shared/data'))
    parser.add_argument('--every', type=int, default=1, help='only every n-th frame')
    parser.add_argument('--output', type=Path, help='JSON file to write')
    parser.add_argument('--print', type=Path, help='only print the tables of such a JSON file')
    options = parser.parse_args()
    if options.print:
        sys.stdout.write(markdown(json.loads(options.print.read_text())))
        return
    values = measure(options.runs, options.data, options.every)
    if options.output:
        options.output.write_text(json.dumps(values, indent=2) + '\n')
    for title, rows in tables(values):
        table = Table(*COLUMNS, title=f'{title}, affine-invariant, torch float32')
        for row in rows:
            table.add_row(*row)
        Console(width=200).print(table)


if __name__ == '__main__':
    main()
