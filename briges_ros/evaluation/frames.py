"""Single frames of several data sets: a folder with ``meta.json``, for evaluation only."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from briges_ros.camera import CameraModel
from briges_ros.errors import BrigesError
from briges_ros.image_file import decode_file


@dataclass(frozen=True, eq=False)
class SingleFrame:
    """One frame.

    Attributes:
        name: its id.
        kind: 'rgbd' or 'lidar'; which sensor measured the depth.
        image: (H, W, 3) uint8 RGB.
        depth: (H, W) float32 metres along optical Z, NaN = unknown.
        camera: intrinsics.
    """

    name: str
    kind: str
    image: NDArray[np.uint8]
    depth: NDArray[np.float32]
    camera: CameraModel


class SingleFrames:
    """A folder whose ``meta.json`` lists frames, read one by one.

    Each entry has ``id``, ``kind``, ``rgb`` and ``depth`` (file names; the depth is a 16-bit PNG
    with metres = value / ``depth_scale``, 0 = none) and ``K_fx_fy_cx_cy``.

    Raises:
        BrigesError: there is no such list, or it is not one.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        path = self.root / 'meta.json'
        try:
            self.entries: list[dict[str, Any]] = list(json.loads(path.read_text()))
            self.names = [str(entry['id']) for entry in self.entries]
        except (OSError, ValueError, TypeError, KeyError) as error:
            reason = ' '.join(str(error).split())
            raise BrigesError(
                f'{path} is no list of frames ({reason}); pass the folder of the single frames'
            ) from error

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> SingleFrame:
        """Read a frame.

        Raises:
            BrigesError: a file or a value is missing, a file breaks off, or image and depth differ
                in size.
        """
        entry = self.entries[index]
        try:
            bgr = decode_file(self.root / entry['rgb'], cv2.IMREAD_COLOR)
            path = self.root / entry['depth']
            raw = decode_file(path, cv2.IMREAD_UNCHANGED)
            if raw.shape != bgr.shape[:2]:
                raise BrigesError(f'{path} has shape {raw.shape}, its image {bgr.shape[:2]}')
            depth = np.where(raw > 0, raw / float(entry['depth_scale']), np.nan)
            fx, fy, cx, cy = (float(value) for value in entry['K_fx_fy_cx_cy'])
            kind = str(entry['kind'])
        except (KeyError, TypeError, ValueError) as error:
            raise BrigesError(
                f'{self.root}/meta.json: frame {self.names[index]} lacks or garbles {error}'
            ) from error
        height, width = raw.shape
        return SingleFrame(
            name=self.names[index],
            kind=kind,
            image=np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8),
            depth=depth.astype(np.float32),
            camera=CameraModel(width, height, np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])),
        )
