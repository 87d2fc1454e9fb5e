"""Image files, read by OpenCV, and refused where OpenCV would make up what they lack."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from briges_ros.errors import BrigesError

_PNG_START = b'\x89PNG\r\n\x1a\n'
_JPEG_START, _JPEG_END, _JPEG_SCAN = b'\xff\xd8', b'\xff\xd9', b'\xff\xda'
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # whose segments hold the size
_JPEG_BARE = frozenset({0x01, *range(0xD0, 0xD8)})  # markers that no segment follows
_JPEG_STOPS = frozenset({0x00, 0xD8, 0xD9})  # that cannot stand between segments
_MOST_SCANS = 100  # of a JPEG; encoders make up to a dozen, and each takes its time again


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
    try:
        return decode(content, flags)
    except BrigesError as error:
        raise BrigesError(f'{path}: {error}') from error


def decode(content: bytes, flags: int) -> NDArray[Any]:
    """The pixels of an image, as `decode_file`, of what a file holds.

    Raises:
        BrigesError: broken off, not an image, or of more pixels than OpenCV takes.
    """
    if content.startswith(_JPEG_START):
        pixels_from = _jpeg_pixels(content)
        # OpenCV refuses other formats that break off, but fills up a JPEG with grey.
        if pixels_from is None or _JPEG_END not in content[pixels_from:]:
            raise BrigesError('the JPEG breaks off before its end; copy it again')
        scans = content.count(_JPEG_SCAN, pixels_from)
        if scans > _MOST_SCANS:
            raise BrigesError(f'the JPEG has {scans} scans; save it with fewer')
    pixels: NDArray[Any] | None = None
    try:
        if content:
            pixels = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error as error:  # more pixels than OpenCV takes
        raise BrigesError(f'cannot be read ({error.err}); give a smaller image') from error
    if pixels is None:
        raise BrigesError('missing or not an image (PNG, JPEG, ...)')
    return pixels


def picture_size(content: bytes) -> tuple[int, int] | None:
    """Width and height that the head of a JPEG or PNG claims, pixels; None of anything else.

    A few bytes can claim gigabytes of pixels, which a decoder takes before it finds them missing.
    """
    if content.startswith(_PNG_START) and len(content) >= 24 and content[12:16] == b'IHDR':
        return int.from_bytes(content[16:20], 'big'), int.from_bytes(content[20:24], 'big')
    if content.startswith(_JPEG_START):
        for at in _jpeg_segments(content):
            if content[at + 1] in _JPEG_FRAMES:
                height, width = content[at + 5 : at + 7], content[at + 7 : at + 9]
                return int.from_bytes(width, 'big'), int.from_bytes(height, 'big')
    return None


def _jpeg_pixels(content: bytes) -> int | None:
    """Where the pixels of a JPEG begin; None if it has none.

    Thumbnails in the head of a file have markers of their own; within the pixels none can occur
    that does not count.
    """
    segments = _jpeg_segments(content)
    return next((at for at in segments if content[at : at + 2] == _JPEG_SCAN), None)


def _jpeg_segments(content: bytes) -> Iterator[int]:
    """Where the segments before the pixels begin, and the first of the pixels (ITU-T T.81, B).

    The segments say how long they are, so what is in them is skipped. Bytes that decoders do not
    agree on end it, so that none sees another picture than this.
    """
    at = len(_JPEG_START)
    while content[at : at + 1] == _JPEG_END[:1] and at + 1 < len(content):
        marker = content[at + 1]
        if marker == 0xFF or marker in _JPEG_BARE:  # of 0xFF any number may come before a marker
            at += 1 if marker == 0xFF else 2
            continue
        if marker in _JPEG_STOPS:
            return
        yield at
        if content[at : at + 2] == _JPEG_SCAN:
            return
        at += 2 + int.from_bytes(content[at + 2 : at + 4], 'big')
