"""Messages of sparse sensors to anchors: real subscriptions, no process, TF injected."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from builtin_interfaces.msg import Time
from harness import CAMERA_FRAME, cloud_message, header, image_message, info_message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sensor_msgs.msg import CameraInfo, LaserScan, PointField, Range

from briges_ros.alignment import Anchors
from briges_ros.camera import CameraModel
from briges_ros.ros import transforms as transforms_module
from briges_ros.ros.parameters import PARAMETERS, Settings
from briges_ros.ros.sparse_inputs import FrameContext, SparseInputs
from briges_ros.ros.throttle import ThrottledLog
from briges_ros.ros.transforms import TransformError, Transforms, matrix

K = [[500.0, 0, 319.5], [0, 500, 239.5], [0, 0, 1]]
CAMERA = CameraModel(640, 480, K)
DEFAULTS: dict[str, Any] = {p.name: p.default for p in PARAMETERS}
# x forward, y left, z up, as scanners have it, in the optical frame of a camera that looks forward.
FORWARD = (0.0, 0.0, 0.0, 0.5, -0.5, 0.5, 0.5)
SENSOR = 'sensor'


class Log:
    """What an rclpy logger was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.info = self.warning = self.error = self.lines.append


class Sparse:
    """SparseInputs of a real node, with messages handed straight to its subscriptions."""

    def __init__(self) -> None:
        import rclpy

        self.node = rclpy.create_node('sparse_inputs')
        self.transforms = Transforms(self.node)
        self.log = Log()
        self.inputs = SparseInputs(self.node, self.transforms, ThrottledLog(self.log, 0.0))
        self.callbacks: dict[str, Callable[[Any], None]] = {
            subscription.topic_name: subscription.callback
            for subscription in self.inputs._subscriptions
        }

    def receive(self, topic: str, message: Any) -> None:
        self.callbacks[f'/sparse/{topic}'](message)

    def anchors(self, stamp: float, **parameters: Any) -> Anchors | None:
        given = {'sparse.extrinsics': FORWARD, **parameters}
        values = {**DEFAULTS, **{name.replace('__', '.'): v for name, v in given.items()}}
        return self.inputs.anchors(FrameContext(header(stamp), CAMERA, Settings.of(values)))

    def left_out(self, source: str) -> dict[str, int]:
        (report,) = (report for report in self.inputs.reports if report.source == source)
        return dict(report.left_out)

    def close(self) -> None:
        self.inputs.close()
        self.transforms.close()
        self.node.destroy_node()


@pytest.fixture
def sparse(ros: None) -> Iterator[Sparse]:
    sparse = Sparse()
    yield sparse
    sparse.close()


def scan_message(ranges: Any, stamp: float, **fields: Any) -> LaserScan:
    """Rays from -20 to 20 degrees."""
    first, last = np.radians((-20.0, 20.0))
    return LaserScan(
        header=header(stamp, SENSOR),
        angle_min=first,
        angle_max=last,
        angle_increment=(last - first) / (len(ranges) - 1),
        range_min=0.1,
        range_max=30.0,
        ranges=np.asarray(ranges, np.float32),
        **fields,
    )


def range_message(distance: float, stamp: float, frame_id: str = SENSOR, **fields: Any) -> Range:
    limits = {'field_of_view': 0.3, 'min_range': 0.1, 'max_range': 5.0}
    return Range(header=header(stamp, frame_id), range=distance, **{**limits, **fields})


def points_ahead(count: int = 50) -> np.ndarray:
    """Points in view of the camera, in the sensor's frame."""
    rng = np.random.default_rng(0)
    forward = rng.uniform(2, 20, count)
    aside, up = (rng.uniform(-0.3, 0.3, count) * forward for _ in range(2))
    return np.stack([forward, aside, up], axis=1).astype(np.float32)


# ---- the four sources ----------------------------------------------------------------------------


def test_a_scan_becomes_anchors_in_its_plane(sparse: Sparse) -> None:
    sparse.receive('scan', scan_message(np.full(41, 4.0), 1.0))
    anchors = sparse.anchors(1.0)
    assert anchors is not None and len(anchors) == 41
    np.testing.assert_allclose(anchors.v, 239.5, atol=1e-2)
    np.testing.assert_allclose(anchors.depth, 4 * np.cos(np.radians(np.arange(-20, 21))), rtol=1e-4)
    # 0.03 + 0.01 * range, of which the part along Z counts
    np.testing.assert_allclose(anchors.sigma, 0.07 * anchors.depth / 4, rtol=1e-4)


