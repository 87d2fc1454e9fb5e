"""Bad input: an error that names the topic and the mend, that message dropped, the node alive."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from harness import (
    LIDAR_FRAME,
    Listener,
    Rig,
    cloud_message,
    header,
    image_message,
    image_pixels,
    info_message,
    repeat,
    seconds,
)
from sensor_msgs.msg import CameraInfo, Image, PointCloud2, PointField

from briges_ros.msg import DepthStatus


@pytest.fixture(scope='module')
def status(rig: Rig) -> Iterator[Listener]:
    listener = rig.tester.listen(DepthStatus, 'depth/status')
    yield listener
    listener.close()


@pytest.fixture(autouse=True)
def good_frame_follows(rig: Rig, status: Listener) -> Iterator[None]:
    """Whatever a test did, good frames come out metric again.

    The first may still meet a camera_info of the test: the topics arrive in any order.
    """
    yield
    first = rig.stamp

    def good() -> bool:
        return any(
            message.state == DepthStatus.METRIC and seconds(message.header.stamp) > first
            for message in status.messages
        )

    repeat(rig.send, good, 'a metric frame')


def provoke(rig: Rig, send: Callable[[], Any], *texts: str) -> None:
    """Send until a line with all the texts is in the log: topics arrive in any order."""
    start = len(rig.process.log)

    def logged() -> bool:
        lines = rig.process.log[start:].splitlines()
        return any(all(text in line for text in texts) for line in lines)

    repeat(send, logged, f'a line with {texts} in the log')
    assert 'Traceback' not in rig.process.log


def picture(rig: Rig, **fields: Any) -> Image:
    message = image_message(rig.drive.image(40), 0.0)
    for name, value in fields.items():
        setattr(message, name, value)
    return message


@pytest.mark.parametrize(
    ('fields', 'says'),
    [
        ({'encoding': 'jpeg'}, "'jpeg' is not supported: publish one of rgb8"),
        ({'step': 3}, 'step is 3 bytes, but a row of 1242 pixels of rgb8 takes 3726'),
        ({'step': 4000}, 'step * height is 1500000'),
        ({'data': b''}, 'data holds 0 bytes'),
        ({'width': 0}, 'the image is 0 x 375'),
        ({'height': 0, 'data': b''}, 'the image is 1242 x 0'),
        ({'height': 374, 'data': bytes(3726 * 374)}, 'describes 1242 x 375 pixels, but the image'),
    ],
)
def test_bad_image(rig: Rig, status: Listener, fields: dict[str, Any], says: str) -> None:
    before = status.wait(rig.send()).frames_dropped
    provoke(rig, lambda: rig.send(image=picture(rig, **fields)), "image of '/image' dropped", says)
    after = status.wait(rig.send())
    assert after.frames_dropped > before


@pytest.mark.parametrize(
    ('k', 'says'),
    [(np.zeros(9), 'K is zero'), (np.full(9, np.nan), 'K holds a value that is not finite')],
)
def test_bad_intrinsics(rig: Rig, k: np.ndarray, says: str) -> None:
    info = info_message(rig.drive.k, 1242, 375, 0.0)
    info.k = k
    provoke(rig, lambda: rig.send(info=info), "'/camera_info'", says)


def test_camera_info_of_another_size(rig: Rig) -> None:
    info = info_message(rig.drive.k, 640, 480, 0.0)
    says = 'describes 640 x 480 pixels, but the image has 1242 x 375'
    provoke(rig, lambda: rig.send(info=info), "'/camera_info'", says)


def bad_cloud(rig: Rig, kind: str, stamp: float) -> PointCloud2:
    points = rig.drive.points(40)
    message = cloud_message(points, stamp)
    if kind == 'empty':
        return cloud_message(points[:0], stamp)
    if kind == 'nan':
        return cloud_message(np.full_like(points, np.nan), stamp)
    if kind == 'behind':
        return cloud_message(-points, stamp)
    if kind == 'no z':
        message.fields = message.fields[:2]
    elif kind == 'integers':
        for field in message.fields:
            field.datatype = PointField.UINT8
    elif kind == 'short':
        message.data = message.data[:-4]
    return message


@pytest.mark.parametrize(
    ('kind', 'says'),
    [
        ('empty', 'the cloud is empty'),
        ('nan', 'measurements are not finite'),
        ('behind', 'are behind the camera'),
        ('no z', 'no field z'),
        ('integers', 'FLOAT32'),
        ('short', 'row_step * height'),
    ],
)
def test_bad_cloud(rig: Rig, status: Listener, kind: str, says: str) -> None:
    def send() -> None:
        rig.tester.publish('sparse/points', bad_cloud(rig, kind, rig.stamp + 0.1))
        rig.send(points=False)

    provoke(rig, send, "'/sparse/points'", says)
    # The image went its way without anchors, and the status says why.
    after = status.wait(rig.send(points=False))
    assert after.state in (DepthStatus.HELD, DepthStatus.RELATIVE)
    assert '/sparse/points' in after.reason


def test_cloud_in_an_unknown_frame(rig: Rig, status: Listener) -> None:
    assert rig.tester.set('sparse.extrinsics', [0.0] * 7)[0]
    try:
        provoke(
            rig,
            rig.send,
            f"'/sparse/points': its frame '{LIDAR_FRAME}'",
            "'camera_optical_frame'",
            "set the parameter 'sparse.extrinsics'",
        )
        stamp = rig.send()
        assert status.wait(stamp).state != DepthStatus.METRIC
        assert LIDAR_FRAME in status.of(stamp).reason
    finally:
        assert rig.tester.set('sparse.extrinsics', rig.drive.extrinsics)[0]


def test_stale_cloud_is_no_anchor(rig: Rig, status: Listener) -> None:
    rig.later(1.0)
    old = cloud_message(rig.drive.points(40), rig.later())
    rig.tester.publish('sparse/points', old)
    rig.later(0.15)
    stamp = rig.send(points=False)  # 0.25 s after the cloud
    assert status.wait(stamp).state != DepthStatus.METRIC
    assert "'/sparse/points' is 0.25 s older than the image" in status.of(stamp).reason


@pytest.mark.parametrize(
    ('fields', 'says'),
    [
        ({'encoding': 'rgb8'}, 'publish 16UC1'),
        (
            {'width': 100, 'step': 400, 'data': bytes(400 * 375)},
            "camera_info on '/sparse/camera_info'",
        ),
        ({'step': 1}, 'step is 1 bytes'),
        ({}, 'nothing of it falls into the image'),  # all zero: no measurement
    ],
)
def test_bad_sparse_depth(rig: Rig, fields: dict[str, Any], says: str) -> None:
    def send() -> None:
        message = image_message(np.zeros((375, 1242), np.float32), rig.stamp + 0.1, '32FC1')
        for name, value in fields.items():
            setattr(message, name, value)
        rig.tester.publish('sparse/depth', message)
        rig.send(points=False)

    provoke(rig, send, "'/sparse/depth'", says)


def test_garbage(rig: Rig, status: Listener) -> None:
    """Whatever is in the fields, nothing gets out of a callback or out of the worker."""
    random = np.random.default_rng(0)

    def number(*likely: int) -> int:
        return int(random.choice([*likely, *likely, 0, 1, 2**16, 2**32 - 1]))

    def word(*likely: str) -> str:
        return str(random.choice([*likely, '', 'x' * 300, '\u00e9\u4e16']))

    data = [b'', b'\xff', random.bytes(300), np.full(100, np.nan, np.float32).tobytes()]
    for _ in range(60):
        stamp = rig.later(0.01)
        blob = data[random.integers(len(data))]
        image = Image(
            header=header(stamp, word('camera_optical_frame')),
            height=number(10, 375),
            width=number(10, 1242),
            encoding=word('rgb8', '32FC1', '16UC1'),
            step=number(30, 3726),
            is_bigendian=int(random.integers(2)),
            data=blob,
        )
        info = CameraInfo(
            header=image.header,
            height=number(10, 375),
            width=number(10, 1242),
            distortion_model=word('plumb_bob', 'equidistant'),
            d=list(random.choice([0.0, np.nan, 1e300, -0.3], number(0, 5, 1) % 20)),
            k=random.choice([0.0, np.nan, 700.0, np.inf, -1.0], 9),
            p=random.choice([0.0, np.nan, 700.0], 12),
        )
        cloud = PointCloud2(
            header=header(stamp, word('velodyne', 'camera_optical_frame')),
            height=number(1, 5),
            width=number(5, 20),
            point_step=number(12, 16),
            row_step=number(60, 300),
            fields=[
                PointField(
                    name=word('x', 'y', 'z'),
                    offset=number(4, 8),
                    datatype=int(random.integers(12)),
                    count=number(1),
                )
                for _ in range(random.integers(6))
            ],
            is_bigendian=bool(random.integers(2)),
            data=blob,
        )
        for topic, message in (
            ('sparse/camera_info', info),
            ('sparse/depth', image),
            ('sparse/points', cloud),
            ('camera_info', info),
            ('image', image),
        ):
            rig.tester.publish(topic, message)
        if random.random() < 0.3:  # lets the garbage of the sensors meet a good image
            rig.send(points=False)
    good = status.wait(rig.send())
    assert 'Traceback' not in rig.process.log
    assert good.frames_processed > 0


@pytest.mark.parametrize('size', [(1, 1), (2, 3), (1000, 2), (3, 1000)])
def test_odd_sizes(rig: Rig, status: Listener, size: tuple[int, int]) -> None:
    height, width = size
    depth = rig.tester.listen(Image, 'depth/image')
    stamp = rig.later()
    pixels = np.zeros((height, width, 3), np.uint8)
    start = len(rig.process.log)

    def send() -> None:
        rig.tester.publish('camera_info', info_message(rig.drive.k, width, height, stamp))
        rig.tester.publish('image', image_message(pixels, stamp))

    def came_or_dropped() -> bool:
        return bool(depth.of(stamp)) or "image of '/image' dropped: " in rig.process.log[start:]

    repeat(send, came_or_dropped, 'an output or a reason')
    if depth.of(stamp):
        assert image_pixels(depth.of(stamp), np.float32).shape == size
    depth.close()
    assert 'Traceback' not in rig.process.log[start:]
