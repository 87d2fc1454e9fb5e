"""Hypersim (Roberts et al., ICCV 2021): rendered interiors with exact depth and classes.

Layout and meaning of the files: https://github.com/apple/ml-hypersim
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from briges_ros.errors import BrigesError
from briges_ros.training.datasets.files import FrameFiles, read_hdf5, read_sample, require_files
from briges_ros.training.datasets.sample import Sample, inverse_depth
from briges_ros.training.datasets.splits import check_split, choose

FOCAL_PX, FOCAL_WIDTH = 886.81, 1024  # 60 degrees across 1024 pixels
OFFICIAL_SPLIT = 'metadata_images_split_scene_v1.csv'
LABEL_PARTS = ('semantic', 'render_entity_id')  # the first that is there


class Hypersim:
    """Images ``ai_VVV_NNN/images/scene_cam_XX_final_preview/frame.IIII.tonemap.jpg``.

    Depth is in ``scene_cam_XX_geometry_hdf5/frame.IIII.depth_meters.hdf5`` beside them: metres
    along the ray, NaN where the ray hits nothing. Labels are ``frame.IIII.semantic.hdf5`` (classes
    1..40 as in NYUv2) or else ``frame.IIII.render_entity_id.hdf5`` (objects, numbered 1..255 in
    each frame), if there.

    Split by the official table ``metadata_images_split_scene_v1.csv`` in the root (train trains,
    val and test are held out) or else by lists; names are ``ai_VVV_NNN/cam_XX/frame.IIII``.
    """

    sharp = True

    def __init__(self, root: Path, split: str) -> None:
        self.root = Path(root)
        check_split(split)
        found = {}
        for image in sorted(
            self.root.glob('ai_*/images/scene_cam_*_final_preview/frame.*.tonemap.jpg')
        ):
            camera = image.parent.name.removeprefix('scene_').removesuffix('_final_preview')
            frame = image.name.removesuffix('.tonemap.jpg')
            found[f'{image.parts[-4]}/{camera}/{frame}'] = image
        if not found:
            raise BrigesError(
                f'{self.root} holds no ai_VVV_NNN/images/scene_cam_XX_final_preview/'
                'frame.IIII.tonemap.jpg; pass the folder of the Hypersim scenes'
            )
        table = self.root / OFFICIAL_SPLIT
        if table.is_file():
            wanted = _official_names(table, split)
            self.names = [name for name in found if name in wanted]
            if not self.names:
                raise BrigesError(
                    f'{table}: none of the {len(found)} frames in {self.root} is {split!r}; '
                    'add scenes of that split'
                )
        else:
            self.names = choose(list(found), self.root, split)
        first = found[self.names[0]]
        part = next((p for p in LABEL_PARTS if _geometry(first, p).is_file()), None)
        self._frames = [
            FrameFiles(
                f'hypersim/{name}',
                found[name],
                _geometry(found[name], 'depth_meters'),
                None if part is None else _geometry(found[name], part),
            )
            for name in self.names
        ]
        require_files(self._frames)

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> Sample:
        return read_sample(self._frames[index], _read_inverse, _read_ids)


def planar_depth(distance: NDArray[np.floating]) -> NDArray[np.float64]:
    """Depth along optical Z of distances along the rays, (H, W) in metres.

    Source: https://github.com/apple/ml-hypersim/issues/9#issuecomment-754935697. Cameras of a few
    scenes are tilted or shifted, for which it is an approximation.
    """
    rows, cols = distance.shape
    focal = FOCAL_PX * cols / FOCAL_WIDTH
    x = np.arange(cols) - (cols - 1) / 2
    y = np.arange(rows) - (rows - 1) / 2
    return distance * (focal / np.sqrt(x[None, :] ** 2 + y[:, None] ** 2 + focal**2))


def _geometry(image: Path, part: str) -> Path:
    """``.../scene_cam_XX_geometry_hdf5/frame.IIII.PART.hdf5`` of an image."""
    folder = image.parent.with_name(image.parent.name.replace('_final_preview', '_geometry_hdf5'))
    return folder / image.name.replace('.tonemap.jpg', f'.{part}.hdf5')


def _read_inverse(path: Path) -> NDArray[np.float32]:
    return inverse_depth(planar_depth(read_hdf5(path).astype(np.float64)))


def _read_ids(path: Path) -> NDArray[np.uint8]:
    ids = read_hdf5(path).astype(np.int64)  # -1 = none
    if not path.name.endswith('.semantic.hdf5'):
        # Renderer's numbers run to thousands. Beyond 255 objects in a frame numbers come again,
        # rarely for two that touch.
        order = np.unique(ids[ids >= 0])
        ids = np.where(ids >= 0, np.searchsorted(order, ids) % 255 + 1, 0)
    return np.clip(ids, 0, 255).astype(np.uint8)


def _official_names(table: Path, split: str) -> set[str]:
    columns = 'scene_name', 'camera_name', 'frame_id', 'split_partition_name'
    names = set()
    try:
        with table.open(encoding='utf-8', newline='') as file:
            for row in csv.DictReader(file):
                scene, camera, frame, part = (row[column] for column in columns)
                if (part == 'train' and split == 'train') or (
                    part in ('val', 'test') and split == 'held_out'
                ):
                    names.add(f'{scene}/{camera}/frame.{int(frame):04d}')
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise BrigesError(f'{table}: not the table of the Hypersim split ({error!r})') from error
    return names
