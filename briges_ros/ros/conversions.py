"""Messages to arrays and back, as views wherever the layout allows.

cv_bridge is not used: it is not installable without ROS packages, and the conversions a depth node
needs are a few NumPy views. Every function here is pure; one that cannot use a message raises
`MessageError`, whose text says what is wrong with the message and how to mend it. The caller knows
the topic and puts its name before the text.
"""

from __future__ import annotations

import array
import math
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from sensor_msgs.msg import CameraInfo, Image, LaserScan, PointCloud2, PointField, Range
from std_msgs.msg import Header

from briges_ros.camera import CameraModel
from briges_ros.depth_image import from_millimetres
from briges_ros.errors import BrigesError, quoted
from briges_ros.point_cloud import XYZ_STEP
from briges_ros.scan import Scan

_BIG_ENDIAN = sys.byteorder == 'big'

_DEPTH: dict[str, type] = {'16UC1': np.uint16, '32FC1': np.float32}
_LONGEST_SCAN = 1.0  # s; a scan that says it took longer has time_increment wrong
_COORDINATE: dict[int, type] = {PointField.FLOAT32: np.float32, PointField.FLOAT64: np.float64}


class MessageError(BrigesError):
    """A message that cannot be used; the text says why and how to mend it."""


def stamp_seconds(stamp: Any) -> float:
    """Return a builtin_interfaces/Time in seconds."""
    return float(stamp.sec) + float(stamp.nanosec) * 1e-9


# ---- images in (those of a camera: image_encodings) ---------------------------------------------


def image_to_depth(message: Image) -> np.ndarray:
    """Return a depth image as (H, W) float32 metres, unknown as NaN (16UC1) or as sent (32FC1).

    Raises:
        MessageError: unknown encoding, zero size, or sizes that disagree.
    """
    if message.encoding not in _DEPTH:
        raise MessageError(
            f'encoding {quoted(message.encoding)} is not a depth: publish 16UC1 (millimetres) or '
            '32FC1 (metres)'
        )
    values = pixel_view(message, 1, np.dtype(_DEPTH[message.encoding]))[..., 0]
    native = values.astype(values.dtype.newbyteorder('='), copy=False)
    return from_millimetres(native) if message.encoding == '16UC1' else native


def pixel_view(message: Image, channels: int, dtype: np.dtype) -> np.ndarray:
    """Return the pixels of an image as an (H, W, channels) view of the message's memory.

    Raises:
        MessageError: zero size, or sizes that disagree.
    """
    height, width, step = message.height, message.width, message.step
    if height == 0 or width == 0:
        raise MessageError(f'the image is {width} x {height}: check the camera driver')
    row = width * channels * dtype.itemsize
    if step < row:
        raise MessageError(
            f'step is {step} bytes, but a row of {width} pixels of {message.encoding} takes {row}: '
            'mend step or width in the publisher'
        )
    if len(message.data) != step * height:
        raise MessageError(
            f'data holds {len(message.data)} bytes, but step * height is {step * height}: '
            'mend the publisher'
        )
    if dtype.itemsize > 1:
        dtype = dtype.newbyteorder('>' if message.is_bigendian else '<')
    return np.ndarray(
        (height, width, channels),
        dtype,
        buffer=message.data,
        strides=(step, channels * dtype.itemsize, dtype.itemsize),
    )


# ---- clouds in ----------------------------------------------------------------------------------


def cloud_to_points(message: PointCloud2) -> np.ndarray:
    """Return the x, y, z of a cloud as (N, 3) float32 metres in the frame of the cloud.

    Points that are not finite stay in: what is done with them is not a matter of the message.

    Raises:
        MessageError: missing or odd fields, sizes that disagree, or no point.
    """
    count = message.width * message.height
    if count == 0 or len(message.data) == 0:
        raise MessageError('the cloud is empty: check the sensor')
    offsets, dtype = _coordinates(message)
    if message.row_step < message.width * message.point_step:
        raise MessageError(
            f'row_step is {message.row_step}, but {message.width} points of {message.point_step} '
            f'bytes take {message.width * message.point_step}: mend the publisher'
        )
    if len(message.data) != message.row_step * message.height:
        raise MessageError(
            f'data holds {len(message.data)} bytes, but row_step * height is '
            f'{message.row_step * message.height}: mend the publisher'
        )
    points = np.empty((message.height, message.width, 3), np.float32)
    for axis, offset in enumerate(offsets):
        points[..., axis] = np.ndarray(
            points.shape[:2],
            dtype,
            buffer=message.data,
            offset=offset,
            strides=(message.row_step, message.point_step),
        )
    return points.reshape(-1, 3)


