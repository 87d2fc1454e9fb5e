"""KITTI (Geiger et al., IJRR 2013): a drive with its LiDAR, and the depth-prediction benchmark."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from briges_ros.errors import BrigesError
from briges_ros.training.datasets.files import (
    FrameFiles,
    read_array,
    read_raster,
    read_rgb,
    read_sample,
    require_files,
)
from briges_ros.training.datasets.sample import Sample, inverse_depth
from briges_ros.training.datasets.splits import check_split, read_list, split_list

KITTI_TRAINING_FRAMES = 30
BENCHMARK_FOLDERS = {'train': 'train', 'held_out': 'val'}
CAMERAS = {'l': 'image_02', 'r': 'image_03'}


class KittiDrive:
    """A KITTI drive with its LiDAR: ``image/*.jpg``, ``lidar/*.npy``, ``calibration.json``."""

    sharp = False

    def __init__(self, root: Path, split: str) -> None:
        check_split(split)
        self.root = Path(root)
        paths = sorted((self.root / 'image').glob('*.jpg'))
        if not paths:
            raise BrigesError(f'{self.root}/image holds no frames; pass the folder of the drive')
        train = paths[:KITTI_TRAINING_FRAMES]
        self.paths = train if split == 'train' else paths[KITTI_TRAINING_FRAMES:]
        if not self.paths:
            raise BrigesError(
                f'{self.root}/image holds {len(paths)} frames, of which the first '
                f'{KITTI_TRAINING_FRAMES} train: none is left for {split!r}'
            )
        for path in self.paths:
            if not self._lidar(path).is_file():
                raise BrigesError(f'{self._lidar(path)} is missing: the LiDAR points of {path}')
        calibration = self.root / 'calibration.json'
        try:
            values = json.loads(calibration.read_text())
            self.K = np.array(values['K'], float).reshape(3, 3)
            self.T_camera_lidar = np.array(values['T_camera_lidar'], float).reshape(4, 4)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BrigesError(
                f'{calibration}: not a calibration with K (3 x 3) and T_camera_lidar (4 x 4) '
                f'({error!r})'
            ) from error

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Sample:
        path = self.paths[index]
        image = read_rgb(path)
        points = _read_points(self._lidar(path))
        xyz = points @ self.T_camera_lidar[:3, :3].T + self.T_camera_lidar[:3, 3]
        inverse = project_inverse(xyz, self.K, image.shape[1], image.shape[0])
        inverse[saturated_sky(image, np.isfinite(inverse))] = 0.0
        return Sample(f'kitti/{path.stem}', image, inverse)

    def _lidar(self, image: Path) -> Path:
        return self.root / 'lidar' / f'{image.stem}.npy'


class KittiDepth:
    """The KITTI depth-prediction benchmark, laid out as its archives unpack.

    Depth: ``DRIVE/proj_depth/groundtruth/image_02/NNNNNNNNNN.png`` under the root, ``train/`` or
    ``val/``: 16 bit, metres = value / 256, 0 = unknown. Images: the raw data,
    ``DATE/DRIVE/image_02/data/NNNNNNNNNN.png`` (or .jpg) under the root. DRIVE is
    ``YYYY_MM_DD_drive_NNNN_sync``.

    Split: ``splits/train.txt`` and ``splits/held_out.txt`` in one of the usual forms (see
    `listed_frames`), or else the benchmark's own: ``train/`` trains, ``val/`` is held out. The two
    overlap, so a drive of which any frame is held out never trains.
    """

    sharp = False

    def __init__(self, root: Path, split: str) -> None:
        check_split(split)
        self.root = Path(root)
        pairs = self._pairs(split)
        if not pairs:
            folder = self.root / BENCHMARK_FOLDERS[split]
            raise BrigesError(
                f'neither {split_list(self.root, split)} nor '
                f'{folder}/DRIVE/proj_depth/groundtruth/image_02/*.png is there; '
                'pass the folder of the KITTI depth data'
            )
        if split == 'train':
            held_out = {_drive(image) for image, _ in self._pairs('held_out')}
            pairs = [pair for pair in pairs if _drive(pair[0]) not in held_out]
            if not pairs:
                raise BrigesError(f'{self.root}: all drives that would train are held out')
        self._frames = [self._files(image, depth) for image, depth in pairs]
        require_files(self._frames)
        self.names = [frame.name for frame in self._frames]

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> Sample:
        return read_sample(self._frames[index], _read_inverse)

    def _pairs(self, split: str) -> list[tuple[str, str]]:
        path = split_list(self.root, split)
        if path.is_file():
            return listed_frames(path)
        folder = self.root / BENCHMARK_FOLDERS[split]
        depths = sorted(folder.glob('*_sync/proj_depth/groundtruth/image_02/*.png'))
        return [_pair(d.parts[-5], d.parts[-2], d.stem) for d in depths]

    def _files(self, image: str, depth: str) -> FrameFiles:
        image_path = self.root / image
        if not image_path.is_file() and image_path.with_suffix('.jpg').is_file():
            image_path = image_path.with_suffix('.jpg')
        places = [self.root / folder / depth for folder in ('', *BENCHMARK_FOLDERS.values())]
        depth_path = next((place for place in places if place.is_file()), places[0])
        camera, stem = Path(image).parts[-3], Path(image).stem
        return FrameFiles(f'kitti/{_drive(image)}/{camera}/{stem}', image_path, depth_path)


def listed_frames(path: Path) -> list[tuple[str, str]]:
    """Images and depths, relative to the root, of a list in one of the usual forms.

    A line is ``IMAGE DEPTH [FOCAL]`` (DEPTH ``None``: no ground truth, left out), ``IMAGE``, or
    ``DATE/DRIVE NUMBER l|r``: the forms in which the splits of Eigen et al. (NIPS 2014) go round.
    """
    pairs = []
    for line in read_list(path):
        words = line.split()
        if len(words) == 3 and words[2] in CAMERAS and words[1].isdecimal():
            drive = words[0].rstrip('/').split('/')[-1]
            pairs.append(_pair(drive, CAMERAS[words[2]], f'{int(words[1]):010d}'))
            continue
        parts = words[0].split('/')
        if len(parts) != 5 or parts[3] != 'data' or len(words) > 3:
            raise BrigesError(
                f'{path}: cannot make out {line!r}; a line is IMAGE DEPTH, IMAGE, or '
                'DATE/DRIVE NUMBER l (or r), with IMAGE = DATE/DRIVE/image_02/data/NUMBER.png'
            )
        depth = words[1] if len(words) > 1 else _pair(parts[1], parts[2], Path(parts[4]).stem)[1]
        if depth != 'None':
            pairs.append((words[0], depth))
    if not pairs:
        raise BrigesError(f'{path}: no line of it has ground truth')
    return pairs


def _pair(drive: str, camera: str, number: str) -> tuple[str, str]:
    return (
        f'{drive[:10]}/{drive}/{camera}/data/{number}.png',
        f'{drive}/proj_depth/groundtruth/{camera}/{number}.png',
    )


def _drive(image: str) -> str:
    """``YYYY_MM_DD_drive_NNNN_sync`` of an image's path."""
    return image.split('/')[-4]


def _read_inverse(path: Path) -> NDArray[np.float32]:
    return inverse_depth(read_raster(path, np.uint16).astype(np.float32) / 256.0)


def _read_points(path: Path) -> NDArray[np.float64]:
    points = read_array(path)
    if points.shape[1] < 3:
        raise BrigesError(f'{path} holds an array of shape {points.shape}, not (N, 3) points')
    return points[:, :3].astype(np.float64)


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