def test_a_scan_brings_its_limits(sparse: Sparse) -> None:
    ranges = [0.05, 40.0, np.inf, -np.inf, np.nan, 0.0, 9.0, 3.0]
    sparse.receive('scan', scan_message(ranges, 1.0))
    anchors = sparse.anchors(1.0, sparse__scan__max_range=8.0)
    assert anchors is not None and len(anchors) == 1
    assert sparse.left_out('scan') == {
        'too_near': 2, 'too_far': 3, 'not_finite': 1, 'not_positive': 1
    }  # fmt: skip


def test_each_sensor_on_a_topic_has_its_say(sparse: Sparse) -> None:
    """Four sonars on one topic; one is silent by now, one sees nothing."""
    for stamp, frame, distance in (
        (1.0, 'front', 2.0), (1.0, 'left', 3.0), (1.01, 'right', np.inf), (0.5, 'rear', 1.0)
    ):  # fmt: skip
        sparse.receive('range', range_message(distance, stamp, frame))
    anchors = sparse.anchors(1.0)
    assert anchors is not None and anchors.measurements == 2
    assert sparse.left_out('range') == {'too_far': 1}
    assert sparse.inputs.reports[0].anchors == 2


def test_a_reading_brings_its_own_variance(sparse: Sparse) -> None:
    sparse.receive('range', range_message(2.0, 1.0, field_of_view=0.0, variance=0.25))
    anchors = sparse.anchors(1.0)
    assert anchors is not None
    np.testing.assert_allclose(anchors.sigma, [0.5], rtol=1e-5)


def test_a_fixed_distance_ranger_gives_no_anchor(sparse: Sparse) -> None:
    sparse.receive('range', range_message(-np.inf, 1.0, min_range=5.0))
    anchors = sparse.anchors(1.0)
    assert anchors is not None and len(anchors) == 0
    assert sparse.left_out('range') == {'too_near': 1}


def test_sources_are_merged_by_weight_and_pose(sparse: Sparse) -> None:
    sparse.receive('points', cloud_message(points_ahead(), 1.0, SENSOR))
    sparse.receive('scan', scan_message(np.full(41, 4.0), 1.02))
    sparse.receive('range', range_message(2.0, 0.95))
    nearer = (0.0, 0.0, -1.0, *FORWARD[3:])
    anchors = sparse.anchors(1.0, sparse__scan__extrinsics=nearer, sparse__scan__weight=0.25)
    assert anchors is not None and anchors.measurements == 50 + 41 + 1
    scanned = anchors.weight == 0.25
    assert scanned.sum() == 41
    assert anchors.depth[scanned].max() == pytest.approx(3.0, rel=1e-4)
    assert [report.source for report in sparse.inputs.reports] == ['points', 'scan', 'range']
    delays = [report.delay for report in sparse.inputs.reports]
    np.testing.assert_allclose(delays, [0.0, -0.02, 0.05], atol=1e-6)
    assert sparse.inputs.note == ''


def test_noise_of_a_source(sparse: Sparse) -> None:
    """A stereo camera: its noise grows with the square of the depth."""
    depth = np.full((480, 640), 4.0, np.float32)
    sparse.receive('depth', image_message(depth, 1.0, '32FC1'))
    anchors = sparse.anchors(1.0, sparse__depth__noise=(0.001, 0.0, 0.005))
    assert anchors is not None
    np.testing.assert_allclose(anchors.sigma, 0.001 + 0.005 * 16, rtol=1e-5)


def test_few_pixels_of_another_camera_are_all_taken(sparse: Sparse) -> None:
    """A depth image that is mostly holes: none of its pixels may be skipped."""
    depth = np.zeros((240, 320), np.float32)
    rows, columns = np.random.default_rng(0).integers(40, 200, (2, 300))
    depth[rows, columns] = 3.0
    other = np.diag([250.0, 250.0, 1.0])
    other[:2, 2] = 159.5, 119.5
    sparse.receive('camera_info', info_message(other, 320, 240, 1.0))
    sparse.receive('depth', image_message(depth, 1.0, '32FC1', SENSOR))
    anchors = sparse.anchors(1.0, sparse__extrinsics=(0.0, 0, 0, 0, 0, 0, 1))
    assert anchors is not None and len(anchors) == np.count_nonzero(depth)
    np.testing.assert_allclose(
        np.sort(anchors.u), np.sort(np.nonzero(depth)[1] * 2 + 0.5), atol=0.1
    )
    assert sparse.left_out('depth') == {'not_positive': depth.size - len(anchors)}


