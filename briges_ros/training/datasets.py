"""Training frames: an RGB image and the inverse depth known for it.

Every data set yields `Sample`s and knows its own split; frames that score never train.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from briges_ros.errors import BrigesError

NYU_BLOCK = 60  # frames; neighbours share a scene, so whole blocks are held out
NYU_HELD_OUT_EVERY = 8  # blocks 7, 15, 23: frames 420-479, 900-959 and 1380-1439
NYU_MARGIN = 6  # frames on either side of a held-out block that are not used at all
KITTI_TRAINING_FRAMES = 30


@dataclass(frozen=True, eq=False)
class Sample:
    """One frame.

    Attributes:
        name: for logs and reports.
        image: (H, W, 3) uint8 RGB.
        inverse: (H, W) float32, 1/z in 1/m along optical Z; 0 = infinitely far (sky), NaN =
            unknown.
    """

    name: str
    image: NDArray[np.uint8]
    inverse: NDArray[np.float32]


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB."""
    bgr = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if bgr is None:
        raise BrigesError(f'{path}: missing or not an image; check the data folder')
    return np.ascontiguousarray(bgr[:, :, ::-1]).astype(np.uint8, copy=False)


def nyu_split(number: int) -> str:
    """'train', 'held_out' or 'unused' (next to a held-out block) for a frame number of NYUv2."""
    period = NYU_BLOCK * NYU_HELD_OUT_EVERY
    start = period - NYU_BLOCK  # where in each period the held-out block begins
    phase = number % period
    if phase >= start:
        return 'held_out'
    if phase >= start - NYU_MARGIN or (phase < NYU_MARGIN and number >= period):
        return 'unused'
    return 'train'


class NyuV2:
    """The labelled NYUv2 frames: ``rgb/NNNN.jpg``, ``depth/NNNN.png`` (8 bit, 0..10 m)."""

    def __init__(self, root: Path, split: str) -> None:
        self.root = Path(root)
        names = sorted(path.stem for path in (self.root / 'rgb').glob('*.jpg'))
        if not names:
            raise BrigesError(f'{self.root}/rgb holds no frames; pass the folder of the NYUv2 data')
        self.names = [name for name in names if nyu_split(int(name)) == split]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        name = self.names[index]
        path = self.root / 'depth' / f'{name}.png'
        steps = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if steps is None:
            raise BrigesError(f'{path}: missing or not an image; check the data folder')
        depth = (steps.astype(np.float32) + 0.5) * (10.0 / 255.0)
        # The ends of the 8-bit range are clipped values, not measurements.
        depth[(steps == 0) | (steps == 255)] = np.nan
        return Sample(f'nyuv2/{name}', read_rgb(self.root / 'rgb' / f'{name}.jpg'), 1.0 / depth)


class KittiDrive:
    """A KITTI drive with its LiDAR: ``image/*.jpg``, ``lidar/*.npy``, ``calibration.json``."""

    def __init__(self, root: Path, split: str) -> None:
        self.root = Path(root)
        paths = sorted((self.root / 'image').glob('*.jpg'))
        if not paths:
            raise BrigesError(f'{self.root}/image holds no frames; pass the folder of the drive')
        train = paths[:KITTI_TRAINING_FRAMES]
        self.paths = train if split == 'train' else paths[KITTI_TRAINING_FRAMES:]
        calibration = json.loads((self.root / 'calibration.json').read_text())
        self.K = np.array(calibration['K'])
        self.T_camera_lidar = np.array(calibration['T_camera_lidar'])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Sample:
        path = self.paths[index]
        image = read_rgb(path)
        points = np.load(self.root / 'lidar' / f'{path.stem}.npy')[:, :3].astype(np.float64)
        xyz = points @ self.T_camera_lidar[:3, :3].T + self.T_camera_lidar[:3, 3]
        inverse = project_inverse(xyz, self.K, image.shape[1], image.shape[0])
        inverse[saturated_sky(image, np.isfinite(inverse))] = 0.0
        return Sample(f'kitti/{path.stem}', image, inverse)


def project_inverse(
    xyz: NDArray[np.float64], K: NDArray[np.float64], width: int, height: int
) -> NDArray[np.float32]:
    """Render LiDAR points (N, 3) of the optical frame as (H, W) inverse depth, nearest wins.

    The LiDAR sits above the camera and sees over objects: points that a nearer one within 7 x 11
    pixels hides from the camera are dropped.
    """
    xyz = xyz[xyz[:, 2] > 0.5]
    uv = np.rint(xyz[:, :2] / xyz[:, 2:] * [K[0, 0], K[1, 1]] + [K[0, 2], K[1, 2]]).astype(int)
    inside = (uv[:, 0] >= 0) & (uv[:, 0] < width) & (uv[:, 1] >= 0) & (uv[:, 1] < height)
    uv, inverse = uv[inside], (1.0 / xyz[inside, 2]).astype(np.float32)
    image = np.zeros((height, width), np.float32)
    np.maximum.at(image, (uv[:, 1], uv[:, 0]), inverse)
    nearest = cv2.dilate(image, np.ones((11, 7), np.uint8))
    image[(image == 0) | (image < nearest / 1.15)] = np.nan
    return image


def saturated_sky(image: NDArray[np.uint8], measured: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Burnt-out pixels of the upper half that the LiDAR never hit: sky, infinitely far.

    Without it nothing tells the network about the sky, where LiDAR is silent.
    """
    bright = image.min(axis=2) > 240
    bright[image.shape[0] // 2 :] = False
    near_return = cv2.dilate(measured.astype(np.uint8), np.ones((25, 25), np.uint8)) > 0
    sky = (bright & ~near_return).astype(np.uint8)
    return cv2.erode(sky, np.ones((5, 5), np.uint8)) > 0
