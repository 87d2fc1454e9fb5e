"""The labelled subset of NYU Depth v2 (Silberman et al., ECCV 2012), with the 40 classes.

The 40 classes are those of Gupta et al. (CVPR 2013): 1 wall, 2 floor, 3 cabinet, 4 bed, 5 chair ...
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from briges_ros.errors import BrigesError
from briges_ros.training.datasets.files import (
    FrameFiles,
    read_labels,
    read_raster,
    read_sample,
    require_files,
)
from briges_ros.training.datasets.sample import Sample, inverse_depth
from briges_ros.training.datasets.splits import check_split

NYU_BLOCK = 60  # frames; neighbours share a scene, so whole blocks are held out
NYU_HELD_OUT_EVERY = 8  # blocks 7, 15, 23: frames 420-479, 900-959 and 1380-1439
NYU_MARGIN = 6  # frames on either side of a held-out block that are not used at all
NYU_REST = 39  # what the label files give both 'other prop' and pixels nobody labelled


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
    """``rgb/NNNN.jpg``, ``depth/NNNN.png`` (8 bit, 0..10 m) and, if there, ``labels40/NNNN.png``.

    Labels: classes 1..39 of the 40; 0 = unlabelled or 'other prop', which the files do not tell
    apart.
    """

    sharp = True

    def __init__(self, root: Path, split: str) -> None:
        check_split(split)
        self.root = Path(root)
        names = sorted(path.stem for path in (self.root / 'rgb').glob('*.jpg'))
        if not names:
            raise BrigesError(f'{self.root}/rgb holds no frames; pass the folder of the NYUv2 data')
        odd = [name for name in names if not name.isdecimal()]
        if odd:
            raise BrigesError(f'{self.root}/rgb/{odd[0]}.jpg: not named by its frame number')
        self.names = [name for name in names if nyu_split(int(name)) == split]
        if not self.names:
            raise BrigesError(
                f'{self.root}/rgb: none of its {len(names)} frames has a number of the split '
                f'{split!r} (held out: the last {NYU_BLOCK} of every '
                f'{NYU_BLOCK * NYU_HELD_OUT_EVERY})'
            )
        labels = self.root / 'labels40'
        self._frames = [
            FrameFiles(
                f'nyuv2/{name}',
                self.root / 'rgb' / f'{name}.jpg',
                self.root / 'depth' / f'{name}.png',
                labels / f'{name}.png' if labels.is_dir() else None,
            )
            for name in self.names
        ]
        require_files(self._frames)

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> Sample:
        return read_sample(self._frames[index], _read_inverse, _read_classes)


def _read_inverse(path: Path) -> NDArray[np.float32]:
    steps = read_raster(path, np.uint8)
    depth = (steps.astype(np.float32) + 0.5) * (10.0 / 255.0)
    # The ends of the 8-bit range are clipped values, not measurements.
    depth[(steps == 0) | (steps == 255)] = np.nan
    return inverse_depth(depth)


def _read_classes(path: Path) -> NDArray[np.uint8]:
    # The files count from 0 = wall, and their last number stands for two things at once.
    values = read_labels(path)
    return np.where(values >= NYU_REST, 0, values + 1).astype(np.uint8)
