"""Training and evaluation frames: an RGB image and the inverse depth known for it.

Every data set yields `Sample`s, knows its own split (frames that score never train) and says
whether its labels are `sharp`. One module a layout; docs/datasets.md describes them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from briges_ros.errors import BrigesError
from briges_ros.training.datasets.files import read_rgb
from briges_ros.training.datasets.folder import FolderFrames
from briges_ros.training.datasets.hypersim import Hypersim
from briges_ros.training.datasets.kitti import (
    KITTI_TRAINING_FRAMES,
    KittiDepth,
    KittiDrive,
    project_inverse,
    saturated_sky,
)
from briges_ros.training.datasets.nyuv2 import (
    NYU_BLOCK,
    NYU_HELD_OUT_EVERY,
    NYU_MARGIN,
    NyuV2,
    nyu_split,
)
from briges_ros.training.datasets.sample import Dataset, Sample, frames_sha256
from briges_ros.training.datasets.tartanair import TartanAir
from briges_ros.training.datasets.virtual_kitti2 import VirtualKitti2

__all__ = [
    'DATASETS',
    'KITTI_TRAINING_FRAMES',
    'NYU_BLOCK',
    'NYU_HELD_OUT_EVERY',
    'NYU_MARGIN',
    'Dataset',
    'FolderFrames',
    'Hypersim',
    'KittiDepth',
    'KittiDrive',
    'NyuV2',
    'Sample',
    'TartanAir',
    'VirtualKitti2',
    'frames_sha256',
    'nyu_split',
    'open_dataset',
    'project_inverse',
    'read_rgb',
    'saturated_sky',
]

DATASETS: dict[str, Callable[[Path, str], Dataset]] = {
    'folder': FolderFrames,
    'hypersim': Hypersim,
    'kitti_depth': KittiDepth,
    'kitti_drive': KittiDrive,
    'nyuv2': NyuV2,
    'tartanair': TartanAir,
    'virtual_kitti2': VirtualKitti2,
}


def open_dataset(kind: str, root: Path, split: str = 'train') -> Dataset:
    """Open the data set in a folder.

    Args:
        kind: one of `DATASETS`.
        root: its folder.
        split: 'train' or 'held_out'.

    Raises:
        BrigesError: an unknown kind or split, no such folder, no frames in the split, or a frame
            without its depth.
    """
    if kind not in DATASETS:
        raise BrigesError(f'no data set kind {kind!r}; choose from {", ".join(DATASETS)}')
    if not Path(root).is_dir():
        raise BrigesError(f'{root}: no such folder; pass the folder of the {kind} data')
    return DATASETS[kind](Path(root), split)