# ---- what is wrong -------------------------------------------------------------------------------


def test_measurements_are_counted_by_reason_and_told_once(sparse: Sparse) -> None:
    good = points_ahead()
    bad = np.float32([[np.nan, 0, 0], [0, 0, 0], [0, 0, 0], [-5, 0, 0], [3, 9, 0]])
    cloud = np.concatenate([good, bad, good[:4], [[500.0, 0, 0]], [[0.01, 0, 0]]])
    for stamp in (1.0, 1.1):
        sparse.receive('points', cloud_message(cloud, stamp, SENSOR))
        anchors = sparse.anchors(stamp)
        assert anchors is not None and len(anchors) == 50
        assert sparse.left_out('points') == {
            'not_finite': 1,
            'not_positive': 2,
            'too_near': 1,
            'too_far': 1,
            'behind_camera': 1,
            'outside_image': 1,
            'duplicate': 4,
        }
        assert sparse.inputs.note == ''
    for told in ('1 measurements are not finite', '2 measurements have a range', '4 measurements'):
        assert sum(told in line for line in sparse.log.lines) == 1, sparse.log.lines


def test_extrinsics_upside_down(sparse: Sparse) -> None:
    sparse.receive('points', cloud_message(points_ahead(), 1.0, SENSOR))
    behind = (0.0, 0.0, 0.0, 0.5, 0.5, -0.5, 0.5)
    anchors = sparse.anchors(1.0, sparse__points__extrinsics=behind)
    assert anchors is not None and len(anchors) == 0
    assert sparse.left_out('points') == {'behind_camera': 50}
    assert "50 of 50 measurements are behind the camera: check that its frame 'sensor'" in (
        sparse.inputs.note
    )
    assert sparse.inputs.note in sparse.log.lines


@pytest.mark.parametrize(
    ('apart', 'reason', 'says'),
    [(-0.5, 'too_old', '0.50 s older'), (0.5, 'from_the_future', '0.50 s younger')],
)
def test_stamps_that_do_not_fit(sparse: Sparse, apart: float, reason: str, says: str) -> None:
    sparse.receive('points', cloud_message(points_ahead(), 5.0 + apart, SENSOR))
    sparse.receive('scan', scan_message(np.full(41, 4.0), 5.0))
    anchors = sparse.anchors(5.0)
    assert anchors is not None and len(anchors) == 41  # the other source goes on
    assert sparse.left_out('points') == {reason: 1}
    assert np.isnan(sparse.inputs.reports[0].delay)
    assert says in sparse.inputs.note and "'/sparse/points'" in sparse.inputs.note
    assert sparse.inputs.note.count('/sparse/points') == 1


def test_messages_that_cannot_be_used(sparse: Sparse) -> None:
    cloud = cloud_message(points_ahead(), 1.0, SENSOR)
    cloud.fields = cloud.fields[:2]
    sparse.receive('points', cloud)
    sparse.receive('scan', scan_message(np.full(41, 4.0), 1.0, time_increment=np.nan))
    sparse.receive('range', range_message(2.0, 1.0, field_of_view=-1.0))
    anchors = sparse.anchors(1.0, sparse__extrinsics=None, sparse__scan__extrinsics=FORWARD)
    assert anchors is not None and len(anchors) == 41
    assert sparse.left_out('points') == {'malformed': 1}
    assert sparse.left_out('range') == {'malformed': 1}
    sparse.receive('range', range_message(2.0, 1.1))
    assert sparse.anchors(1.1, sparse__extrinsics=None) is None
    assert sparse.left_out('range') == {'no_pose': 1}
    assert "'/sparse/range': its frame 'sensor' is not the image's frame" in sparse.inputs.note
    assert "'sparse.points.extrinsics'" in sparse.inputs.note


def test_senders_that_make_up_frames_do_not_fill_the_memory(sparse: Sparse) -> None:
    for number in range(100):
        sparse.receive('range', range_message(2.0, 1.0, f'frame {number}'))
    anchors = sparse.anchors(1.0)
    assert anchors is not None and anchors.measurements == 16


