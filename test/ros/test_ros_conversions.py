"""Messages to arrays and back."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from harness import (
    cloud_fields,
    cloud_message,
    header,
    image_message,
    image_pixels,
    info_message,
    padded,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from sensor_msgs.msg import (
    CameraInfo,
    Image,
    LaserScan,
    PointField,
    Range,
    RegionOfInterest,
)
from std_msgs.msg import Header

from briges_ros.point_cloud import pack_points
from briges_ros.ros.conversions import (
    MessageError,
    array_to_image,
    camera_from_info,
    cloud_to_points,
    image_to_depth,
    info_for,
    info_of,
    packed_to_cloud,
    range_to_reading,
    same_calibration,
    scan_message,
    scan_to_polar,
    stamp_seconds,
)
from briges_ros.scan import Scan

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
K = [[500.0, 0, 3], [0, 500, 2], [0, 0, 1]]
K_FLAT = [500.0, 0, 3, 0, 500, 2, 0, 0, 1]
P_FLAT = [500.0, 0, 3, 0, 0, 500, 2, 0, 0, 0, 1, 0]


@pytest.mark.parametrize('order', ['<', '>'])
@pytest.mark.parametrize('padding', [0, 3])
@pytest.mark.parametrize(
    ('encoding', 'code', 'unit'), [('16UC1', 'u2', 0.001), ('32FC1', 'f4', 1.0)]
)
def test_depth_encodings(encoding: str, code: str, unit: float, padding: int, order: str) -> None:
    metres = np.array([[0.5, 1.25, 0.0], [2.0, 3.0, 60.0]])
    message = image_message((metres / unit).astype(order + code), 1.0, encoding)
    message.is_bigendian = int(order == '>')
    depth = image_to_depth(padded(message, padding))
    assert depth.dtype == np.float32
    assert depth.dtype.isnative
    known = metres > 0
    np.testing.assert_allclose(depth[known], metres[known], rtol=1e-6)
    if encoding == '16UC1':
        assert np.isnan(depth[~known]).all()


def change(message: Image, **fields: object) -> Image:
    for name, value in fields.items():
        setattr(message, name, value)
    return message


@pytest.mark.parametrize(
    ('fields', 'says'),
    [
        ({'width': 0}, '0 x 2'),
        ({'step': 5}, 'takes 6'),
        ({'data': b''}, 'data holds 0 bytes'),
        ({'height': 2**31}, 'data holds 12 bytes'),
    ],
)
def test_bad_depth_is_refused(fields: dict[str, object], says: str) -> None:
    message = image_message(np.ones((2, 3), np.uint16), 1.0, '16UC1')
    with pytest.raises(MessageError, match=says):
        image_to_depth(change(message, **fields))


def test_colour_is_not_depth() -> None:
    with pytest.raises(MessageError, match='publish 16UC1'):
        image_to_depth(image_message(RGB, 1.0))


POINTS = np.arange(12, dtype=np.float32).reshape(4, 3)


def test_clouds() -> None:
    np.testing.assert_array_equal(cloud_to_points(cloud_message(POINTS, 1.0)), POINTS)


@pytest.mark.parametrize('order', ['<', '>'])
def test_organised_double_cloud_with_padding(order: str) -> None:
    record = np.dtype(
        {
            'names': ['z', 'x', 'y'],
            'formats': [order + 'f8'] * 3,
            'offsets': [1, 9, 25],
            'itemsize': 40,
        }
    )
    rows = np.zeros((2, 3), record)  # the last point of each row is padding
    for axis, name in enumerate('xyz'):
        rows[name][:, :2] = POINTS[:, axis].reshape(2, 2)
    message = cloud_message(POINTS, 1.0)
    message.height, message.width = 2, 2
    message.point_step, message.row_step = 40, 120
    message.is_bigendian = order == '>'
    message.fields = [
        PointField(name=name, offset=record.fields[name][1], datatype=PointField.FLOAT64, count=1)
        for name in record.names
    ]
    message.data = rows.tobytes()
    np.testing.assert_array_equal(cloud_to_points(message), POINTS)


def test_points_that_are_not_finite_stay() -> None:
    points = POINTS.copy()
    points[1, 2] = np.nan
    np.testing.assert_array_equal(cloud_to_points(cloud_message(points, 1.0)), points)


def bad_cloud(kind: str) -> object:
    message = cloud_message(POINTS, 1.0)
    if kind == 'empty':
        return cloud_message(POINTS[:0], 1.0)
    if kind == 'no z':
        message.fields = [field for field in message.fields if field.name != 'z']
    elif kind == 'no fields':
        message.fields = []
    elif kind == 'integers':
        for field in message.fields:
            field.datatype = PointField.INT32
    elif kind == 'mixed':
        message.fields[0].datatype = PointField.FLOAT64
    elif kind == 'vectors':
        message.fields[0].count = 3
    elif kind == 'beyond':
        message.fields[0].offset = 14
    elif kind == 'short':
        message.data = message.data[:-1]
    elif kind == 'row_step':
        message.row_step -= 1
    elif kind == 'width':
        message.width = 2**31
    return message


@pytest.mark.parametrize(
    ('kind', 'says'),
    [
        ('empty', 'the cloud is empty'),
        ('no z', "no field z .it has 'x, y, intensity'.: publish x, y and z"),
        ('no fields', 'it has none'),
        ('integers', 'FLOAT32'),
        ('mixed', 'FLOAT32'),
        ('vectors', 'count over 1'),
        ('beyond', 'point_step is 16'),
        ('short', 'data holds 63 bytes'),
        ('row_step', 'row_step is 63'),
        ('width', 'row_step is 64'),
    ],
)
def test_bad_clouds_are_refused(kind: str, says: str) -> None:
    with pytest.raises(MessageError, match=says):
        cloud_to_points(bad_cloud(kind))


SCAN = {
    'angle_min': -0.5,
    'angle_max': 0.5,
    'angle_increment': 0.25,
    'range_min': 0.1,
    'range_max': 10.0,
    'ranges': [1.0, 2.0, float('nan'), float('inf'), 5.0],
}


def test_scans() -> None:
    scan = scan_to_polar(LaserScan(**SCAN, time_increment=0.01))
    np.testing.assert_array_equal(scan.ranges, np.float32(SCAN['ranges']))
    np.testing.assert_allclose(scan.angles, [-0.5, -0.25, 0, 0.25, 0.5])
    assert (scan.min_range, scan.max_range) == (pytest.approx(0.1), 10.0)
    assert scan.duration == pytest.approx(0.04)
    # Clockwise, an angle_max that is one ray on, and a time_increment that cannot be
    turned = {**SCAN, 'angle_min': 0.5, 'angle_max': -0.75, 'angle_increment': -0.25}
    scan = scan_to_polar(LaserScan(**turned, time_increment=float('nan')))
    np.testing.assert_allclose(scan.angles, [0.5, 0.25, 0, -0.25, -0.5])
    assert scan.duration == 0.0


@pytest.mark.parametrize(
    ('fields', 'says'),
    [
        ({'ranges': []}, 'the scan is empty'),
        ({'angle_increment': 0.0}, 'angle_increment that is not zero'),
        ({'angle_min': float('nan')}, 'finite radians'),
        ({'angle_max': 3.0}, 'ranges holds 5 values, but its angles are for 15'),
        ({'angle_increment': -0.25}, 'its angles are for -3'),
        ({'range_max': 0.0}, 'range_min is .* and range_max 0.0'),
        ({'range_min': float('nan')}, 'range_min is nan'),
    ],
)
def test_bad_scans_are_refused(fields: dict[str, object], says: str) -> None:
    with pytest.raises(MessageError, match=says):
        scan_to_polar(LaserScan(**{**SCAN, **fields}))


RANGE = {'field_of_view': 0.4, 'min_range': 0.2, 'max_range': 4.0, 'range': 1.5}


def test_ranges() -> None:
    reading = range_to_reading(Range(**RANGE))
    assert (reading.distance, reading.min_range, reading.max_range) == pytest.approx((1.5, 0.2, 4))
    assert reading.field_of_view == pytest.approx(0.4)
    assert reading.sigma is None
    known = range_to_reading(Range(**RANGE, variance=0.04))
    assert known.sigma == pytest.approx(0.2)


@pytest.mark.parametrize(
    ('sent', 'means'),
    [(-np.inf, -np.inf), (np.inf, np.inf), (4.0, -np.inf), (1.0, -np.inf), (5.0, np.inf)],
)
def test_a_fixed_distance_is_no_measurement(sent: float, means: float) -> None:
    message = Range(**{**RANGE, 'min_range': 4.0, 'range': sent})
    assert range_to_reading(message).distance == means


@pytest.mark.parametrize(
    ('fields', 'says'),
    [
        ({'field_of_view': -0.1}, 'field_of_view is'),
        ({'field_of_view': float('nan')}, 'field_of_view is nan'),
        ({'max_range': 0.1}, 'min_range is .* and max_range'),
        ({'min_range': float('nan')}, 'min_range is nan'),
    ],
)
def test_bad_ranges_are_refused(fields: dict[str, object], says: str) -> None:
    with pytest.raises(MessageError, match=says):
        range_to_reading(Range(**{**RANGE, **fields}))


def test_camera() -> None:
    camera = camera_from_info(info_message(np.array(K), 7, 5, 1.0, d=(0.1, 0, 0, 0, 0)))
    assert (camera.width, camera.height, camera.fx, camera.cx) == (7, 5, 500.0, 3.0)
    assert camera.distorted


def test_rectified_camera_takes_p() -> None:
    message = info_message(np.array(K), 7, 5, 1.0, d=(0.1, 0, 0, 0, 0))
    message.p[0] = 400.0
    camera = camera_from_info(message, rectified=True)
    assert camera.fx == 400.0
    assert not camera.distorted


@pytest.mark.parametrize(
    ('fields', 'rectified', 'says'),
    [
        ({'k': np.zeros(9)}, False, 'K is zero'),
        ({'k': np.full(9, np.nan)}, False, 'K holds a value that is not finite'),
        ({'p': np.zeros(12)}, True, 'image_is_rectified'),
        ({'p': np.full(12, np.nan)}, True, 'P holds a value that is not finite'),
        ({'width': 0}, False, 'size'),
        ({'distortion_model': 'mystery'}, False, 'mystery'),
        ({'d': [0.1]}, False, 'coefficients'),
        ({'d': [float('nan')] * 5}, False, 'D holds'),
    ],
)
def test_bad_cameras_are_refused(fields: dict[str, object], rectified: bool, says: str) -> None:
    message = change(info_message(np.array(K), 7, 5, 1.0), **fields)
    with pytest.raises(MessageError, match=says):
        camera_from_info(message, rectified)


def part_info(binning: tuple[int, int], roi: tuple[int, int, int, int]) -> CameraInfo:
    """Of a sensor of 640 x 480 pixels."""
    message = info_message(np.array([[500.0, 0, 311], [0, 490, 237], [0, 0, 1]]), 640, 480, 1.0)
    message.binning_x, message.binning_y = binning
    names = ('x_offset', 'y_offset', 'width', 'height')
    message.roi = RegionOfInterest(**dict(zip(names, roi, strict=True)))
    return message


@pytest.mark.parametrize('rectified', [False, True])
@pytest.mark.parametrize(
    ('binning', 'roi', 'size'),
    [
        ((0, 0), (0, 0, 0, 0), (640, 480)),
        ((2, 2), (0, 0, 0, 0), (320, 240)),
        ((1, 4), (0, 0, 640, 480), (640, 120)),
        ((0, 0), (100, 60, 300, 200), (300, 200)),
        ((2, 1), (100, 60, 301, 200), (150, 200)),
        ((2, 1), (100, 60, 301, 200), (151, 200)),  # rounded up
    ],
)
def test_binning_and_region_of_interest(
    binning: tuple[int, int], roi: tuple[int, int, int, int], size: tuple[int, int], rectified: bool
) -> None:
    camera = camera_from_info(part_info(binning, roi), rectified, size)
    assert (camera.width, camera.height) == size
    point = np.array([[0.1, -0.2, 1.3]])
    (u, v) = camera_from_info(part_info((0, 0), (0, 0, 0, 0)), rectified).project(point)[0][0]
    # A pixel of the image is a block of the sensor's, from the region's corner on.
    step = max(1, binning[0]), max(1, binning[1])
    expected = (u + 0.5 - roi[0]) / step[0] - 0.5, (v + 0.5 - roi[1]) / step[1] - 0.5
    np.testing.assert_allclose(camera.project(point)[0][0], expected)


def test_what_is_said_of_the_sensor_does_not_change_a_calibration_of_the_images() -> None:
    message = part_info((2, 2), (0, 0, 0, 0))
    assert camera_from_info(message, size=(640, 480)).fx == 500.0


@pytest.mark.parametrize(
    ('binning', 'roi', 'says'),
    [
        ((0, 0), (0, 0, 0, 0), 'describes 640 x 480 pixels, but the image has 200 x 100'),
        ((2, 2), (0, 0, 0, 0), 'its region and binning leave 320 x 240.*, but the image has 200'),
        ((0, 0), (0, 0, 200, 101), 'leave 200 x 101.*, but'),
        ((0, 0), (500, 0, 200, 100), 'publish the camera_info of this image'),  # not on the sensor
        ((0, 0), (2**32 - 1, 0, 200, 100), 'publish the camera_info of this image'),
        ((2**32 - 1, 1), (0, 0, 0, 0), 'leave 0 x 480'),
    ],
)
def test_images_of_another_size_are_refused(
    binning: tuple[int, int], roi: tuple[int, int, int, int], says: str
) -> None:
    with pytest.raises(MessageError, match=says):
        camera_from_info(part_info(binning, roi), size=(200, 100))


@pytest.mark.parametrize(
    ('model', 'd'),
    [('plumb_bob', [-0.2, 0.1, 0, 0, 0]), ('rational_polynomial', [0.1] * 8), ('equidistant', [])],
)
def test_distortion_models(model: str, d: list[float]) -> None:
    message = change(info_message(np.array(K), 7, 5, 1.0), distortion_model=model, d=d)
    camera = camera_from_info(message)
    assert (camera.model, camera.D.tolist(), camera.distorted) == (model, d, True)
    assert info_of(camera, message) == change(message, header=Header())


@settings(max_examples=300, deadline=None)
@given(
    numbers=st.lists(st.floats(), min_size=21, max_size=21),
    sane=st.booleans(),
    d=st.lists(st.floats(), max_size=15),
    model=st.sampled_from(['plumb_bob', 'rational_polynomial', 'equidistant', 'none', '', 'x']),
    whole=st.lists(st.sampled_from([0, 1, 2, 7, 640, 2**32 - 1]), min_size=8, max_size=8),
    rectified=st.booleans(),
    size=st.none() | st.tuples(st.integers(1, 700), st.integers(1, 700)),
)
def test_any_camera_info(
    numbers: list[float],
    sane: bool,
    d: list[float],
    model: str,
    whole: list[int],
    rectified: bool,
    size: tuple[int, int] | None,
) -> None:
    message = CameraInfo(width=whole[0], height=whole[1], distortion_model=model, d=d)
    message.k, message.p = (K_FLAT, P_FLAT) if sane else (numbers[:9], numbers[9:])
    message.binning_x, message.binning_y = whole[2:4]
    message.roi = RegionOfInterest(
        x_offset=whole[4], y_offset=whole[5], width=whole[6], height=whole[7]
    )
    try:
        camera = camera_from_info(message, rectified, size)
    except MessageError as error:
        assert '\n' not in str(error)
    else:
        assert (camera.width, camera.height) == (size or (whole[0], whole[1]))
        info_of(camera, message)


def test_same_calibration() -> None:
    first, second = (info_message(np.array(K), 7, 5, stamp) for stamp in (1.0, 2.0))
    assert same_calibration(first, second)
    for name in 'kprd':
        getattr(second, name)[0] += 1
        assert not same_calibration(first, second), name
        getattr(second, name)[0] -= 1
    second.binning_x = 2
    assert not same_calibration(first, second)
    second.binning_x = 0
    second.roi.x_offset = 1
    assert not same_calibration(first, second)


def test_info_of_a_raw_camera_is_what_it_was_made_of() -> None:
    message = info_message(np.array(K), 7, 5, 1.0, d=(0.1, 0, 0, 0, 0))
    message.r[1] = 0.01  # of a stereo camera
    message.p[3] = -20.0
    assert info_of(camera_from_info(message), message) == change(message, header=Header())
    message.p = np.zeros(12)
    assert info_of(camera_from_info(message), message).p.tolist() == P_FLAT


def test_info_of_rectified_images_says_one_thing() -> None:
    message = info_message(np.array(K), 7, 5, 1.0, d=(0.1, 0, 0, 0, 0))
    message.r[1] = 0.01
    message.p[:4] = [400.0, 0, 3.5, -20.0]
    info = info_of(camera_from_info(message, rectified=True), message)
    assert info.k.tolist() == [400, 0, 3.5, 0, 500, 2, 0, 0, 1]
    assert not any(info.d)
    assert info.r.tolist() == np.eye(3).ravel().tolist()
    assert info.p.tolist() == message.p.tolist()


def test_info_for_changes_the_header_alone() -> None:
    message = info_message(np.array(K), 7, 5, 1.0, d=(0.1, 0, 0, 0, 0))
    message.binning_x = 2
    copy = info_for(message, header(2.0, 'other'))
    assert copy.header == header(2.0, 'other')
    copy.header = message.header
    assert copy == message


@pytest.mark.parametrize(
    ('array', 'encoding'),
    [
        (RGB, 'rgb8'),
        (np.arange(6, dtype=np.float32).reshape(2, 3), '32FC1'),
        (np.arange(12, dtype=np.uint16).reshape(3, 4)[:, ::2], '16UC1'),
    ],
)
def test_array_to_image(array: np.ndarray, encoding: str) -> None:
    message = array_to_image(array, encoding, header(3.0))
    assert (message.height, message.width) == array.shape[:2]
    assert message.step * message.height == len(message.data)
    assert bool(message.is_bigendian) == (sys.byteorder == 'big')
    channels = 1 if array.ndim == 2 else array.shape[2]
    np.testing.assert_array_equal(image_pixels(message, array.dtype.type, channels), array)


def test_packed_to_cloud() -> None:
    points = np.random.default_rng(1).random((5, 7, 3), np.float32)
    points[0, 0] = np.nan
    message = packed_to_cloud(pack_points(points, RGB), header(3.0), is_dense=False)
    fields = cloud_fields(message)
    assert not message.is_dense
    for axis, name in enumerate('xyz'):
        np.testing.assert_array_equal(fields[name], points[..., axis])
    bgr = np.ascontiguousarray(fields['rgb']).view(np.uint8).reshape(5, 7, 4)
    np.testing.assert_array_equal(bgr[..., 2::-1], RGB)


def test_an_empty_cloud() -> None:
    """What stands in the way when nothing does: a message, and not none."""
    message = packed_to_cloud(
        pack_points(np.empty((1, 0, 3), np.float32)), header(3.0), is_dense=True
    )
    assert (message.height, message.width, message.row_step, len(message.data)) == (1, 0, 0, 0)
    assert [field.name for field in message.fields] == ['x', 'y', 'z']


def test_scan_message() -> None:
    scan = Scan(-0.5, 0.25, np.array([1.0, np.nan, np.inf, 2.0, 3.0], np.float32))
    message = scan_message(scan, header(3.0, 'base_link'), 10.0)
    assert message.header == header(3.0, 'base_link')
    assert (message.angle_min, message.angle_increment, message.angle_max) == (-0.5, 0.25, 0.5)
    assert (message.range_min, message.range_max) == (0.0, 10.0)
    np.testing.assert_array_equal(message.ranges, scan.ranges)


def test_stamp_seconds() -> None:
    assert stamp_seconds(header(12.25).stamp) == 12.25
