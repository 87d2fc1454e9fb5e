"""`briges evaluate`: how good a model bundle is on frames with known depth."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from typing import Protocol as Interface

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from briges_ros import __version__
from briges_ros.cli.pictures import write_png
from briges_ros.errors import BrigesError
from briges_ros.evaluation.frames import SingleFrames
from briges_ros.evaluation.pictures import comparison
from briges_ros.evaluation.protocol import CROPS, PROTOCOLS, Protocol
from briges_ros.evaluation.report import (
    Comparison,
    compare,
    intervals,
    markdown,
    shown_frames,
    summary,
)
from briges_ros.evaluation.results import (
    MEASURES,
    FrameResult,
    append_result,
    frame_result,
    read_results,
    write_results,
)
from briges_ros.inference.bundle import ModelBundle
from briges_ros.pipeline import DepthPipeline
from briges_ros.training.datasets import Dataset, open_dataset

SETS = ('nyuv2', 'kitti', 'frames', 'folder')


@dataclass(frozen=True)
class EvaluateJob:
    """What the command line asked for; see `briges evaluate --help`."""

    model: str
    data: Path
    set: str
    split: str
    output: Path
    backend: str = 'auto'
    token_budget: int | None = None
    limit: int | None = None
    crop: str | None = None
    max_depth: float | None = None
    resume: bool = True
    against: Path | None = None


@dataclass(frozen=True, eq=False)
class ScoredFrame:
    """A frame with what it is scored by.

    Attributes:
        name: for people.
        image: (H, W, 3) uint8 RGB.
        truth: (H, W) float32 metres, NaN where it does not count.
        labels: (H, W) uint8 ids of regions, or None.
        protocol: how it is scored.
    """

    name: str
    image: NDArray[np.uint8]
    truth: NDArray[np.float32]
    labels: NDArray[np.uint8] | None
    protocol: Protocol


class ScoredFrames(Interface):
    """The frames of a split, read one by one.

    Attributes:
        protocols: all that its frames may have.
    """

    protocols: tuple[Protocol, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> ScoredFrame: ...


class _Samples:
    """Frames of a training data set: one protocol for all."""

    def __init__(self, samples: Dataset, protocol: Protocol) -> None:
        self._samples = samples
        self.protocols: tuple[Protocol, ...] = (protocol,)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> ScoredFrame:
        protocol = self.protocols[0]
        sample = self._samples[index]
        with np.errstate(divide='ignore'):
            truth = protocol.scored_truth(1.0 / sample.inverse)
        return ScoredFrame(sample.name, sample.image, truth, sample.labels, protocol)


class _Singles:
    """Single frames of several data sets: the protocol depends on the sensor."""

    def __init__(self, frames: SingleFrames, by_kind: dict[str, Protocol]) -> None:
        self._frames = frames
        self._by_kind = by_kind
        self.protocols = tuple(by_kind.values())

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> ScoredFrame:
        frame = self._frames[index]
        if frame.kind not in self._by_kind:
            raise BrigesError(
                f'{self._frames.root}/meta.json: frame {frame.name} is of kind {frame.kind!r}; '
                f'known are {", ".join(self._by_kind)}'
            )
        protocol = self._by_kind[frame.kind]
        return ScoredFrame(
            frame.name, frame.image, protocol.scored_truth(frame.depth), None, protocol
        )


def run(job: EvaluateJob) -> None:
    """Score every frame, go on where an interrupted run stopped, and write the report.

    Raises:
        BrigesError: the job makes no sense, data are missing or unreadable, the model does not
            load, or the folder holds results of other settings.
    """
    bundle = ModelBundle.load(job.model)
    frames = open_frames(job, bundle.output)
    chosen = chosen_indices(len(frames), job.limit)
    against = read_results(job.against / 'frames.csv') if job.against else None
    pipeline = DepthPipeline.load(bundle.folder, job.backend, token_budget=job.token_budget)
    settings = _settings(job, frames, pipeline)
    results_file = job.output / 'frames.csv'
    try:
        job.output.mkdir(parents=True, exist_ok=True)
        done = _resumed(job, settings)
        results = _scored(chosen, done, frames, pipeline, results_file)
        block = max(protocol.block for protocol in frames.protocols)
        other = _comparison(results, against, job, block)
        _write_report(job.output, settings, results, block, other, frames, pipeline)
    except OSError as error:
        raise BrigesError(
            f'{job.output} cannot be written ({error}); make room or give another folder with -o'
        ) from error


def open_frames(job: EvaluateJob, network_output: str) -> ScoredFrames:
    """The frames of the job, with the protocol of their set.

    Args:
        job: names set, folder and split, and what differs from the set's protocol.
        network_output: `ModelBundle.output`; decides whether scale and shift are fitted.

    Raises:
        BrigesError: no such set, split or crop, or no frames.
    """
    if job.set not in SETS:
        raise BrigesError(f'no set {job.set!r}; choose from {", ".join(SETS)}')
    if job.crop is not None and job.crop not in CROPS:
        raise BrigesError(f'no crop {job.crop!r}; choose from {", ".join(CROPS)}')

    def protocol(name: str) -> Protocol:
        known = PROTOCOLS[name]
        known = replace(
            known, crop=job.crop or known.crop, max_depth=job.max_depth or known.max_depth
        )
        return known.metric() if network_output == 'metric_depth' else known

    if job.set == 'frames':
        if job.split != 'held_out':
            raise BrigesError(f'the set frames has no split {job.split!r}: none of it ever trains')
        single = SingleFrames(job.data)
        if not len(single):
            raise BrigesError(f'{job.data}/meta.json lists no frames')
        kinds = {kind: protocol(f'frames-{kind}') for kind in ('rgbd', 'lidar')}
        return _Singles(single, kinds)
    kind = job.set
    if kind == 'kitti':
        kind = 'kitti_drive' if (job.data / 'calibration.json').is_file() else 'kitti_depth'
    samples = open_dataset(kind, job.data, job.split)
    return _Samples(samples, protocol(job.set))


def chosen_indices(count: int, limit: int | None) -> list[int]:
    """All frames, or so many spread evenly over them: neighbours tell less."""
    if limit is None or limit >= count:
        return list(range(count))
    return [int(i) for i in np.linspace(0, count - 1, limit).round()]


def _settings(
    job: EvaluateJob, frames: ScoredFrames, pipeline: DepthPipeline
) -> dict[str, str | int]:
    """What the values of a frame depend on, for the report and to know our own results again."""
    protocols = [
        f'{p.name}: {p.min_depth:g} to {p.max_depth:g} m, crop {p.crop}, '
        + ('scale and shift fitted to the truth' if p.alignment == 'affine' else 'metres as given')
        for p in frames.protocols
    ]
    return {
        'model': pipeline.bundle.name,
        'model_sha256': pipeline.bundle.sha256,
        'engine': f'{pipeline.engine.name} {pipeline.engine.precision}',
        'token_budget': pipeline.token_budget,
        'set': job.set,
        'split': job.split,
        'data': str(job.data.resolve()),
        'frames_in_split': len(frames),
        'protocol': '; '.join(protocols),
        'version': __version__,
    }


def _resumed(job: EvaluateJob, settings: dict[str, str | int]) -> dict[int, FrameResult]:
    """The frames that an earlier run with the same settings has done; starts the files."""
    settings_file, results_file = job.output / 'settings.json', job.output / 'frames.csv'
    results: list[FrameResult] = []
    if job.resume and results_file.is_file():
        try:
            before: Any = json.loads(settings_file.read_text())
            differing = [key for key, value in settings.items() if before.get(key) != value]
        except (OSError, ValueError, AttributeError) as error:
            raise BrigesError(
                f'{results_file} does not say what it was made from ({error}); give another folder '
                'with -o, or --no-resume to start over'
            ) from error
        if differing:
            key = differing[0]
            raise BrigesError(
                f'{job.output} holds results of another {key.replace("_", " ")}: '
                f'{before.get(key)}, now {settings[key]}; give another folder with -o, or '
                '--no-resume to start over'
            )
        results = read_results(results_file)
    settings_file.write_text(json.dumps(settings, indent=2) + '\n')
    write_results(results_file, results)  # without a line that was cut short
    return {result.index: result for result in results}


def _scored(
    chosen: Sequence[int],
    done: dict[int, FrameResult],
    frames: ScoredFrames,
    pipeline: DepthPipeline,
    results_file: Path,
) -> list[FrameResult]:
    """Score the chosen frames that are not done yet; each is kept in the file at once."""
    done = dict(done)
    missing = [index for index in chosen if index not in done]
    console = Console(stderr=True)
    if len(missing) < len(chosen):
        console.print(f'{len(chosen) - len(missing)} of {len(chosen)} frames are done already')
    columns = (
        TextColumn('{task.description}'),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(
            'evaluate', total=len(chosen), completed=len(chosen) - len(missing)
        )
        for index in missing:
            frame = frames[index]
            depth = _predicted(frame, pipeline)
            done[index] = frame_result(index, frame.name, depth, frame.truth, frame.labels)
            append_result(results_file, done[index])
            mean = np.mean([done[i].values['abs_rel'] for i in chosen if i in done])
            progress.update(task, advance=1, description=f'AbsRel {mean:.4f}')
    results = [done[index] for index in sorted(done)]
    write_results(results_file, results)
    return [done[index] for index in chosen]


def _predicted(frame: ScoredFrame, pipeline: DepthPipeline) -> NDArray[np.float32]:
    inverse = pipeline(frame.image).relative  # in 1/m if the network is metric
    try:
        return frame.protocol.aligned_depth(inverse, frame.truth)
    except ValueError as error:
        raise BrigesError(
            f'frame {frame.name}: {error}; leave it out, or check its depth and --crop'
        ) from error


def _comparison(
    results: list[FrameResult], against: list[FrameResult] | None, job: EvaluateJob, block: int
) -> Comparison | None:
    if against is None:
        return None
    try:
        return compare(results, against, block, str(job.against))
    except ValueError as error:
        raise BrigesError(
            f'{job.against} and {job.output} have {error}; compare runs on the same data'
        ) from error


def _write_report(
    folder: Path,
    settings: dict[str, str | int],
    results: list[FrameResult],
    block: int,
    other: Comparison | None,
    frames: ScoredFrames,
    pipeline: DepthPipeline,
) -> None:
    means = intervals(results, block)
    (folder / 'summary.json').write_text(
        json.dumps(summary(settings, means, block, other), indent=2) + '\n'
    )
    (folder / 'pictures').mkdir(exist_ok=True)
    for old in (folder / 'pictures').glob('*-[0-9].png'):
        old.unlink()  # of a run with fewer frames
    pictures = {}
    for name, result in shown_frames(results).items():
        frame = frames[result.index]
        title = (
            f'{result.name}   AbsRel {result.values["abs_rel"]:.3f}   '
            f'delta1 {result.values["delta1"]:.3f}'
        )
        picture = comparison(frame.image, frame.truth, _predicted(frame, pipeline), title)
        pictures[name] = f'pictures/{name}.png'
        write_png(str(folder / pictures[name]), picture)
    page = markdown(settings, results, means, block, other, pictures)
    (folder / 'report.md').write_text(page)

    table = Table('measure', 'mean', '95 % interval', title=f'{len(results)} frames')
    for measure in MEASURES:
        mean = means[measure.key]
        if mean.frames:
            table.add_row(measure.title, f'{mean.mean:.4f}', f'{mean.low:.4f} to {mean.high:.4f}')
    console = Console()
    console.print(table)
    console.print(f'{folder / "report.md"}', soft_wrap=True)