# ---- motion --------------------------------------------------------------------------------------


class Buffer:
    """TF of a camera that moves in odom by `pose(seconds)`, T_odom_camera; in place of tf2_ros."""

    def __init__(self, pose: Callable[[float], np.ndarray]) -> None:
        self._pose = pose

    def lookup_transform_full(
        self, target: str, target_time: Any, source: str, source_time: Any, fixed: str
    ) -> Any:
        if (target, source, fixed) != (CAMERA_FRAME, CAMERA_FRAME, 'odom'):
            raise LookupError(f'"{fixed}" does not exist')
        then, now = (self._pose(time.nanoseconds * 1e-9) for time in (source_time, target_time))
        T = np.linalg.inv(now) @ then
        x, y, z = cv2.Rodrigues(T[:3, :3])[0].ravel()
        angle = max(float(np.hypot(np.hypot(x, y), z)), 1e-12)
        half = np.sin(angle / 2) / angle
        return SimpleNamespace(
            transform=SimpleNamespace(
                translation=SimpleNamespace(x=T[0, 3], y=T[1, 3], z=T[2, 3]),
                rotation=SimpleNamespace(x=x * half, y=y * half, z=z * half, w=np.cos(angle / 2)),
            )
        )


def driving(seconds: float) -> np.ndarray:
    """10 m/s along z of odom, and 1 rad/s about the vertical; at 1 s it looks along z."""
    half = (seconds - 1.0) / 2
    pose = matrix((0.0, 0.0, 0.0), (0.0, np.sin(half), 0.0, np.cos(half)))
    pose[:3, 3] = 0.3, 0.0, 10.0 * seconds
    return pose


@pytest.fixture
def moving(sparse: Sparse, monkeypatch: pytest.MonkeyPatch) -> Sparse:
    names = {'TransformException': LookupError, 'ExtrapolationException': LookupError}
    monkeypatch.setattr(transforms_module, 'tf2_ros', SimpleNamespace(**names))
    sparse.transforms._buffer = Buffer(driving)
    return sparse


def test_motion_maps_what_stands_still(moving: Sparse) -> None:
    motion = moving.transforms.motion(CAMERA_FRAME, 1_000_000_000, 1_100_000_000, 'odom')
    assert motion is not None
    in_odom = np.array([2.0, -1.0, 30.0, 1.0])
    before, after = (np.linalg.inv(driving(t)) @ in_odom for t in (1.0, 1.1))
    np.testing.assert_allclose(motion @ before, after, atol=1e-6)
    # No time between, and a stamp of zero, which to TF is the latest
    assert moving.transforms.motion(CAMERA_FRAME, 5, 5, 'odom') is None
    assert moving.transforms.motion(CAMERA_FRAME, 0, 5, 'odom') is None
    with pytest.raises(TransformError, match=r"fixed frame 'map' .*does not exist"):
        moving.transforms.motion(CAMERA_FRAME, 1, 5, 'map')


def measured_at(time: float, in_odom: np.ndarray) -> np.ndarray:
    """Points of odom (N, 3) as the sensor (x forward) has them at a time."""
    T = np.linalg.inv(driving(time) @ matrix(FORWARD[:3], FORWARD[3:]))
    return in_odom @ T[:3, :3].T + T[:3, 3]


def test_points_are_taken_to_the_time_of_the_image(moving: Sparse) -> None:
    rng = np.random.default_rng(0)
    in_image = np.stack([rng.uniform(-2, 2, 30), rng.uniform(-1, 1, 30), rng.uniform(5, 9, 30)], 1)
    pose = driving(1.1)
    in_odom = in_image @ pose[:3, :3].T + pose[:3, 3]
    moving.receive('points', cloud_message(measured_at(1.0, in_odom), 1.0, SENSOR))
    anchors = moving.anchors(1.1)
    assert anchors is not None and len(anchors) == 30
    np.testing.assert_allclose(anchors.depth, in_image[:, 2], rtol=1e-4)
    np.testing.assert_allclose(anchors.u, CAMERA.project(in_image)[0][:, 0], atol=0.05)
    still = moving.anchors(1.1, sparse__fixed_frame='')
    assert still is not None
    assert np.abs(np.median(still.depth) - np.median(anchors.depth)) > 0.5


