"""`briges demo`: the whole product on real frames, over real DDS, and pictures to look at."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from briges_ros.alignment.anchors import Anchors
from briges_ros.cli.demo_data import DemoData, load_drive, load_picking_bin
from briges_ros.cli.pictures import draw_anchors, preview, write_image, write_png
from briges_ros.depth_image import to_millimetres
from briges_ros.errors import BrigesError
from briges_ros.evaluation.metrics import depth_metrics
from briges_ros.inference.bundle import ModelBundle
from briges_ros.point_cloud import organised_points, write_ply

if TYPE_CHECKING:
    from briges_ros.ros.playback import Outputs, PlayFrame

RATE_HZ = 10.0
STAGES = ('preprocess', 'inference', 'postprocess', 'align', 'publish')
FIRST_STAMP_NS = 1_000_000_000
ENVIRONMENT = 'ROS 2 is not in the environment; run: make demo (or source install/local_setup.bash)'


def run(folder: Path | None, output: Path, model: str, backend: str) -> None:
    """Play the data through the node and leave the results in a folder.

    Raises:
        BrigesError: ROS, the data or the model is missing, or the node fails.
    """
    console = Console()
    _use_big_message_profile()
    try:
        from briges_ros.ros.playback import play_through_node
    except ImportError as error:
        raise BrigesError(f'{ENVIRONMENT} ({error})') from error
    ModelBundle.load(model)  # fail here, with a clear line, rather than in the node
    data = load_drive(folder) if folder else load_picking_bin()
    output.mkdir(parents=True, exist_ok=True)
    console.print(
        f'{data.name}: {len(data.frames)} frames at {RATE_HZ:g} Hz through the node, over DDS'
    )
    frames = _play_frames(data)
    with Progress(
        TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), console=console
    ) as progress:
        task = progress.add_task('starting', total=len(frames))
        report = play_through_node(
            frames,
            _node_arguments(data, model, backend),
            output / 'node.log',
            RATE_HZ,
            lambda done, what: progress.update(task, completed=done, description=what),
        )
    answers = [report.outputs[frame.stamp_ns] for frame in frames]
    tally = _tally(data, answers)
    last = max(index for index, answer in enumerate(answers) if answer.depth is not None)
    _write_pictures(data, last, answers[last], output)
    _write_table(_rows(tally, len(frames), report.seconds), console, data.name, output)
    console.print(f'results in {output}/: preview.png, depth.png, depth.npy, cloud.ply, table.md')
    if report.exit_code != 0:
        raise BrigesError(f'the node ended with code {report.exit_code}; see {output}/node.log')
    if not tally.states['METRIC']:
        raise BrigesError(
            f'no frame became metric ({tally.reason}); this is not what the demo should show: '
            f'see {output}/node.log'
        )


def _play_frames(data: DemoData) -> list[PlayFrame]:
    from briges_ros.ros.playback import PlayFrame

    return [
        PlayFrame(
            FIRST_STAMP_NS + round(index * 1e9 / RATE_HZ), frame.image, data.camera, frame.points
        )
        for index, frame in enumerate(data.frames)
    ]


def _node_arguments(data: DemoData, model: str, backend: str) -> list[str]:
    numbers = [*data.T_camera_sensor[:3, 3], *quaternion(data.T_camera_sensor[:3, :3])]
    extrinsics = ', '.join(f'{value:.9f}' for value in numbers)
    values = {'model': model, 'backend': backend, 'sparse.extrinsics': f'[{extrinsics}]'}
    return [part for name, value in values.items() for part in ('-p', f'{name}:={value}')]


def quaternion(R: NDArray[np.float64]) -> NDArray[np.float64]:
    """(x, y, z, w) of a rotation matrix.

    From its rotation vector (OpenCV), which stays accurate near half a turn.
    """
    vector = cv2.Rodrigues(R)[0].ravel()
    angle = float(np.linalg.norm(vector))
    axis = vector / angle if angle > 0 else vector
    return np.append(axis * np.sin(angle / 2), np.cos(angle / 2))


def _use_big_message_profile() -> None:
    """Point Fast DDS to the shipped profile, unless the user chose one: images need it."""
    folders = [Path(__file__).resolve().parents[2] / 'config']
    prefixes = os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep)
    folders += [Path(prefix) / 'share' / 'briges_ros' / 'config' for prefix in prefixes if prefix]
    for folder in folders:
        profile = folder / 'fastdds_large_messages.xml'
        if profile.is_file():
            for name in ('FASTRTPS_DEFAULT_PROFILES_FILE', 'FASTDDS_DEFAULT_PROFILES_FILE'):
                os.environ.setdefault(name, str(profile))
            return


@dataclass
class _Tally:
    """What the frames that came back add up to."""

    latency_ms: list[float] = field(default_factory=list)
    abs_rel: list[float] = field(default_factory=list)
    delta1: list[float] = field(default_factory=list)
    coverage: list[float] = field(default_factory=list)
    stages_ms: dict[str, list[float]] = field(default_factory=lambda: {s: [] for s in STAGES})
    states: Counter[str] = field(default_factory=Counter)
    network: str = '-'
    reason: str = '-'


def _tally(data: DemoData, answers: list[Outputs]) -> _Tally:
    tally = _Tally()
    for frame, answer in zip(data.frames, answers, strict=True):
        if answer.depth is None or answer.received is None or answer.sent is None:
            continue
        tally.latency_ms.append((answer.received - answer.sent) * 1e3)
        depth, truth = _depth_of(answer.depth), frame.truth
        at_truth = depth[np.rint(truth.v).astype(int), np.rint(truth.u).astype(int)]
        metrics = depth_metrics(at_truth, truth.depth)
        if metrics.pixels:
            tally.abs_rel.append(metrics.abs_rel)
            tally.delta1.append(metrics.delta1)
        tally.coverage.append(metrics.pixels / len(truth))
        status = answer.status
        if status is None:
            continue
        names = ('METRIC', 'HELD', 'PRIOR', 'RELATIVE')
        tally.states[next(n for n in names if getattr(status, n) == status.state)] += 1
        tally.network = f'{status.model} on {status.engine} ({status.precision})'
        tally.reason = status.reason
        for stage in STAGES:
            tally.stages_ms[stage].append(getattr(status, f'{stage}_ms'))
    return tally


def _depth_of(message: Any) -> NDArray[np.float32]:
    return np.frombuffer(message.data, np.float32).reshape(message.height, message.width)


def _rows(tally: _Tally, played: int, seconds: float) -> list[tuple[str, str]]:
    """The table: what, value."""
    latency, came = tally.latency_ms, len(tally.latency_ms)
    stages = [f'{name} {np.median(ms):.0f}' for name, ms in tally.stages_ms.items() if ms]
    return [
        ('network', tally.network),
        ('frames played, answered', f'{played} at {RATE_HZ:g} Hz, {came} (the newest wins)'),
        ('output rate', f'{came / seconds:.1f} Hz'),
        (
            'latency, image sent to depth received',
            f'median {np.median(latency):.0f} ms, 90 % under {np.percentile(latency, 90):.0f} ms',
        ),
        ('median ms by stage', ', '.join(stages) or '-'),
        ('scale', ', '.join(f'{name} {count}' for name, count in tally.states.items()) or '-'),
        ('AbsRel on held-back depth, median over frames', _median(tally.abs_rel)),
        ('delta1 on held-back depth, median over frames', _median(tally.delta1)),
        ('held-back pixels with a depth', f'{100 * np.mean(tally.coverage):.1f} %'),
    ]


def _median(values: list[float]) -> str:
    return f'{np.median(values):.3f}' if values else 'no metres'


def _write_pictures(data: DemoData, index: int, answer: Outputs, output: Path) -> None:
    """Depth, cloud and preview of one frame, from the messages that came over DDS."""
    frame = data.frames[index]
    depth = _depth_of(answer.depth)
    np.save(output / 'depth.npy', depth)
    write_image(str(output / 'depth.png'), to_millimetres(depth))
    write_ply(output / 'cloud.ply', organised_points(depth, data.camera), frame.image)
    anchors = Anchors.from_points(frame.points, data.camera, data.T_camera_sensor)
    shown = draw_anchors(frame.image, anchors)
    reason = answer.status.reason if answer.status is not None else ''
    picture = preview(shown, depth, depth, f'{data.name}: {reason}')
    write_png(str(output / 'preview.png'), picture)


def _write_table(rows: list[tuple[str, str]], console: Console, title: str, output: Path) -> None:
    table = Table(title=title, show_header=False)
    lines = [f'| {title} | |', '| --- | --- |']
    for name, value in rows:
        table.add_row(name, value)
        lines.append(f'| {name} | {value} |')
    console.print(table)
    (output / 'table.md').write_text('\n'.join(lines) + '\n')
    (output / 'table.json').write_text(json.dumps(dict(rows), indent=2) + '\n')