def _coordinates(message: PointCloud2) -> tuple[list[int], np.dtype]:
    """Return the byte offsets of x, y and z, and the type that they share."""
    fields = {field.name: field for field in message.fields}
    missing = [name for name in 'xyz' if name not in fields]
    if missing:
        raise MessageError(
            f'the cloud has no field {", ".join(missing)} (it has '
            f'{quoted(", ".join(fields)) if fields else "none"}): publish x, y and z'
        )
    xyz = [fields[name] for name in 'xyz']
    datatype = xyz[0].datatype
    if datatype not in _COORDINATE or any(field.datatype != datatype for field in xyz):
        raise MessageError(
            f'x, y and z are of datatype {", ".join(str(field.datatype) for field in xyz)}: '
            f'publish all as FLOAT32 ({PointField.FLOAT32}) or all as FLOAT64 '
            f'({PointField.FLOAT64})'
        )
    if any(field.count > 1 for field in xyz):
        raise MessageError('x, y and z have a count over 1: publish single values')
    dtype = np.dtype(_COORDINATE[datatype]).newbyteorder('>' if message.is_bigendian else '<')
    end = max(field.offset for field in xyz) + dtype.itemsize
    if message.point_step < end:
        raise MessageError(
            f'point_step is {message.point_step}, but x, y and z end at byte {end}: '
            'mend the publisher'
        )
    return [field.offset for field in xyz], dtype


# ---- scans and ranges in ------------------------------------------------------------------------


@dataclass(frozen=True)
class PolarScan:
    """A scan as arrays.

    Attributes:
        ranges: (N,) float32 metres, special values as REP 117 has them.
        angles: (N,) float64 radians about z, from x towards y.
        min_range, max_range: of the sensor, metres.
        duration: seconds from the first ray to the last; 0 if the message does not say.
    """

    ranges: np.ndarray
    angles: np.ndarray
    min_range: float
    max_range: float
    duration: float


def scan_to_polar(message: LaserScan) -> PolarScan:
    """Return the ranges and angles of a scan.

    Raises:
        MessageError: no range, angles that do not fit them, or no range limits.
    """
    count = len(message.ranges)
    if count == 0:
        raise MessageError('the scan is empty: check the sensor')
    first, last, step = message.angle_min, message.angle_max, message.angle_increment
    if not all(map(math.isfinite, (first, last, step))) or (step == 0 and count > 1):
        raise MessageError(
            f'its angles go from {first} to {last} by {step}: publish finite radians and an '
            'angle_increment that is not zero'
        )
    # Drivers differ on whether angle_max is the last ray or the one after it.
    expected = (last - first) / step + 1 if count > 1 else 1.0
    if abs(expected - count) > max(2.0, 0.01 * count):
        raise MessageError(
            f'ranges holds {count} values, but its angles are for {expected:.0f}: mend '
            'angle_min, angle_max or angle_increment in the publisher'
        )
    _check_limits('range_min', message.range_min, 'range_max', message.range_max)
    duration = message.time_increment * (count - 1)
    return PolarScan(
        ranges=np.asarray(message.ranges, np.float32),
        angles=first + step * np.arange(count),
        min_range=message.range_min,
        max_range=message.range_max,
        duration=duration if 0 < duration <= _LONGEST_SCAN else 0.0,
    )


@dataclass(frozen=True)
class Reading:
    """What a ranger with a cone says.

    Attributes:
        distance: metres of the nearest thing in the cone; -inf: too near to measure, +inf: nothing
            in range (REP 117).
        field_of_view: angle of the whole cone, radians.
        min_range, max_range: of the sensor, metres.
        sigma: standard deviation in metres, or None if the message does not say.
    """

    distance: float
    field_of_view: float
    min_range: float
    max_range: float
    sigma: float | None


