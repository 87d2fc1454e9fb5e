"""Files that the command line reads: images, cameras, points, sparse depth."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray

from briges_ros.alignment.anchors import rigid_transform
from briges_ros.camera import CameraModel
from briges_ros.depth_image import from_millimetres
from briges_ros.errors import BrigesError
from briges_ros.image_file import decode_file


@dataclass(frozen=True, eq=False)
class CameraFile:
    """A camera and, if the file has it, where its range sensor sits.

    Attributes:
        camera: the intrinsics.
        T_camera_sensor: (4, 4), takes points of the sensor's frame to the optical frame; or None.
    """

    camera: CameraModel
    T_camera_sensor: NDArray[np.float64] | None


def read_image(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB.

    Raises:
        BrigesError: missing, or not an image.
    """
    if not path.is_file():
        raise BrigesError(f'{path} does not exist; give an image file')
    bgr = decode_file(path, cv2.IMREAD_COLOR)
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


def read_camera(path: Path) -> CameraFile:
    """Intrinsics from a file.

    Two layouts: the YAML that camera_calibration and camera_info_manager write (image_width,
    camera_matrix, ...), and JSON or YAML with width, height, K (3x3 or fx, fy, cx, cy) and D.
    Either may hold T_camera_sensor (or T_camera_lidar), a 4x4 matrix.

    Raises:
        BrigesError: missing, or neither layout.
    """
    mend = 'give width, height, K (3x3) and D, or a camera_info YAML'
    try:
        text = path.read_text()
        values: Any = json.loads(text) if path.suffix == '.json' else yaml.safe_load(text)
        if not isinstance(values, dict):
            raise ValueError('it holds no names with values')
        if 'camera_matrix' in values:
            width, height = values['image_width'], values['image_height']
            K = np.array(values['camera_matrix']['data'], float).reshape(3, 3)
            D = values.get('distortion_coefficients', {}).get('data', ())
            model = values.get('distortion_model', 'plumb_bob')
        else:
            width, height = values['width'], values['height']
            K = np.array(values['K'], float)
            if K.size == 4:
                K = np.array([[K[0], 0, K[2]], [0, K[1], K[3]], [0, 0, 1]])
            K = K.reshape(3, 3)
            D = values.get('D', ())
            model = values.get('model', 'plumb_bob')
        transform = values.get('T_camera_sensor', values.get('T_camera_lidar'))
        return CameraFile(
            CameraModel(int(width), int(height), K, D=np.array(D, float), model=model),
            None if transform is None else rigid_transform(transform),
        )
    except OSError as error:
        raise BrigesError(f'{path} cannot be read ({error.strerror}); {mend}') from error
    except (KeyError, TypeError, AttributeError) as error:
        raise BrigesError(f'{path} is no camera file (missing {error}); {mend}') from error
    except (ValueError, OverflowError, yaml.YAMLError) as error:
        reason = ' '.join(str(error).split())
        raise BrigesError(f'{path} is no camera file ({reason}); {mend}') from error


def read_points(path: Path) -> NDArray[np.float64]:
    """(N, 3) metres from a .npy of (N, 3 or more); further columns are dropped.

    Raises:
        BrigesError: missing or of another shape.
    """
    points = _read_npy(path)
    if points.ndim != 2 or points.shape[1] < 3 or points.dtype.kind not in 'fiu':
        raise BrigesError(
            f'{path} has shape {points.shape} and type {points.dtype}; '
            'give (N, 3 or more) numbers: x, y, z in metres'
        )
    return points[:, :3].astype(np.float64)


def read_sparse_depth(path: Path, shape: tuple[int, int]) -> NDArray[np.float32]:
    """(H, W) float32 metres, NaN unknown; from a 16-bit PNG (mm) or a .npy (m).

    Raises:
        BrigesError: missing, of another size than the image, or of another type.
    """
    if path.suffix == '.npy':
        depth = _read_npy(path)
        if depth.dtype.kind != 'f':
            raise BrigesError(f'{path} holds {depth.dtype}; give float metres, or a 16-bit PNG')
        depth = depth.astype(np.float32)
    else:
        if not path.is_file():
            raise BrigesError(f'{path} does not exist; give a 16-bit PNG or a .npy')
        millimetres = decode_file(path, cv2.IMREAD_UNCHANGED)
        if millimetres.dtype != np.uint16:
            raise BrigesError(f'{path} is not a 16-bit PNG; give millimetres as uint16, or a .npy')
        depth = from_millimetres(np.asarray(millimetres, np.uint16))
    if depth.shape != shape:
        raise BrigesError(
            f'{path} has shape {depth.shape}, the image {shape}; register it to the image, or give '
            '--points'
        )
    return depth


def _read_npy(path: Path) -> NDArray[Any]:
    try:
        array = np.load(path, allow_pickle=False)
        if not isinstance(array, np.ndarray):  # an archive (.npz) under another name
            array.close()
            raise ValueError('an archive of several arrays')
        return array
    except FileNotFoundError as error:
        raise BrigesError(f'{path} does not exist; give a .npy file') from error
    except (OSError, ValueError, EOFError) as error:
        raise BrigesError(f'{path} is no .npy file of numbers; write it with numpy.save') from error