def test_landmarks_in_the_fixed_frame_were_seen_from_the_camera(sparse: Sparse) -> None:
    """Far from where odom begins, they are neither too far nor hidden."""
    rng = np.random.default_rng(0)
    z = rng.choice([4.0, 30.0], 200)
    aside, up = (rng.uniform(-0.5, 0.5, 200) * z for _ in range(2))
    landmarks = np.stack([aside + 5.0, up * 0.8, z - 500.0], axis=1).astype(np.float32)
    away = (-5.0, 0.0, 500.0, 0.0, 0.0, 0.0, 1.0)
    for frame, count in (('odom', 200), ('lidar', 0)):
        stamp = 1.0 if frame == 'odom' else 2.0
        sparse.receive('points', cloud_message(landmarks, stamp, frame))
        anchors = sparse.anchors(stamp, sparse__extrinsics=away)
        assert anchors is not None and len(anchors) == count


def test_each_ray_of_a_scan_has_its_time(moving: Sparse) -> None:
    """A wall across the way, scanned for 0.1 s while 1 m is driven."""
    times = 1.0 + np.linspace(0.0, 0.1, 41)
    wall, ranges = 20.0, []
    for time, angle in zip(times, np.radians(np.arange(-20, 21)), strict=True):
        ray = np.array([np.cos(angle), np.sin(angle), 0.0])
        T = driving(time) @ matrix(FORWARD[:3], FORWARD[3:])
        ranges.append((wall - T[2, 3]) / (T[:3, :3] @ ray)[2])
    message = scan_message(ranges, 1.0, time_increment=0.1 / 40)
    moving.receive('scan', message)

    def off(anchors: Anchors | None, stamp: float) -> float:
        """Greatest distance of the anchors from the wall."""
        assert anchors is not None and len(anchors) > 20
        pixels = np.stack([anchors.u - 319.5, anchors.v - 239.5], axis=1) / 500
        xyz = np.column_stack([pixels, np.ones(len(pixels))]) * anchors.depth[:, None]
        pose = driving(stamp)
        return float(np.abs((xyz @ pose[:3, :3].T + pose[:3, 3])[:, 2] - wall).max())

    assert off(moving.anchors(1.05), 1.05) < 0.03
    message.time_increment = 0.0
    assert off(moving.anchors(1.05), 1.05) > 0.5


def test_a_registered_depth_image_moves_too(moving: Sparse) -> None:
    """Its pixels are where the camera was when it was taken."""
    depth = np.full((480, 640), np.nan, np.float32)
    depth[100:400:50, 200:500:50] = 8.0
    moving.receive('depth', image_message(depth, 1.0, '32FC1'))
    now = moving.anchors(1.0)
    assert now is not None
    np.testing.assert_array_equal(now.depth, 8.0)
    later = moving.anchors(1.1)
    assert later is not None and len(later) == len(now)
    rays = np.column_stack([(now.u - 319.5) / 500, (now.v - 239.5) / 500, np.ones(len(now))])
    T = np.linalg.inv(driving(1.1)) @ driving(1.0)
    expected = 8.0 * rays @ T[:3, :3].T + T[:3, 3]
    np.testing.assert_allclose(later.depth, expected[:, 2], rtol=1e-4)
    np.testing.assert_allclose(later.u, CAMERA.project(expected)[0][:, 0], atol=0.05)


def test_without_a_fixed_frame_points_stay_and_that_is_told_once(moving: Sparse) -> None:
    for stamp in (1.0, 1.1, 1.2):
        moving.receive('points', cloud_message(points_ahead(), stamp, SENSOR))
        anchors = moving.anchors(stamp + 0.05, sparse__fixed_frame='nowhere')
        assert anchors is not None and len(anchors) == 50
    (line,) = moving.log.lines
    assert "'nowhere'" in line and "'sparse.fixed_frame'" in line


# ---- anything at all -----------------------------------------------------------------------------

