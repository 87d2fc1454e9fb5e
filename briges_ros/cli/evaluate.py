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
    replace_text,
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
    precision: str = 'auto'
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
            load, the folder holds results of other settings, or the run to compare with is not
            of the same frames under the same protocol.
    """
    bundle = ModelBundle.load(job.model)
    frames = open_frames(job, bundle.output)
    chosen = chosen_indices(len(frames), job.limit)
    scored = _scored_settings(job, frames)
    against = _other_run(job.against, scored, chosen) if job.against else None
    pipeline = DepthPipeline.load(
        bundle.folder, job.backend, precision=job.precision, token_budget=job.token_budget
    )
    settings = _settings(scored, pipeline)
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


def _scored_settings(job: EvaluateJob, frames: ScoredFrames) -> dict[str, str | int]:
    """Which frames are scored and how: what two runs have in common that are compared."""
    protocols = [
        f'{p.name}: {p.min_depth:g} to {p.max_depth:g} m, crop {p.crop}, '
        + ('scale and shift fitted to the truth' if p.alignment == 'affine' else 'metres as given')
        for p in frames.protocols
    ]
    return {
        'set': job.set,
        'split': job.split,
        'data': str(job.data.resolve()),
        'frames_in_split': len(frames),
        'limit': 'none' if job.limit is None or job.limit >= len(frames) else job.limit,
        'protocol': '; '.join(protocols),
    }


def _settings(scored: dict[str, str | int], pipeline: DepthPipeline) -> dict[str, str | int]:
    """What was run on what: for the report, and to know our own results again."""
    return {
        'model': pipeline.bundle.name,
        'model_sha256': pipeline.bundle.sha256,
        'engine': f'{pipeline.engine.name} {pipeline.engine.precision}',
        'token_budget': pipeline.token_budget,
        **scored,
        'version': __version__,
    }


def _resumed(job: EvaluateJob, settings: dict[str, str | int]) -> dict[int, FrameResult]:
    """The frames that an earlier run with the same settings has done; starts the files."""
    settings_file, results_file = job.output / 'settings.json', job.output / 'frames.csv'
    results: list[FrameResult] = []
    if job.resume and results_file.is_file():
        try:
            before = _kept_settings(job.output)
        except (OSError, ValueError) as error:
            raise BrigesError(
                f'{results_file} does not say what it was made from ({error}); give another folder '
                'with -o, or --no-resume to start over'
            ) from error
        # Which frames are wanted changes nothing about the values of one.
        differing = [k for k, v in settings.items() if k != 'limit' and before.get(k) != v]
        if differing:
            key = differing[0]
            raise BrigesError(
                f'{job.output} holds results of another {key.replace("_", " ")}: '
                f'{before.get(key)}, now {settings[key]}; give another folder with -o, or '
                '--no-resume to start over'
            )
        results = read_results(results_file)
    replace_text(settings_file, json.dumps(settings, indent=2) + '\n')
    write_results(results_file, results)  # without a line that was cut short
    return {result.index: result for result in results}


def _kept_settings(folder: Path) -> dict[str, Any]:
    """What `settings.json` of a run holds.

    Raises:
        OSError: it cannot be read.
        ValueError: it holds no settings.
    """
    kept = json.loads((folder / 'settings.json').read_text())
    if not isinstance(kept, dict):
        raise ValueError('it holds no names with values')
    return kept


def _other_run(
    folder: Path, scored: dict[str, str | int], chosen: Sequence[int]
) -> list[FrameResult]:
    """The frames of the run to compare with, which must be ours, scored like ours.

    Raises:
        BrigesError: no results, of other settings, or not all of them.
    """
    results = read_results(folder / 'frames.csv')
    try:
        theirs = _kept_settings(folder)
    except (OSError, ValueError) as error:
        raise BrigesError(
            f'{folder}/settings.json does not say what its results were made from ({error}); '
            'evaluate that model again'
        ) from error
    for key, ours in scored.items():
        if theirs.get(key) != ours:
            raise BrigesError(
                f'--against {folder}: {key.replace("_", " ")} is {theirs.get(key, "not known")!r} '
                f'there and {ours!r} here; compare runs on the same frames and protocol'
            )
    missing = set(chosen) - {result.index for result in results}
    if missing:
        raise BrigesError(
            f'--against {folder}: {len(missing)} of its {len(chosen)} frames are missing; '
            'let that run end first (the same command goes on)'
        )
    return results


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
            f'--against {job.against}: {error}; evaluate both runs again on the data as they are'
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
    (folder / 'pictures').mkdir(exist_ok=True)
    pictures = {}
    for name, result in shown_frames(results).items():
        frame = frames[result.index]
        title = (
            f'{result.name}   AbsRel {result.values["abs_rel"]:.3f}   '
            f'delta1 {result.values["delta1"]:.3f}'
        )
        picture = comparison(frame.image, frame.truth, _predicted(frame, pipeline), title)
        pictures[name] = f'pictures/{name}.png'
        partial = folder / f'pictures/{name}.partial.png'  # OpenCV goes by the end of the name
        write_png(str(partial), picture)
        partial.replace(folder / pictures[name])
    values = summary(settings, means, block, other)
    replace_text(folder / 'summary.json', json.dumps(values, indent=2) + '\n')
    page = markdown(settings, results, means, block, other, pictures)
    replace_text(folder / 'report.md', page)
    for picture_file in (folder / 'pictures').glob('*-[0-9].png'):
        if picture_file.stem not in pictures:
            picture_file.unlink()  # of a run with more frames

    table = Table('measure', 'mean', '95 % interval', title=f'{len(results)} frames')
    for measure in MEASURES:
        mean = means[measure.key]
        if mean.frames:
            table.add_row(measure.title, f'{mean.mean:.4f}', f'{mean.low:.4f} to {mean.high:.4f}')
    console = Console()
    console.print(table)
    console.print(f'{folder / "report.md"}', soft_wrap=True)
