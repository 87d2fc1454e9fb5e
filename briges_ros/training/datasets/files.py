"""Reading the files of a frame; whatever is wrong with one, the error names it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from briges_ros.errors import BrigesError
from briges_ros.image_file import decode_file
from briges_ros.training.datasets.sample import Sample


@dataclass(frozen=True)
class FrameFiles:
    """Where the parts of a frame lie; labels is None where the data set has none."""

    name: str
    image: Path
    depth: Path
    labels: Path | None = None


def require_files(frames: Iterable[FrameFiles]) -> None:
    """Refuse a frame that lacks a part, before training starts rather than hours into it."""
    for frame in frames:
        for part in (frame.image, frame.depth, frame.labels):
            if part is not None and not part.is_file():
                raise BrigesError(
                    f'{part} is missing: frame {frame.name} needs it; add it or remove the frame'
                )


def read_sample(
    frame: FrameFiles,
    read_inverse: Callable[[Path], NDArray[np.float32]],
    labels_of: Callable[[Path], NDArray[np.uint8]] | None = None,
) -> Sample:
    """Read the parts of a frame, which must agree in size.

    Args:
        frame: its files.
        read_inverse: reads (H, W) float32 inverse depth.
        labels_of: reads (H, W) uint8 labels; default `read_labels`.
    """
    image = read_rgb(frame.image)
    inverse = read_inverse(frame.depth)
    _require_size(frame.depth, inverse, frame.image, image)
    labels = None
    if frame.labels is not None:
        labels = (labels_of or read_labels)(frame.labels)
        _require_size(frame.labels, labels, frame.image, image)
    return Sample(frame.name, image, inverse, labels)


def _require_size(
    path: Path, raster: NDArray[np.generic], image_path: Path, image: NDArray[np.uint8]
) -> None:
    if raster.shape != image.shape[:2]:
        (rows, cols), (image_rows, image_cols) = raster.shape, image.shape[:2]
        raise BrigesError(
            f'{path} is {cols} x {rows} pixels but {image_path} is {image_cols} x {image_rows}; '
            'both must have one size'
        )


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB."""
    bgr = decode_file(path, cv2.IMREAD_COLOR)
    return np.ascontiguousarray(bgr[:, :, ::-1]).astype(np.uint8, copy=False)


def read_raster(path: Path, *dtypes: type[np.generic], channels: int = 1) -> NDArray[np.generic]:
    """The values of an image file, unchanged: (H, W), or (H, W, channels) in OpenCV's order.

    Another number of channels, or none of the given dtypes, is refused.
    """
    raster = decode_file(path, cv2.IMREAD_UNCHANGED)
    found = raster.shape[2] if raster.ndim == 3 else 1
    if found != channels or raster.dtype.type not in dtypes:
        wanted = ' or '.join(dtype.__name__ for dtype in dtypes)
        raise BrigesError(
            f'{path} holds {found} channel(s) of {raster.dtype}, not {channels} of {wanted}; '
            'is it a picture made for viewing?'
        )
    return raster


def read_labels(path: Path) -> NDArray[np.uint8]:
    """(H, W) uint8 labels of a single-channel 8-bit image file."""
    return read_raster(path, np.uint8).astype(np.uint8, copy=False)


def read_array(path: Path) -> NDArray[np.generic]:
    """The two-dimensional numbers of a .npy file; pickled objects are refused."""
    try:
        with path.open('rb') as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BrigesError(f'{path}: not an array that numpy can read ({error})') from error
    if array.ndim != 2 or array.dtype.kind not in 'fiu':
        raise BrigesError(f'{path} holds no two-dimensional array of numbers')
    return array


def read_hdf5(path: Path) -> NDArray[np.generic]:
    """The (H, W) array ``dataset`` of an HDF5 file."""
    try:
        import h5py
    except ImportError:
        raise BrigesError(f'{path}: HDF5 files need h5py; pip install h5py') from None
    try:
        with h5py.File(path, 'r') as file:
            array = np.asarray(file['dataset'])
    except (OSError, KeyError) as error:
        raise BrigesError(f'{path}: not an HDF5 file with an array "dataset" ({error})') from error
    if array.ndim != 2:
        raise BrigesError(f'{path} holds an array of shape {array.shape}, not an (H, W) map')
    return array
