"""Image files, read by OpenCV, and refused where OpenCV would make up what they lack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from briges_ros.errors import BrigesError

_JPEG_START, _JPEG_END, _JPEG_SCAN = b'\xff\xd8', b'\xff\xd9', b'\xff\xda'


def decode_file(path: Path, flags: int) -> NDArray[Any]:
    """The pixels of an image file that is whole.

    Args:
        path: the file.
        flags: of `cv2.imdecode`.

    Returns:
        (H, W) or (H, W, channels in OpenCV's order), of the file's or the flags' type.

    Raises:
        BrigesError: missing, broken off, not an image, or of more pixels than OpenCV takes.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BrigesError(f'{path}: missing or not an image (PNG, JPEG, ...)') from error
    # OpenCV refuses other formats that break off, but fills up a JPEG with grey.
    if content.startswith(_JPEG_START) and not _has_jpeg_end(content):
        raise BrigesError(f'{path}: the JPEG breaks off before its end; copy it again')
    pixels: NDArray[Any] | None = None
    try:
        if content:
            pixels = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error as error:  # more pixels than OpenCV takes
        raise BrigesError(f'{path} cannot be read ({error.err}); give a smaller image') from error
    if pixels is None:
        raise BrigesError(f'{path}: missing or not an image (PNG, JPEG, ...)')
    return pixels


def _has_jpeg_end(content: bytes) -> bool:
    """Whether the end marker follows the pixels of a JPEG (ITU-T T.81, annex B).

    Thumbnails in the head of a file have end markers of their own. The head's segments say how long
    they are, so they are skipped; within the pixels the marker cannot occur.
    """
    at = len(_JPEG_START)
    while content[at : at + 1] == _JPEG_END[:1]:
        marker = content[at : at + 2]
        if marker == _JPEG_SCAN:
            return _JPEG_END in content[at:]
        # Any number of 0xFF may come before a marker.
        filled = marker == b'\xff\xff'
        at += 1 if filled else 2 + int.from_bytes(content[at + 2 : at + 4], 'big')
    return False