def range_to_reading(message: Range) -> Reading:
    """Return what a Range says; of either radiation type, since both give the nearest echo.

    A ranger of fixed distance (min_range == max_range) detects that something is nearer than that,
    not how near: its detection is -inf, whatever the driver sends for it.

    Raises:
        MessageError: an impossible field of view, or no range limits.
    """
    if not 0 <= message.field_of_view <= math.pi:
        raise MessageError(
            f'field_of_view is {message.field_of_view}: publish the angle of the whole cone, 0 to '
            'pi radians'
        )
    distance = message.range
    if message.min_range == message.max_range:
        if math.isfinite(distance):
            distance = -math.inf if distance <= message.max_range else math.inf
    else:
        _check_limits('min_range', message.min_range, 'max_range', message.max_range)
    variance = getattr(message, 'variance', 0.0)  # came with Iron
    return Reading(
        distance=distance,
        field_of_view=message.field_of_view,
        min_range=message.min_range,
        max_range=message.max_range,
        sigma=math.sqrt(variance) if 0 < variance < math.inf else None,
    )


def _check_limits(low_name: str, low: float, high_name: str, high: float) -> None:
    if not 0 <= low < high:
        raise MessageError(
            f'{low_name} is {low} and {high_name} {high}: publish what the sensor can measure, '
            'in metres'
        )


# ---- camera in ----------------------------------------------------------------------------------


def camera_from_info(
    message: CameraInfo, rectified: bool = False, size: tuple[int, int] | None = None
) -> CameraModel:
    """Return the camera that a CameraInfo describes.

    Args:
        message: the calibration; K, D and the distortion model are of the raw image, P of the
            rectified one (REP 104).
        rectified: the images are rectified: P is used instead of K and D.
        size: width and height in pixels of the images. If they are smaller than what was
            calibrated, the region of interest and the binning of the message must explain it. If
            they are not, these are not looked at: drivers set them for the sensor, too, where the
            calibration is of the images. Default: of what was calibrated.

    Raises:
        MessageError: zero size, a K (or P) that is zero, anything that is not finite, an unknown
            model, or images of another size.
    """
    p = np.asarray(message.p, np.float64).reshape(3, 4)
    if not np.isfinite(message.r).all():
        raise MessageError('R holds a value that is not finite; calibrate the camera')
    if rectified and not p.any():
        raise MessageError(
            'P is all zero, but image_is_rectified is set: publish the P of the rectified image, '
            'or set image_is_rectified: false'
        )
    try:
        camera = CameraModel(
            width=int(message.width),
            height=int(message.height),
            K=np.asarray(message.k, np.float64).reshape(3, 3),
            D=np.asarray(message.d, np.float64),
            model=message.distortion_model or 'plumb_bob',
            P=p if p.any() else None,
            rectified=rectified,
        )
    except ValueError as error:
        raise MessageError(str(error)) from error
    if size in (None, (camera.width, camera.height)):
        return camera
    return _part(camera, message, *size)


