"""Scans, cones and several sensors at once, through the real node over real DDS."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from harness import LIDAR_FRAME, Listener, Rig, cloud_message, header, repeat, seconds
from sensor_msgs.msg import LaserScan, Range

from briges_ros.msg import DepthStatus


@pytest.fixture(scope='module')
def status(rig: Rig) -> Iterator[Listener]:
    listener = rig.tester.listen(DepthStatus, 'depth/status')
    yield listener
    listener.close()


def scan_message(rig: Rig, stamp: float) -> LaserScan:
    """A planar scanner in place of the LiDAR: of its points, what lies about a plane aslant.

    The rows of the LiDAR below the horizon would be a scan of the road.
    """
    points = rig.drive.points(40)
    azimuth = np.arctan2(points[:, 1], points[:, 0])
    elevation = np.arctan2(points[:, 2], np.hypot(points[:, 0], points[:, 1]))
    level = np.abs(elevation + 0.02) < 0.01
    first, count = -0.6, 241
    ranges = np.full(count, np.inf, np.float32)
    ray = np.rint((azimuth[level] - first) / 0.005).astype(int)
    inside = (ray >= 0) & (ray < count)
    ranges[ray[inside]] = np.hypot(points[level, 0], points[level, 1])[inside]
    return LaserScan(
        header=header(stamp, LIDAR_FRAME),
        angle_min=first,
        angle_max=first + 0.005 * (count - 1),
        angle_increment=0.005,
        range_min=0.5,
        range_max=100.0,
        ranges=ranges,
    )


def range_message(stamp: float, frame_id: str = LIDAR_FRAME, distance: float = 9.0) -> Range:
    return Range(
        header=header(stamp, frame_id),
        field_of_view=0.2,
        min_range=0.2,
        max_range=20.0,
        range=distance,
    )


def moment(rig: Rig, status: Listener, *messages: tuple[str, Callable[[float], Any]]) -> Any:
    """Send messages and then an image, all of one time, until a status knows of all of them."""

    def send() -> None:
        stamp = round(rig.stamp + 0.1, 6)  # that of the image to come
        for topic, make in messages:
            rig.tester.publish(f'sparse/{topic}', make(stamp))
        rig.send(points=False)

    def complete() -> Any:
        for message in status.messages:
            delays = dict(zip(message.sparse_sources, message.sparse_delays, strict=True))
            new = seconds(message.header.stamp) > begun
            if new and all(abs(delays.get(topic, 9.0)) < 0.01 for topic, _ in messages):
                return message
        return None

    begun = rig.later(1.0)  # so far that all that was sent before is too old
    return repeat(send, complete, f'a frame with {[topic for topic, _ in messages]}')


def left_out(message: Any, source: str) -> dict[str, int]:
    return {
        reason.removeprefix(f'{source}: '): count
        for reason, count in zip(message.sparse_reasons, message.sparse_counts, strict=True)
        if reason.startswith(f'{source}: ')
    }


def in_use(message: Any, source: str) -> int:
    return dict(zip(message.sparse_sources, message.sparse_anchors, strict=True))[source]


def cloud(rig: Rig) -> Callable[[float], Any]:
    points = rig.drive.points(40)
    return lambda stamp: cloud_message(points, stamp)


def test_one_reading_makes_no_metres(rig: Rig, status: Listener) -> None:
    rig.later(10.0)  # the scale held so far is forgotten
    said = moment(rig, status, ('range', range_message))
    assert in_use(said, 'range') == 1
    assert said.state == DepthStatus.RELATIVE
    far = moment(rig, status, ('range', lambda stamp: range_message(stamp, distance=np.inf)))
    assert in_use(far, 'range') == 0
    assert left_out(far, 'range') == {'too_far': 1}


def test_a_scan_is_counted_ray_by_ray(rig: Rig, status: Listener) -> None:
    message = scan_message(rig, 0.0)
    said = moment(rig, status, ('scan', lambda stamp: scan_message(rig, stamp)))
    assert in_use(said, 'scan') > 50
    counts = left_out(said, 'scan')
    assert counts['too_far'] == np.isinf(message.ranges).sum()
    assert in_use(said, 'scan') + sum(counts.values()) == len(message.ranges)


def test_all_sensors_at_once(rig: Rig, status: Listener) -> None:
    said = moment(
        rig,
        status,
        ('points', cloud(rig)),
        ('scan', lambda stamp: scan_message(rig, stamp)),
        ('range', range_message),
    )
    assert said.state == DepthStatus.METRIC
    assert [said.sparse_sources[i] for i in (0, 1, -1)] == ['points', 'scan', 'range']
    assert in_use(said, 'points') > 10_000
    assert in_use(said, 'scan') > 50
    assert in_use(said, 'range') == 1
    counts = left_out(said, 'points')
    assert in_use(said, 'points') + sum(counts.values()) == len(rig.drive.points(40))
    assert {'outside_image', 'hidden'} <= set(counts)


def test_a_source_of_no_weight_is_out_of_the_fit(rig: Rig, status: Listener) -> None:
    assert rig.tester.set('sparse.points.weight', 0.0)[0]
    try:
        said = moment(rig, status, ('points', cloud(rig)))
        assert said.state != DepthStatus.METRIC
        assert in_use(said, 'points') == 0
        assert "'sparse.points.weight' is 0" in said.reason
    finally:
        assert rig.tester.set('sparse.points.weight', 1.0)[0]


def test_what_is_wrong_is_counted_and_named(rig: Rig, status: Listener) -> None:
    points = rig.drive.points(40)
    points[:7] = np.nan
    points[7:12] = 0.0
    spoilt = np.concatenate([points, points[100:103]])
    said = moment(rig, status, ('points', lambda stamp: cloud_message(spoilt, stamp)))
    counts = left_out(said, 'points')
    assert counts['not_finite'] == 7
    assert counts['not_positive'] == 5
    assert 1 <= counts['duplicate'] <= 3  # of those in view
    assert said.state == DepthStatus.METRIC
    rig.process.logged("'/sparse/points': 7 measurements are not finite")
    rig.process.logged("'/sparse/points': 5 measurements have a range of zero or less")


def test_extrinsics_upside_down(rig: Rig, status: Listener) -> None:
    x, y, z, *q = rig.drive.extrinsics
    # Half a turn about the camera's own x: (1, 0, 0, 0) times q.
    turned = [x, y, z, q[3], -q[2], q[1], -q[0]]
    assert rig.tester.set('sparse.points.extrinsics', turned)[0]
    try:
        said = moment(rig, status, ('points', cloud(rig)))
        assert in_use(said, 'points') == 0
        assert left_out(said, 'points') == {'behind_camera': len(rig.drive.points(40))}
        assert said.state != DepthStatus.METRIC
        assert 'behind the camera' in said.reason
        rig.process.logged("'/sparse/points': nothing of it falls into the image", 'upside down')
    finally:
        assert rig.tester.set('sparse.points.extrinsics', [0.0] * 7)[0]


def test_whole_messages_are_counted_too(rig: Rig, status: Listener) -> None:
    def fewer_fields(stamp: float) -> Any:
        message = cloud_message(rig.drive.points(40), stamp)
        message.fields = message.fields[:2]
        return message

    said = moment(
        rig,
        status,
        ('points', fewer_fields),
        ('scan', lambda stamp: scan_message(rig, stamp)),
    )
    assert left_out(said, 'points') == {'malformed': 1}
    assert in_use(said, 'scan') > 50
    assert "'/sparse/points': the cloud has no field z" in rig.process.log

    assert rig.tester.set('sparse.extrinsics', [0.0] * 7)[0]
    try:
        said = moment(rig, status, ('points', cloud(rig)))
        assert left_out(said, 'points') == {'no_pose': 1}
    finally:
        assert rig.tester.set('sparse.extrinsics', rig.drive.extrinsics)[0]


def test_stamps_from_the_future_and_the_past(rig: Rig, status: Listener) -> None:
    moment(rig, status, ('points', cloud(rig)), ('range', range_message))
    rig.later(1.0)
    rig.tester.publish('sparse/points', cloud(rig)(rig.stamp + 60.0))

    def said() -> Any:
        last = status.messages[-1]
        return last if left_out(last, 'points') == {'from_the_future': 1} else None

    message = repeat(lambda: rig.send(points=False), said, 'a status with the reason')
    assert left_out(message, 'range') == {'too_old': 1}
    assert "'/sparse/points' is " in message.reason and 'younger than the image' in message.reason
    assert message.reason.count('/sparse/range') == 1
    assert 'Traceback' not in rig.process.log
