"""TartanAir (Wang et al., IROS 2020) and TartanAir V2: rendered flights with exact depth.

Formats: https://github.com/castacks/tartanair_tools (first version) and
https://github.com/castacks/tartanairpy/blob/main/docs/modalities.rst (V2).
"""

from __future__ import annotations

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

FAR_M = 1000.0  # the sky is a sphere, kilometres away
V1, V2 = 'image_left/*_left.png', 'image_lcam_front/*_lcam_front.png'
# The archives of the first version repeat the name of the environment.
PATTERNS = (
    *(f'{env}/{level}/P*/{V1}' for env in ('*', '*/*') for level in ('Easy', 'Hard')),
    f'*/Data_*/P*/{V2}',
)


class TartanAir:
    """The left camera of the first version, or the left front camera of V2.

    First version: ``ENV/Easy/P000/image_left/NNNNNN_left.png`` and
    ``depth_left/NNNNNN_left_depth.npy``, float32 metres along optical Z. V2:
    ``ENV/Data_easy/P000/image_lcam_front/NNNNNN_lcam_front.png`` and
    ``depth_lcam_front/NNNNNN_lcam_front_depth.png``, the same float32 as four 8-bit channels.

    Names for the lists of the split: ``ENV/Easy/P000/NNNNNN``; the flights of an environment see
    the same places, so hold out whole environments.
    """

    sharp = True

    def __init__(self, root: Path, split: str) -> None:
        self.root = Path(root)
        found = {}
        for pattern in PATTERNS:
            for image in sorted(self.root.glob(pattern)):
                flight = image.parents[1].relative_to(self.root).as_posix()
                found[f'{flight}/{image.stem.split("_")[0]}'] = image
        if not found:
            raise BrigesError(
                f'{self.root} holds no ENV/Easy/P000/{V1} nor ENV/Data_easy/P000/{V2}; '
                'pass the folder of TartanAir'
            )
        self.names = choose(list(found), self.root, split)
        self._frames = [
            FrameFiles(f'tartanair/{name}', found[name], _depth(found[name])) for name in self.names
        ]
        require_files(self._frames)

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> Sample:
        return read_sample(self._frames[index], _read_inverse)


def _depth(image: Path) -> Path:
    folder = image.parent.name.replace('image_', 'depth_')
    suffix = '.npy' if folder == 'depth_left' else '.png'
    return image.parents[1] / folder / f'{image.stem}_depth{suffix}'


def _read_inverse(path: Path) -> NDArray[np.float32]:
    if path.suffix == '.npy':
        return inverse_depth(read_array(path), FAR_M)
    channels = read_raster(path, np.uint8, channels=4)
    return inverse_depth(np.ascontiguousarray(channels).view('<f4')[:, :, 0], FAR_M)