def _part(camera: CameraModel, message: CameraInfo, width: int, height: int) -> CameraModel:
    """Return the camera of the region of interest, binned, which must have this size."""
    roi = message.roi
    # 0 stands for 1, and for the whole sensor.
    across, down = max(1, message.binning_x), max(1, message.binning_y)
    wide, tall = roi.width or camera.width, roi.height or camera.height
    fits = (
        roi.x_offset + wide <= camera.width
        and roi.y_offset + tall <= camera.height
        and width in (wide // across, -(-wide // across))
        and height in (tall // down, -(-tall // down))
    )
    if not fits:
        part = ''
        if (wide // across, tall // down) != (camera.width, camera.height):
            part = f' (of which its region and binning leave {wide // across} x {tall // down})'
        raise MessageError(
            f'it describes {camera.width} x {camera.height} pixels{part}, but the image has '
            f'{width} x {height}: publish the camera_info of this image'
        )
    # A binned pixel is the mean of a block, so its centre is that of the block, and edges of the
    # image stay edges. (image_geometry takes the centre of its first pixel.)
    part_of_sensor = camera.cropped(roi.x_offset, roi.y_offset, width * across, height * down)
    return part_of_sensor.scaled(width, height)


def same_calibration(first: CameraInfo, second: CameraInfo) -> bool:
    """Tell whether two CameraInfo describe the same camera, whatever their headers."""
    plain = ('width', 'height', 'distortion_model', 'binning_x', 'binning_y', 'roi')
    return all(getattr(first, name) == getattr(second, name) for name in plain) and all(
        np.array_equal(getattr(first, name), getattr(second, name)) for name in 'kprd'
    )


def info_of(camera: CameraModel, source: CameraInfo | None = None) -> CameraInfo:
    """Return the CameraInfo of images of a camera, with an empty header.

    Region and binning are resolved, as not every consumer looks at them. Rectified images have
    their P for K and no distortion, so that it does not matter which of them a consumer takes.

    Args:
        camera: the camera.
        source: where it came from; a raw image keeps the R of it.
    """
    k = camera.P[:, :3] if camera.rectified and camera.P is not None else camera.K
    p = np.column_stack([k, np.zeros(3)]) if camera.P is None else camera.P
    r = np.eye(3).ravel() if source is None or camera.rectified else source.r
    return CameraInfo(
        height=camera.height,
        width=camera.width,
        distortion_model=camera.model if camera.distorted else 'plumb_bob',
        d=camera.D.tolist() if camera.distorted else [0.0] * 5,
        k=k.ravel(),
        r=r,
        p=p.ravel(),
    )


# ---- arrays out ---------------------------------------------------------------------------------


def array_to_image(pixels: np.ndarray, encoding: str, header: Header) -> Image:
    """Return an image message of an (H, W) or (H, W, C) array in the byte order of this machine."""
    pixels = np.ascontiguousarray(pixels)
    height, width = pixels.shape[:2]
    message = Image(
        header=header,
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=int(_BIG_ENDIAN),
        step=pixels.nbytes // height,
    )
    fill(message.data, pixels)
    return message


def packed_to_cloud(packed: np.ndarray, header: Header, is_dense: bool) -> PointCloud2:
    """Return the cloud of points that `pack_points` packed; dense if none of them is NaN."""
    height, width, step = packed.shape
    names = 'xyz' if step == XYZ_STEP else ('x', 'y', 'z', 'rgb')
    message = PointCloud2(
        header=header,
        height=height,
        width=width,
        fields=[
            PointField(name=name, offset=4 * index, datatype=PointField.FLOAT32, count=1)
            for index, name in enumerate(names)
        ],
        is_bigendian=False,
        point_step=step,
        row_step=step * width,
        is_dense=is_dense,
    )
    fill(message.data, packed)
    return message


def packed_of(message: PointCloud2) -> np.ndarray:
    """Return the memory of a cloud that `packed_to_cloud` made, as (h, w, step) uint8."""
    shape = message.height, message.width, message.point_step
    return np.frombuffer(message.data, np.uint8).reshape(shape)


def scan_message(scan: Scan, header: Header, max_range: float) -> LaserScan:
    """Return a scan; its header names the base frame."""
    message = LaserScan(
        header=header,
        angle_min=scan.angle_min,
        angle_max=scan.angle_max,
        angle_increment=scan.angle_increment,
        range_min=0.0,
        range_max=max_range,
    )
    fill(message.ranges, scan.ranges)
    return message


def info_for(message: CameraInfo, header: Header) -> CameraInfo:
    """Return the CameraInfo with another header, sharing everything else."""
    return CameraInfo(
        header=header,
        height=message.height,
        width=message.width,
        distortion_model=message.distortion_model,
        d=message.d,
        k=message.k,
        r=message.r,
        p=message.p,
        binning_x=message.binning_x,
        binning_y=message.binning_y,
        roi=message.roi,
    )


def fill(data: array.array, values: np.ndarray) -> None:
    """Append the memory of an array to an empty numeric sequence of a message, in one copy.

    Into the array that the message has: what is assigned to the field is copied by the generated
    class, an ndarray or memoryview element by element (50-90 ms for a megabyte).
    """
    data.frombytes(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
