"""Virtual KITTI 2 (Cabon et al., 2020): rendered drives with exact depth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from briges_ros.errors import BrigesError
from briges_ros.training.datasets.files import FrameFiles, read_raster, read_sample, require_files
from briges_ros.training.datasets.sample import Sample, inverse_depth
from briges_ros.training.datasets.splits import choose

SKY = 65535  # the largest value; 655.35 m


class VirtualKitti2:
    """``SceneXX/VARIATION/frames/{rgb,depth}/Camera_0/{rgb_NNNNN.jpg,depth_NNNNN.png}``.

    Depth is 16-bit, in centimetres along optical Z. Camera_1, the stereo partner, shows nearly the
    same and is left out. Names for the lists of the split: ``SceneXX/VARIATION/NNNNN``; the
    variations of a scene show one drive, so hold out whole scenes.
    """

    sharp = True

    def __init__(self, root: Path, split: str) -> None:
        self.root = Path(root)
        found = {
            f'{image.parts[-6]}/{image.parts[-5]}/{image.stem.removeprefix("rgb_")}': image
            for image in sorted(self.root.glob('Scene*/*/frames/rgb/Camera_0/rgb_*.jpg'))
        }
        if not found:
            raise BrigesError(
                f'{self.root} holds no SceneXX/VARIATION/frames/rgb/Camera_0/rgb_NNNNN.jpg; '
                'pass the folder of Virtual KITTI 2'
            )
        self.names = choose(list(found), self.root, split)
        self._frames = [
            FrameFiles(f'virtual_kitti2/{name}', found[name], _depth(found[name]))
            for name in self.names
        ]
        require_files(self._frames)

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> Sample:
        return read_sample(self._frames[index], _read_inverse)


def _depth(image: Path) -> Path:
    number = image.stem.removeprefix('rgb_')
    return image.parents[2] / 'depth' / 'Camera_0' / f'depth_{number}.png'


def _read_inverse(path: Path) -> NDArray[np.float32]:
    return inverse_depth(read_raster(path, np.uint16).astype(np.float32) / 100.0, SKY / 100.0)
