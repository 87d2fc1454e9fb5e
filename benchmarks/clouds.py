"""Speed of what is made of a depth image for navigation, at 640 x 480 on one core.

Each step beside the straightforward way to the same result: np.unique for voxels, a laser scan by
column minima of a cloud moved to the base frame (as pointcloud_to_laserscan does, in NumPy).

    OMP_NUM_THREADS=1 python benchmarks/clouds.py [--data ../shared/data]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

from briges_ros import Anchors, CameraModel, DepthPipeline
from briges_ros.cli.demo_data import load_drive
from briges_ros.obstacles import fit_ground, ground_of_base, level_camera_pose, obstacle_mask
from briges_ros.point_cloud import clearing_points, organised_points, pack_points, voxel_filter
from briges_ros.scan import laser_scan

FRAME = 40
WIDTH, HEIGHT = 640, 480
VOXEL_M = 0.05
RANGE_M = 20.0
SCAN_RANGE_M = 10.0
MOUNT = level_camera_pose(1.65, 0.0)
REPEATS = 25


def street(data: Path) -> tuple[np.ndarray, np.ndarray, CameraModel]:
    """A frame of the drive by the compact network: the middle of it, at the size of a webcam."""
    drive = load_drive(data / 'kitti_drive')
    frame = drive.frames[FRAME]
    anchors = Anchors.from_points(frame.points, drive.camera, drive.T_camera_sensor)
    result = DepthPipeline.load('compact')(frame.image, drive.camera, anchors)
    side = drive.camera.height * WIDTH // HEIGHT
    left = (drive.camera.width - side) // 2
    K = drive.camera.K.copy()
    K[0, 2] -= left
    camera = CameraModel(side, drive.camera.height, K).scaled(WIDTH, HEIGHT)
    part = slice(left, left + side)
    size, nearest = (WIDTH, HEIGHT), cv2.INTER_NEAREST
    depth = cv2.resize(result.depth[:, part], size, interpolation=nearest)
    return depth, cv2.resize(frame.image[:, part], size), camera


def finite(depth: np.ndarray, camera: CameraModel) -> np.ndarray:
    """The known points within RANGE_M, (N, 3)."""
    points = organised_points(depth, camera, max_range=RANGE_M).reshape(-1, 3)
    return points[np.isfinite(points[:, 2])]


def unique_voxels(points: np.ndarray) -> np.ndarray:
    """The first point of each voxel, by sorting."""
    cells = np.floor(points / VOXEL_M).astype(np.int64)
    return np.unique(cells @ np.array([1 << 42, 1 << 21, 1]), return_index=True)[1]


def cloud_to_scan(depth: np.ndarray, camera: CameraModel) -> np.ndarray:
    """The nearest point of each direction between two heights of the base frame."""
    points = organised_points(depth, camera).reshape(-1, 3) @ MOUNT[:3, :3].T + MOUNT[:3, 3]
    points = points[(points[:, 2] > 0.2) & (points[:, 2] < 2.0)]
    distance = np.hypot(points[:, 0], points[:, 1])
    beam = ((np.arctan2(points[:, 1], points[:, 0]) + np.pi) * camera.fx / 2).astype(int)
    ranges = np.full(int(np.pi * camera.fx) + 1, np.inf)
    near = distance < SCAN_RANGE_M
    np.minimum.at(ranges, beam[near], distance[near])
    return ranges


def main() -> None:
    """Measure in turns, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--data', type=Path, default=Path('../shared/data'))
    cv2.setNumThreads(1)
    depth, image, camera = street(parser.parse_args().data)
    points = finite(depth, camera)
    chosen = voxel_filter(points, VOXEL_M)
    assert np.array_equal(chosen, np.sort(unique_voxels(points)))
    expected = ground_of_base(MOUNT)
    ground = fit_ground(depth, camera, expected)
    mask = obstacle_mask(depth, camera, ground, 0.2, 2.0)
    steps: dict[str, Callable[[], object]] = {
        'voxels': lambda: voxel_filter(points, VOXEL_M),
        'voxels by np.unique': lambda: unique_voxels(points),
        'ground fitted': lambda: fit_ground(depth, camera, expected),
        'obstacles': lambda: obstacle_mask(depth, camera, ground, 0.2, 2.0),
        'scan of them': lambda: laser_scan(depth, camera, mask, MOUNT, 0.1, SCAN_RANGE_M, 2.0),
        'scan of a cloud': lambda: cloud_to_scan(depth, camera),
        'clearing': lambda: clearing_points(depth, camera, 6.0, VOXEL_M),
        'organised xyzrgb': lambda: pack_points(organised_points(depth, camera), image),
    }
    best = dict.fromkeys(steps, np.inf)
    for _ in range(REPEATS):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            best[name] = min(best[name], (time.perf_counter() - begin) * 1e3)
    table = Table(title=f'{len(points)} points in {len(chosen)} voxels of {VOXEL_M * 100:g} cm')
    table.add_column('step')
    table.add_column('ms')
    for name, milliseconds in best.items():
        table.add_row(name, f'{milliseconds:.1f}')
    console = Console()
    console.print(table)
    console.print(f'np.unique / voxels: {best["voxels by np.unique"] / best["voxels"]:.1f}')
    console.print(f'scan of a cloud / scan: {best["scan of a cloud"] / best["scan of them"]:.1f}')


if __name__ == '__main__':
    main()
