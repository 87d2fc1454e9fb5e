"""Camera images to RGB: every encoding of sensor_msgs/image_encodings.hpp that shows a picture.

Each conversion is one pass over the pixels by OpenCV or NumPy, straight from the message's memory;
16-bit images take one more, as only their high bytes go on. What is not here goes through
cv_bridge, where that is installed.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import cv2
import numpy as np
from sensor_msgs.msg import CompressedImage, Image

from briges_ros.errors import BrigesError, quoted
from briges_ros.image_file import decode, picture_size
from briges_ros.ros.conversions import MessageError, pixel_view
from briges_ros.ros.limits import check_picture


@dataclass(frozen=True)
class _Layout:
    """How the pixels of an encoding lie in memory, one after the other.

    Attributes:
        channels: values of a pixel.
        code: OpenCV's conversion to RGB; None if it is RGB.
        bytes: of a value.
        shared: columns that share their colour.
    """

    channels: int
    code: int | None
    bytes: int = 1
    shared: int = 1


_COLOURS = {
    'rgb': (3, None),
    'bgr': (3, cv2.COLOR_BGR2RGB),
    'rgba': (4, cv2.COLOR_RGBA2RGB),
    'bgra': (4, cv2.COLOR_BGRA2RGB),
    'mono': (1, cv2.COLOR_GRAY2RGB),
}
# ROS names a pattern by the pixels from the top left corner on, OpenCV by those from the second row
# and column on.
_BAYER = {
    'bayer_rggb': cv2.COLOR_BayerBG2RGB,
    'bayer_bggr': cv2.COLOR_BayerRG2RGB,
    'bayer_gbrg': cv2.COLOR_BayerGR2RGB,
    'bayer_grbg': cv2.COLOR_BayerGB2RGB,
}
_UYVY = _Layout(2, cv2.COLOR_YUV2RGB_UYVY, shared=2)
_YUYV = _Layout(2, cv2.COLOR_YUV2RGB_YUY2, shared=2)
_INTERLEAVED: dict[str, _Layout] = {
    **{
        f'{name}{8 * size}': _Layout(*layout, bytes=size)
        for size in (1, 2)
        for name, layout in _COLOURS.items()
    },
    **{
        f'{name}{8 * size}': _Layout(1, code, bytes=size)
        for size in (1, 2)
        for name, code in _BAYER.items()
    },
    'uyvy': _UYVY,
    'yuv422': _UYVY,  # the old name
    'yuyv': _YUYV,
    'yuv422_yuy2': _YUYV,  # the old name
}
# Encoding -> columns and rows that share their colour, OpenCV conversion (None: it has none).
_SEMIPLANAR: dict[str, tuple[int, int | None]] = {
    'nv12': (2, cv2.COLOR_YUV2RGB_NV12),
    'nv21': (2, cv2.COLOR_YUV2RGB_NV21),
    'nv24': (1, None),
}
# Y, Cb, Cr of 16 to 235 and 240 -> R, G, B of 0 to 255 (ITU-R BT.601), as OpenCV has it for the
# other YUV encodings.
_BT601 = np.array([[1.164, 0, 1.596], [1.164, -0.391, -0.813], [1.164, 2.018, 0]])
_YUV_TO_RGB = np.column_stack([_BT601, _BT601 @ [-16, -128, -128]])

# Newer versions of OpenCV decode to RGB, older ones to BGR only.
_DECODES_TO_RGB: int | None = getattr(cv2, 'IMREAD_COLOR_RGB', None)


def image_to_rgb(message: Image) -> np.ndarray:
    """Return a camera image as (H, W, 3) uint8 RGB.

    16-bit values are taken as filling their range: of each the high byte is kept.

    A view of the message's memory for unpadded rgb8, else a copy.

    Raises:
        MessageError: unknown encoding, zero size, or sizes that disagree.
    """
    encoding = message.encoding
    if encoding in _SEMIPLANAR:
        return _semiplanar_to_rgb(message, *_SEMIPLANAR[encoding])
    layout = _INTERLEAVED.get(encoding)
    if layout is None:
        return _through_cv_bridge(message)
    pixels = pixel_view(message, layout.channels * layout.bytes, np.dtype(np.uint8))
    _require_even(message, layout.shared, 1)
    if layout.bytes == 2:
        pixels = pixels[..., 0 if message.is_bigendian else 1 :: 2]  # the high bytes
    if layout.code is None or layout.bytes == 2:  # OpenCV takes no gaps between values
        pixels = np.ascontiguousarray(pixels)
    if layout.code is None:
        return pixels
    return cv2.cvtColor(pixels if layout.channels > 1 else pixels[..., 0], layout.code)


def compressed_to_rgb(message: CompressedImage) -> np.ndarray:
    """Return a JPEG or PNG as (H, W, 3) uint8 RGB.

    `format` is empty, 'jpeg' or 'png', or what compressed_image_transport writes: the encoding of
    the image, ';', and 'jpeg compressed' or 'png compressed' with the order of the channels as they
    were compressed. A file of JPEG or PNG says which channel is red; only 'compressed rgb' means
    that they were compressed the other way round. Of a Bayer encoding the picture is the mosaic,
    unless it has colours.

    Raises:
        MessageError: empty, broken off, undecodable or absurdly large.
    """
    content = bytes(message.data)
    if not content:
        raise MessageError('the compressed image is empty: check the camera driver')
    encoding, _, coding = message.format.partition(';')
    swapped = 'compressed rgb' in coding
    mosaic = _BAYER.get(encoding.strip().rstrip('168'))
    if mosaic is not None:
        pixels = _decoded(message, content, cv2.IMREAD_ANYCOLOR)
        if pixels.ndim == 2:
            return cv2.cvtColor(pixels, mosaic)
        return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    if swapped:
        return _decoded(message, content, cv2.IMREAD_COLOR)
    if _DECODES_TO_RGB is not None:
        return _decoded(message, content, _DECODES_TO_RGB)
    return cv2.cvtColor(_decoded(message, content, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def _decoded(message: CompressedImage, content: bytes, flags: int) -> np.ndarray:
    width, height = picture_size(content) or (0, 0)
    check_picture(width, height)
    try:
        if not width * height:  # neither of the two; OpenCV reads more that no camera sends
            raise BrigesError('not a JPEG or PNG')
        # A camera's raw image is never turned by EXIF, and its camera_info would not fit if it
        # were.
        return decode(content, flags | cv2.IMREAD_IGNORE_ORIENTATION)
    except BrigesError as error:
        raise MessageError(
            f'{len(content)} bytes of format {quoted(message.format)} cannot be decoded: publish a '
            'complete JPEG or PNG, or use the raw image (image_transport: raw)'
        ) from error


def _semiplanar_to_rgb(message: Image, shared: int, code: int | None) -> np.ndarray:
    """Return the RGB of a plane of brightness that a plane of colours, Cb and Cr in turn, follows.

    sensor_msgs does not say how these lie in memory. `height` and `step` are those of the
    brightness in most drivers, so that data holds more than step * height bytes; in some step is
    data / height of planes without padding.
    """
    height, width, size = message.height, message.width, len(message.data)
    if height == 0 or width == 0:
        raise MessageError(f'the image is {width} x {height}: check the camera driver')
    _require_even(message, shared, shared)
    rows = height + 2 * height // shared**2  # of both planes, as long as those of the brightness
    step = message.step if message.step * rows == size else width
    if step < width or step * rows != size:
        raise MessageError(
            f'data holds {size} bytes and step is {message.step}, but {width} x {height} pixels of '
            f'{message.encoding} take {rows} rows of {width} or more: mend the publisher'
        )
    luma = np.ndarray((height, width), np.uint8, message.data, 0, (step, 1))
    chroma = np.ndarray(
        (height // shared, width // shared, 2),
        np.uint8,
        message.data,
        height * step,
        (2 * step // shared, 2, 1),
    )
    if code is not None:
        return cv2.cvtColorTwoPlane(luma, chroma, code)
    yuv = cv2.merge([luma, chroma[..., 0], chroma[..., 1]])
    return cv2.transform(yuv, _YUV_TO_RGB)


def _require_even(message: Image, columns: int, rows: int) -> None:
    """Refuse an image some of whose pixels have no one to share their colour with."""
    if message.width % columns or message.height % rows:
        raise MessageError(
            f'the image is {message.width} x {message.height}, but pixels of {message.encoding} '
            f'share their colour in cells of {columns} x {rows}: mend the publisher'
        )


def _through_cv_bridge(message: Image) -> np.ndarray:
    try:
        bridge = import_module('cv_bridge').CvBridge()
    except ImportError as error:
        raise MessageError(_unsupported(message.encoding)) from error
    try:
        rgb: Any = bridge.imgmsg_to_cv2(message, 'rgb8')
    except Exception as error:  # CvBridgeError, and whatever a message does to its C++
        why = quoted((str(error).strip().splitlines() or [type(error).__name__])[0], 200)
        raise MessageError(f'{_unsupported(message.encoding)} (cv_bridge: {why})') from error
    if rgb.shape != (message.height, message.width, 3) or rgb.dtype != np.uint8 or not rgb.size:
        raise MessageError(_unsupported(message.encoding))
    return np.ascontiguousarray(rgb)


def _unsupported(encoding: str) -> str:
    if encoding[:3] in ('8UC', '8SC', '16U', '16S', '32S', '32F', '64F'):
        return (
            f'encoding {quoted(encoding)} does not say what the channels mean: publish bgr8, rgb8 '
            "or mono8, whichever it is (cv_bridge: cv2_to_imgmsg(image, encoding='bgr8'))"
        )
    names = ', '.join([*_INTERLEAVED, *_SEMIPLANAR])
    return f'encoding {quoted(encoding)} is not supported: publish one of {names}'
