"""Ground and obstacles told apart on a street, beside the fixed height that is mostly used.

The alternative is a threshold on the height that follows from the extrinsics alone, as a costmap's
min_obstacle_height or pointcloud_to_laserscan has it. Both get the depth of the LiDAR itself, and
that of the network scaled by 90 % of the LiDAR's points; both are judged at the other 10 %, by
their height over the ground around them in the LiDAR's own cloud. The drive's frames 30 to 49 never
trained. As mounts sag and vehicles nod, both also get a pitch that is wrong.

    python benchmarks/obstacles.py [--data ../shared/data] [--output FILE.json]
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from briges_ros import Anchors, CameraModel, DepthPipeline
from briges_ros.cli.demo_data import DemoData, DemoFrame, load_drive
from briges_ros.obstacles import (
    Ground,
    fit_ground,
    ground_of_base,
    level_camera_pose,
    obstacle_mask,
)
from briges_ros.training.datasets import KITTI_TRAINING_FRAMES

CAMERA_HEIGHT_M = 1.65  # KITTI's own figure
MIN_HEIGHT_M, MAX_HEIGHT_M = 0.2, 2.0
RANGE_M = 20.0
GROUND_M = 0.1  # what lies within this of the ground around it is ground,
OBSTACLE_M = (0.3, 1.8)  # what is this high an obstacle,
OPEN_M = 1.0  # and ground that is farther than this from any obstacle is open
PITCH_ERRORS_DEG = (0.0, 1.5, -1.5)
CELL_M = 2.0
REPEATS = 15

Method = Callable[[np.ndarray, CameraModel, Ground], np.ndarray]


@dataclass(frozen=True)
class Row:
    """Shares over all frames of the scored points within RANGE_M."""

    depth: str
    pitch_error_deg: float
    method: str
    ground_left: float  # of the points of the ground, those taken for obstacles
    open_ground_left: float
    obstacles_lost: float  # of the points of obstacles, those taken for ground


@dataclass(frozen=True)
class Scene:
    """What is known of a frame."""

    depths: dict[str, np.ndarray]
    at: tuple[np.ndarray, np.ndarray]  # rows and columns of the scored points
    ground: np.ndarray  # (N,) bool of them
    open_ground: np.ndarray
    obstacle: np.ndarray


def fixed_height(depth: np.ndarray, camera: CameraModel, expected: Ground) -> np.ndarray:
    """The height over the plane that the extrinsics give."""
    return obstacle_mask(depth, camera, expected, MIN_HEIGHT_M, MAX_HEIGHT_M)


def fitted(depth: np.ndarray, camera: CameraModel, expected: Ground) -> np.ndarray:
    """The height over the plane fitted to the frame, with its own noise."""
    ground = fit_ground(depth, camera, expected)
    return obstacle_mask(depth, camera, ground, MIN_HEIGHT_M, MAX_HEIGHT_M)


METHODS: dict[str, Method] = {'fixed height': fixed_height, 'fitted ground': fitted}


def heights(points: np.ndarray, all_points: np.ndarray) -> np.ndarray:
    """Heights of (N, 3) points over the ground around them; NaN where there is none around.

    In the LiDAR's frame, from its own points: a plane fitted to the lowest, and on top of that the
    tenth percentile in cells, medians of 3 x 3. It knows nothing of images.
    """
    x, y, z = all_points.T
    design = np.column_stack([x, y, np.ones_like(x)])
    low = (z < -1.3) & (z > -2.1) & (np.hypot(x, y) < 45)  # the LiDAR is 1.73 m over the road
    for _ in range(8):
        plane = np.linalg.lstsq(design[low], z[low], rcond=None)[0]
        over = z - design @ plane
        low = (over > -0.3) & (over < 0.08) & (np.hypot(x, y) < 45)
    cells: dict[tuple[int, int], list[float]] = defaultdict(list)
    for cell, height in zip(cells_of(all_points), over, strict=True):
        if abs(height) < 0.35:
            cells[cell].append(height)
    floor = {cell: np.percentile(values, 10) for cell, values in cells.items() if len(values) >= 5}
    result = points[:, 2] - points[:, :2] @ plane[:2] - plane[2]
    for index, (i, j) in enumerate(cells_of(points)):
        around = [
            floor[i + a, j + b] for a in (-1, 0, 1) for b in (-1, 0, 1) if (i + a, j + b) in floor
        ]
        result[index] -= np.median(around) if around else np.nan
    return result


def cells_of(points: np.ndarray) -> list[tuple[int, int]]:
    """The cells on the ground that points lie in."""
    return list(map(tuple, np.floor(points[:, :2] / CELL_M).astype(int).tolist()))


def distance_to(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Distance on the ground from (N, 3) points to the nearest of others, within 50 m, metres."""
    side = 1000
    free = np.ones((side, side), np.uint8)

    def pixel(points: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(np.clip(points[:, :2] * 10 + side // 2, 0, side - 1).astype(int).T)

    free[pixel(others)] = 0
    return cv2.distanceTransform(free, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[pixel(points)] / 10


def scene_of(pipeline: DepthPipeline, drive: DemoData, frame: DemoFrame) -> Scene:
    """Depth by LiDAR and by the network, and the truth at the points held back."""
    camera, T = drive.camera, drive.T_camera_sensor
    anchors = Anchors.from_points(frame.points, camera, T)
    truth = frame.truth
    lidar = np.full((camera.height, camera.width), np.nan, np.float32)
    for part in (anchors, truth):
        lidar[pixels_of(part)] = part.depth
    into_lidar = np.linalg.inv(T)
    points, seen = (points_of(part, camera, into_lidar) for part in (truth, anchors))
    height = heights(points, frame.points)
    seen_height = heights(seen, frame.points)
    standing = seen[(seen_height > OBSTACLE_M[0]) & (seen_height < OBSTACLE_M[1])]
    near = np.hypot(points[:, 0], points[:, 1]) < RANGE_M
    ground = near & (np.abs(height) < GROUND_M)
    return Scene(
        {'LiDAR': lidar, 'network': pipeline(frame.image, camera, anchors).depth},
        pixels_of(truth),
        ground,
        ground & (distance_to(points, standing) > OPEN_M),
        near & (height > OBSTACLE_M[0]) & (height < OBSTACLE_M[1]),
    )


def pixels_of(anchors: Anchors) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns."""
    return np.rint(anchors.v).astype(int), np.rint(anchors.u).astype(int)


def points_of(anchors: Anchors, camera: CameraModel, into_lidar: np.ndarray) -> np.ndarray:
    """Anchors as (N, 3) points of the LiDAR's frame (images without distortion)."""
    x = (anchors.u - camera.cx) / camera.fx
    y = (anchors.v - camera.cy) / camera.fy
    xyz = np.column_stack([x, y, np.ones_like(x)]) * anchors.depth[:, None]
    return xyz @ into_lidar[:3, :3].T + into_lidar[:3, 3]


def measure(scenes: list[Scene], camera: CameraModel) -> list[Row]:
    """Score both methods on both kinds of depth with each error of pitch."""
    rows = []
    for name in scenes[0].depths:
        for error in PITCH_ERRORS_DEG:
            expected = ground_of_base(level_camera_pose(CAMERA_HEIGHT_M, np.radians(error)))
            for method, find in METHODS.items():
                masks = [find(scene.depths[name], camera, expected)[scene.at] for scene in scenes]
                left, open_left, lost = (
                    np.concatenate(
                        [mask[getattr(s, part)] for mask, s in zip(masks, scenes, strict=True)]
                    )
                    for part in ('ground', 'open_ground', 'obstacle')
                )
                rows.append(
                    Row(name, error, method, left.mean(), open_left.mean(), 1 - lost.mean())
                )
    return rows


def milliseconds(scene: Scene, camera: CameraModel) -> dict[str, float]:
    """Best time of both methods on a dense frame of the drive, in turns."""
    expected = ground_of_base(level_camera_pose(CAMERA_HEIGHT_M, 0.0))
    best = dict.fromkeys(METHODS, np.inf)
    for _ in range(REPEATS):
        for method, find in METHODS.items():
            begin = time.perf_counter()
            find(scene.depths['network'], camera, expected)
            best[method] = min(best[method], (time.perf_counter() - begin) * 1e3)
    return best


def main() -> None:
    """Measure, print and, if asked, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--model', default='compact', help='bundle: a name or a folder')
    parser.add_argument('--backend', default='auto')
    parser.add_argument('--data', type=Path, default=Path('../shared/data'))
    parser.add_argument('--output', type=Path, help='JSON file to write')
    options = parser.parse_args()
    cv2.setNumThreads(1)
    pipeline = DepthPipeline.load(options.model, options.backend)
    drive = load_drive(options.data / 'kitti_drive')
    scenes = [
        scene_of(pipeline, drive, frame)
        for frame in track(drive.frames[KITTI_TRAINING_FRAMES:], 'drive, unseen frames')
    ]
    rows = measure(scenes, drive.camera)
    times = milliseconds(scenes[0], drive.camera)
    counts = {
        part: int(sum(getattr(scene, part).sum() for scene in scenes))
        for part in ('ground', 'open_ground', 'obstacle')
    }
    table = Table(
        title=f'Points within {RANGE_M:g} m of {len(scenes)} frames: {counts["ground"]} of ground '
        f'({counts["open_ground"]} of it over {OPEN_M:g} m from obstacles), '
        f'{counts["obstacle"]} of obstacles'
    )
    for column in ('depth', 'pitch off', 'method', 'ground left in', 'open', 'obstacles lost'):
        table.add_column(column)
    for row in rows:
        table.add_row(
            row.depth,
            f'{row.pitch_error_deg:g} deg',
            row.method,
            f'{row.ground_left:.1%}',
            f'{row.open_ground_left:.1%}',
            f'{row.obstacles_lost:.2%}',
        )
    console = Console()
    console.print(table)
    fixed, ours = times.values()
    console.print(
        f'{drive.camera.width} x {drive.camera.height} on one core: {ours:.1f} ms, fixed height '
        f'{fixed:.1f} ms: {ours / fixed:.1f} times'
    )
    if options.output:
        result = {'rows': [asdict(row) for row in rows], 'points': counts, 'milliseconds': times}
        options.output.write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__':
    main()