FLOATS = st.floats(width=32) | st.sampled_from([0.0, 0.1, 1.0, 5.0, -1.0])
SIZES = st.integers(0, 2**32 - 1) | st.sampled_from([0, 1, 2, 4, 12, 16])
BYTES = st.binary(max_size=200)
STAMPS = st.builds(
    Time, sec=st.integers(-(2**31), 2**31 - 1), nanosec=st.integers(0, 2**32 - 1)
) | st.sampled_from([header(stamp).stamp for stamp in (0.0, 0.9, 1.1)])
FRAMES = st.sampled_from([CAMERA_FRAME, '', 'x' * 300])
POINT_FIELDS = st.lists(
    st.builds(
        PointField,
        name=st.sampled_from(['x', 'y', 'z', '', 'xyz']),
        offset=SIZES,
        datatype=st.sampled_from([7, 8]) | st.integers(0, 255),
        count=st.sampled_from([1, 0, 3]),
    ),
    max_size=4,
)
DEPTH = np.full((4, 6), 2.0, np.float32)
# For each topic a good message, and what may stand in its fields instead.
KINDS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    'points': (
        lambda: cloud_message(points_ahead(12), 1.0, SENSOR),
        {
            'height': SIZES,
            'width': SIZES,
            'fields': POINT_FIELDS,
            'is_bigendian': st.booleans(),
            'point_step': SIZES,
            'row_step': SIZES,
            'data': BYTES,
            'is_dense': st.booleans(),
        },
    ),
    'scan': (
        lambda: scan_message(np.full(5, 4.0), 1.0),
        {
            **dict.fromkeys(('angle_min', 'angle_max', 'angle_increment'), FLOATS),
            **dict.fromkeys(('range_min', 'range_max', 'time_increment', 'scan_time'), FLOATS),
            'ranges': st.lists(FLOATS, max_size=6) | st.lists(FLOATS, min_size=5, max_size=5),
            'intensities': st.lists(FLOATS, max_size=2),
        },
    ),
    'depth': (
        lambda: image_message(DEPTH, 1.0, '32FC1', SENSOR),
        {
            **dict.fromkeys(('height', 'width', 'step'), SIZES),
            'encoding': st.sampled_from(['32FC1', '16UC1', 'rgb8', '']),
            'is_bigendian': st.integers(0, 255),
            'data': BYTES | st.binary(min_size=96, max_size=96),
        },
    ),
    'range': (
        lambda: range_message(2.0, 1.0),
        {
            'radiation_type': st.integers(0, 255),
            **dict.fromkeys(('field_of_view', 'min_range', 'max_range'), FLOATS),
            **dict.fromkeys(('range', 'variance'), FLOATS),
        },
    ),
    'camera_info': (
        lambda: info_message(np.diag([5.0, 5.0, 1.0]), 6, 4, 1.0),
        {
            **dict.fromkeys(('height', 'width'), SIZES),
            'distortion_model': st.sampled_from(['plumb_bob', '', 'fisheye']),
            'd': st.lists(FLOATS, max_size=6),
            'k': st.lists(FLOATS, min_size=9, max_size=9),
        },
    ),
}


@st.composite
def spoilt(draw: Any, kind: str) -> Any:
    """A good message with some fields, perhaps none, that say something else."""
    good, fields = KINDS[kind]
    message = good()
    changes = draw(st.fixed_dictionaries({}, optional={**fields, 'stamp': STAMPS, 'frame': FRAMES}))
    message.header.stamp = changes.pop('stamp', message.header.stamp)
    message.header.frame_id = changes.pop('frame', message.header.frame_id)
    for name, value in changes.items():
        setattr(message, name, value)
    return message


@pytest.mark.parametrize('kind', ['points', 'scan', 'depth', 'range'])
def test_whatever_is_in_a_message_nothing_gets_out(sparse: Sparse, kind: str) -> None:
    """Neither of the callback nor of the frame, and the good ones beside it are used."""
    other = 'scan' if kind == 'points' else 'points'
    moments = itertools.count(1)

    @settings(
        max_examples=100,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(spoilt(kind), spoilt('camera_info'))
    def send(message: Any, info: CameraInfo) -> None:
        stamp = float(next(moments))  # what was sent before is too old
        if message.header.stamp == header(1.0).stamp:
            message.header = header(stamp, message.header.frame_id)
        good = KINDS[other][0]()
        good.header = header(stamp, SENSOR)
        sparse.receive(other, good)
        sparse.receive('camera_info', info)
        sparse.receive(kind, message)
        anchors = sparse.anchors(stamp)
        assert anchors is not None
        reports = {report.source: report for report in sparse.inputs.reports}
        assert reports[other].anchors == (5 if other == 'scan' else 12)
        assert reports[kind].anchors + sum(reports[kind].left_out.values()) > 0

    send()
