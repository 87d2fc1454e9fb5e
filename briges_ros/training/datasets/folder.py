"""Frames of one's own: the plain folder format of docs/datasets.md."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from briges_ros.errors import BrigesError
from briges_ros.training.datasets.files import (
    FrameFiles,
    read_array,
    read_raster,
    read_sample,
    require_files,
)
from briges_ros.training.datasets.sample import Sample, inverse_depth
from briges_ros.training.datasets.splits import choose

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png')


@dataclass(frozen=True)
class FolderMeta:
    """What ``meta.json`` says.

    Attributes:
        depth_scale: metres = value / depth_scale in PNG files; None where there are none.
        sky_value: the PNG value of the infinitely far; None: there is none.
        sharp: see `Dataset`.
    """

    depth_scale: float | None = None
    sky_value: int | None = None
    sharp: bool = False


class FolderFrames:
    """``rgb/NAME.{jpg,png}``, ``depth/NAME.{png,npy}``, optional ``labels/NAME.png``.

    ``meta.json`` gives `depth_scale` (metres = value / depth_scale, for PNG), `sky_value` (the PNG
    value of the infinitely far, optional) and `sharp` (default false). Depth as .npy is in metres,
    inf = infinitely far. In both, 0 and NaN are unknown. NAME may have folders.
    """

    def __init__(self, root: Path, split: str) -> None:
        self.root = Path(root)
        rgb = self.root / 'rgb'
        images = {
            path.relative_to(rgb).with_suffix('').as_posix(): path
            for path in sorted(rgb.rglob('*'))
            if path.suffix.lower() in IMAGE_SUFFIXES
        }
        if not images:
            raise BrigesError(f'{rgb} holds no frames (*.jpg, *.png); see docs/datasets.md')
        self.names = choose(list(images), self.root, split)
        self._frames = [self._files(name, images[name]) for name in self.names]
        require_files(self._frames)
        self._meta = read_meta(self.root / 'meta.json')
        self.sharp = self._meta.sharp
        png = next((frame.depth for frame in self._frames if frame.depth.suffix == '.png'), None)
        if png is not None and self._meta.depth_scale is None:
            raise BrigesError(
                f'{self.root}/meta.json must give depth_scale (metres = value / depth_scale) '
                f'for {png}'
            )

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> Sample:
        return read_sample(self._frames[index], self._read_inverse)

    def _files(self, name: str, image: Path) -> FrameFiles:
        png, npy = (self.root / 'depth' / f'{name}{suffix}' for suffix in ('.png', '.npy'))
        has_labels = (self.root / 'labels').is_dir()
        labels = self.root / 'labels' / f'{name}.png' if has_labels else None
        return FrameFiles(name, image, npy if npy.is_file() else png, labels)

    def _read_inverse(self, path: Path) -> NDArray[np.float32]:
        if path.suffix == '.npy':
            return inverse_depth(read_array(path))
        assert self._meta.depth_scale is not None  # seen to when the folder was opened
        values = read_raster(path, np.uint16, np.uint8)
        inverse = inverse_depth(values.astype(np.float32) / np.float32(self._meta.depth_scale))
        if self._meta.sky_value is not None:
            inverse[values == self._meta.sky_value] = 0.0
        return inverse


def read_meta(path: Path) -> FolderMeta:
    """Read ``meta.json``, which may be missing and may say more than is asked of it."""
    if not path.is_file():
        return FolderMeta()
    try:
        meta = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise BrigesError(f'{path}: not readable as JSON ({error})') from error
    if not isinstance(meta, dict):
        raise BrigesError(f'{path} must hold an object, {{"depth_scale": 1000}} for instance')
    scale, sky, sharp = meta.get('depth_scale'), meta.get('sky_value'), meta.get('sharp', False)
    if scale is not None and not (type(scale) in (int, float) and scale > 0):
        raise BrigesError(f'{path}: depth_scale must be a positive number, not {scale!r}')
    if sky is not None and type(sky) is not int:
        raise BrigesError(f'{path}: sky_value must be an integer, not {sky!r}')
    if not isinstance(sharp, bool):
        raise BrigesError(f'{path}: sharp must be true or false, not {sharp!r}')
    return FolderMeta(scale, sky, sharp)
