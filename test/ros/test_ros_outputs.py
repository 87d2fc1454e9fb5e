"""What the node publishes, for whom, and what the parameters do to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from harness import (
    Listener,
    Rig,
    cloud_fields,
    header,
    image_message,
    image_pixels,
    info_message,
    repeat,
    seconds,
    until,
)
from sensor_msgs.msg import CameraInfo, Image, LaserScan, PointCloud2

from briges_ros import Anchors, CameraModel
from briges_ros.msg import DepthStatus

HEIGHT, WIDTH = 375, 1242
IMAGES = ('depth/image', 'depth/sigma', 'depth/relative', 'depth/preview')


def metres(message: Image) -> np.ndarray:
    return image_pixels(message, np.float32)


def test_outputs_belong_together(rig: Rig) -> None:
    images = {topic: rig.tester.listen(Image, topic) for topic in IMAGES}
    info = rig.tester.listen(CameraInfo, 'depth/camera_info')
    cloud = rig.tester.listen(PointCloud2, 'depth/points')
    status = rig.tester.listen(DepthStatus, 'depth/status')
    stamp = rig.send()
    for listener in (*images.values(), info, cloud, status):
        assert listener.wait(stamp).header == header(stamp)
        assert len(listener.messages) == 1

    encodings = ('32FC1', '32FC1', '32FC1', 'rgb8')
    for (topic, listener), encoding in zip(images.items(), encodings, strict=True):
        message = listener.of(stamp)
        assert message.encoding == encoding, topic
        assert (message.height, message.width) == (HEIGHT, WIDTH)
        assert message.step * message.height == len(message.data)
    assert info.of(stamp) == info_message(rig.drive.k, WIDTH, HEIGHT, stamp)

    depth = metres(images['depth/image'].of(stamp))
    relative = metres(images['depth/relative'].of(stamp))
    preview = image_pixels(images['depth/preview'].of(stamp), np.uint8, 3)
    assert np.isfinite(relative).all()
    assert preview.std() > 10
    said = status.of(stamp)
    assert said.state == DepthStatus.METRIC
    assert said.reason.startswith('fitted to ')
    assert said.inliers > 100
    assert (said.age, said.model) == (0.0, 'compact')
    assert said.engine
    assert said.precision
    known = np.isfinite(depth)
    sigma = metres(images['depth/sigma'].of(stamp))
    np.testing.assert_array_equal(np.isnan(sigma), np.isnan(depth))
    np.testing.assert_array_equal(np.isposinf(sigma), np.isposinf(depth))
    assert (sigma[known] > 0).all() and np.median(sigma[known] / depth[known]) < 0.3
    assert 0.4 < said.quality <= 1
    np.testing.assert_allclose(
        1 / depth[known], (said.scale * relative + said.shift)[known], rtol=1e-3
    )
    covariance = said.covariance.reshape(2, 2)
    assert np.all(np.linalg.eigvalsh(covariance) >= 0)
    parts = [said.preprocess_ms, said.inference_ms, said.align_ms, said.postprocess_ms]
    assert min(parts) > 0
    assert said.total_ms >= sum(parts) + said.publish_ms - 1.0

    fields = cloud_fields(cloud.of(stamp))
    assert [field.name for field in cloud.of(stamp).fields] == ['x', 'y', 'z', 'rgb']
    assert not cloud.of(stamp).is_dense
    assert fields.shape == (HEIGHT, WIDTH)
    np.testing.assert_array_equal(fields['z'], np.where(known, depth, np.nan))
    v, u = np.nonzero(known)
    k = rig.drive.k
    np.testing.assert_allclose(fields['x'][v, u], (u - k[0, 2]) / k[0, 0] * depth[v, u], atol=1e-3)
    np.testing.assert_allclose(fields['y'][v, u], (v - k[1, 2]) / k[1, 1] * depth[v, u], atol=1e-3)
    bgr = np.ascontiguousarray(fields['rgb']).view(np.uint8).reshape(HEIGHT, WIDTH, 4)
    np.testing.assert_array_equal(bgr[..., 2::-1], rig.drive.image(40))
    for listener in (*images.values(), info, cloud, status):
        listener.close()


def test_no_subscriber_no_work(rig: Rig) -> None:
    diagnostics = rig.tester.listen(DiagnosticArray, '/diagnostics')

    def count(key: str) -> int:
        until(lambda: diagnostics.messages, 'diagnostics')
        values = {entry.key: entry.value for entry in diagnostics.messages[-1].status[0].values}
        return int(values[key])

    # The subscriptions of the tests before take a moment to be gone.
    repeat(rig.send, lambda: count('images nobody wanted') > 0, 'an image that nobody wanted')
    processed = count('images processed')
    unwanted = count('images nobody wanted')
    repeat(
        rig.send,
        lambda: count('images nobody wanted') >= unwanted + 3,
        'images that nobody wanted',
    )
    assert count('images processed') == processed
    status = rig.tester.listen(DepthStatus, 'depth/status')
    status.wait(rig.send())  # somebody listens: work
    until(lambda: count('images processed') > processed, 'an image processed')
    status.close()
    diagnostics.close()


def test_newest_frame_wins(rig: Rig) -> None:
    status = rig.tester.listen(DepthStatus, 'depth/status')
    first = status.wait(rig.send())
    stamps = [rig.send() for _ in range(30)]
    last = status.wait(stamps[-1])  # the newest is never dropped
    came = [message for message in status.messages if message.frames_processed > 0]
    processed = last.frames_processed - first.frames_processed
    dropped = last.frames_dropped - first.frames_dropped
    assert processed + dropped <= len(stamps)  # of such a burst DDS itself may drop some
    assert dropped > 0
    assert len(came) == processed + 1
    order = [message.header.stamp.sec + message.header.stamp.nanosec * 1e-9 for message in came]
    assert order == sorted(order)
    status.close()


@pytest.mark.parametrize('encoding', ['bgr8', 'rgba8', 'bgra8', 'mono8', 'padded'])
def test_encodings_give_the_same_depth(rig: Rig, encoding: str) -> None:
    relative = rig.tester.listen(Image, 'depth/relative')
    rgb = rig.drive.image(40)
    if encoding == 'mono8':
        rgb = np.repeat(rgb[..., 1:2], 3, axis=2)
    expected = metres(relative.wait(rig.send(image=image_message(rgb, 0.0))))
    if encoding == 'padded':
        message = image_message(np.pad(rgb, ((0, 0), (0, 6), (0, 0))), 0.0)
        message.width = WIDTH
    else:
        conversion = {
            'bgr8': cv2.COLOR_RGB2BGR,
            'rgba8': cv2.COLOR_RGB2RGBA,
            'bgra8': cv2.COLOR_RGB2BGRA,
        }
        pixels = rgb[..., 0] if encoding == 'mono8' else cv2.cvtColor(rgb, conversion[encoding])
        message = image_message(np.ascontiguousarray(pixels), 0.0, encoding)
    got = metres(relative.wait(rig.send(image=message)))
    # The fit is rounded otherwise, and on that hangs to which side some pixels at edges are put.
    assert np.isclose(got, expected, rtol=1e-5, atol=1e-6).mean() > 0.995
    relative.close()


def sparse_depth(rig: Rig, camera: CameraModel) -> np.ndarray:
    """The LiDAR as a depth image of `camera`; NaN where there is no point."""
    anchors = Anchors.from_points(rig.drive.points(40), camera, rig.drive.t_camera_lidar)
    depth = np.full((camera.height, camera.width), np.nan, np.float32)
    u = np.clip(np.rint(anchors.u).astype(int), 0, camera.width - 1)
    v = np.clip(np.rint(anchors.v).astype(int), 0, camera.height - 1)
    depth[v, u] = anchors.depth
    return depth


@pytest.mark.parametrize('encoding', ['32FC1', '16UC1', 'big-endian 16UC1'])
def test_sparse_depth_of_the_image(rig: Rig, encoding: str) -> None:
    status = rig.tester.listen(DepthStatus, 'depth/status')
    depth = sparse_depth(rig, CameraModel(WIDTH, HEIGHT, rig.drive.k))
    if encoding == '32FC1':
        message = image_message(depth, rig.stamp + 0.1, '32FC1')
    else:
        order = '>u2' if 'big' in encoding else '<u2'
        millimetres = np.nan_to_num(depth * 1000).astype(order)
        message = image_message(millimetres, rig.stamp + 0.1, '16UC1')
        message.is_bigendian = int('big' in encoding)
    rig.later(1.0)  # away from the clouds before

    def send() -> None:
        message.header = header(rig.stamp + 0.1)
        rig.tester.publish('sparse/depth', message)
        rig.send(points=False)

    first = rig.stamp
    said = repeat(send, lambda: metric_since(status, first), 'a metric frame')
    assert said.inliers > 100
    status.close()


def metric_since(status: Listener, stamp: float) -> DepthStatus | None:
    """The last status that is metric and younger than `stamp`, if any."""
    for message in reversed(status.messages):
        if message.state == DepthStatus.METRIC and seconds(message.header.stamp) > stamp:
            return message
    return None


def test_sparse_depth_of_another_camera(rig: Rig) -> None:
    status = rig.tester.listen(DepthStatus, 'depth/status')
    by_points = status.wait(rig.send())
    assert by_points.state == DepthStatus.METRIC, by_points.reason
    camera = CameraModel(WIDTH, HEIGHT, rig.drive.k).scaled(WIDTH // 2, HEIGHT // 2)
    depth = sparse_depth(rig, camera)
    rig.later(1.0)
    first = rig.stamp

    def send() -> None:
        stamp = rig.stamp + 0.1
        info = info_message(camera.K, camera.width, camera.height, stamp)
        rig.tester.publish('sparse/camera_info', info)
        rig.tester.publish('sparse/depth', image_message(depth, stamp, '32FC1', 'tof'))
        rig.send(points=False)

    assert rig.tester.set('sparse.extrinsics', [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0])[0]
    try:
        said = repeat(send, lambda: metric_since(status, first), 'a metric frame')
    finally:
        assert rig.tester.set('sparse.extrinsics', rig.drive.extrinsics)[0]
    # Other anchors, rounded to other pixels: the same metres, but not the same line.
    assert said.scale == pytest.approx(by_points.scale, rel=0.3)
    status.close()


def test_millimetres(rig: Rig) -> None:
    depth = rig.tester.listen(Image, 'depth/image')
    rig.forget()
    in_metres = metres(depth.wait(rig.send()))
    assert rig.tester.set('depth.encoding', '16UC1')[0]
    rig.forget()
    try:
        message = depth.wait(rig.send())
        assert (message.encoding, message.step) == ('16UC1', 2 * WIDTH)
        millimetres = image_pixels(message, np.uint16)
        told = np.isfinite(in_metres) & (in_metres < 65.5)
        assert told.mean() > 0.5
        error = millimetres[told] - 1000.0 * in_metres[told]
        assert np.abs(error).max() < 1.0  # the same frame gives the same depth
        assert not millimetres[~np.isfinite(in_metres)].any()
        rig.later(10.0)
        unknown = image_pixels(depth.wait(rig.send(points=False)), np.uint16)
        assert not unknown.any()
    finally:
        assert rig.tester.set('depth.encoding', '32FC1')[0]
    depth.close()


def test_stride(rig: Rig) -> None:
    cloud = rig.tester.listen(PointCloud2, 'depth/points')
    depth = rig.tester.listen(Image, 'depth/image')
    assert rig.tester.set('points.stride', 4)[0]
    try:
        stamp = rig.send()
        fields = cloud_fields(cloud.wait(stamp))
        expected = metres(depth.wait(stamp))[::4, ::4]
        np.testing.assert_array_equal(
            fields['z'], np.where(np.isfinite(expected), expected, np.nan)
        )
        bgr = np.ascontiguousarray(fields['rgb']).view(np.uint8).reshape(*fields.shape, 4)
        np.testing.assert_array_equal(bgr[..., 2::-1], rig.drive.image(40)[::4, ::4])
    finally:
        assert rig.tester.set('points.stride', 1)[0]
    cloud.close()
    depth.close()


@contextmanager
def parameters(rig: Rig, **changes: Any) -> Iterator[None]:
    """Set parameters ('__' for '.') for a while."""
    names = {name: name.replace('__', '.') for name in changes}
    before = {name: rig.tester.get(names[name]) for name in changes}
    for name, value in changes.items():
        done, why = rig.tester.set(names[name], value)
        assert done, why
    try:
        yield
    finally:
        for name, value in before.items():
            assert rig.tester.set(names[name], value)[0]


def xyz(message: PointCloud2) -> np.ndarray:
    """The points of a cloud, (N, 3)."""
    fields = cloud_fields(message).ravel()
    return np.column_stack([fields[name] for name in 'xyz'])


def test_voxels(rig: Rig) -> None:
    cloud = rig.tester.listen(PointCloud2, 'depth/points')
    whole = cloud_fields(cloud.wait(rig.send()))
    with parameters(rig, points__kind='voxel', points__voxel_size=0.5, points__max_range=15.0):
        message = cloud.wait(rig.send())
    assert message.is_dense
    assert message.height == 1
    points = xyz(message)
    assert len(points) > 100
    cells = np.floor(points / np.float32(0.5)).astype(int)
    assert len(np.unique(cells, axis=0)) == len(points)
    known = whole[whole['z'] <= 15.0]
    assert set(cloud_fields(message).ravel().tolist()) <= set(known.tolist())  # with their colours
    seen = np.floor(np.column_stack([known[name] for name in 'xyz']) / np.float32(0.5)).astype(int)
    assert len(np.unique(seen, axis=0)) == len(points)
    cloud.close()


def test_points_without_colour_and_up_to_a_range(rig: Rig) -> None:
    cloud = rig.tester.listen(PointCloud2, 'depth/points')
    depth = rig.tester.listen(Image, 'depth/image')
    with parameters(rig, points__fields='xyz', points__max_range=15.0):
        stamp = rig.send()
        message = cloud.wait(stamp)
    assert [field.name for field in message.fields] == ['x', 'y', 'z']
    assert message.point_step == 12
    expected = metres(depth.wait(stamp))
    expected = np.where(expected <= 15.0, expected, np.nan)
    np.testing.assert_array_equal(cloud_fields(message)['z'], expected)
    cloud.close()
    depth.close()


def test_obstacles_and_scan_need_the_pose_of_the_camera(rig: Rig) -> None:
    """Without TF they are not published, and the log says once how to mend it."""
    obstacles = rig.tester.listen(PointCloud2, 'depth/obstacles')
    scan = rig.tester.listen(LaserScan, 'depth/scan')
    status = rig.tester.listen(DepthStatus, 'depth/status')
    begin = len(rig.process.log)
    for _ in range(3):
        status.wait(rig.send())
    rig.process.logged('the pose of the camera is not known', "set 'camera.height'", since=begin)
    assert rig.process.log[begin:].count('the pose of the camera is not known') == 1
    with parameters(rig, base_frame=''):
        status.wait(rig.send())
    assert not obstacles.messages
    assert not scan.messages
    with parameters(rig, camera__height=1.65):
        stamp = rig.send()
        obstacles.wait(stamp)
        scan.wait(stamp)
        with parameters(rig, base_frame=''):
            stamp = rig.send()
            obstacles.wait(stamp)
            rig.process.logged("'depth/scan' is not published", "set 'base_frame'", since=begin)
            assert scan.of(stamp) is None
    for listener in (obstacles, scan, status):
        listener.close()


def test_obstacles_stand_on_the_ground(rig: Rig) -> None:
    """The frame is the image's, so that a costmap clears from where the camera is."""
    obstacles = rig.tester.listen(PointCloud2, 'depth/obstacles')
    cloud = rig.tester.listen(PointCloud2, 'depth/points')
    with parameters(rig, camera__height=1.65, obstacles__max_range=12.0):
        stamp = rig.send()
        message = obstacles.wait(stamp)
    assert message.header == header(stamp)
    assert [field.name for field in message.fields] == ['x', 'y', 'z']
    assert message.is_dense
    points = xyz(message)
    assert len(points) > 500
    assert points[:, 2].max() <= 12.0
    assert points[:, 1].min() > 1.65 - 2.0 - 0.3  # obstacles.max_height over the ground
    everything = xyz(cloud.wait(stamp))
    assert set(map(tuple, points)) <= set(map(tuple, everything))
    road = everything[(everything[:, 1] > 1.5) & (everything[:, 2] < 12.0)]
    assert len(road) > 1000
    assert np.mean(points[:, 1] > 1.5) < 0.1  # of 15 cm over the road nothing can be told
    obstacles.close()
    cloud.close()


def test_scan(rig: Rig) -> None:
    """In the base frame, x forward: a car drives ahead, lorries stand left and right."""
    scan = rig.tester.listen(LaserScan, 'depth/scan')
    with parameters(rig, camera__height=1.65, scan__max_range=30.0):
        stamp = rig.send()
        message = scan.wait(stamp)
        again = scan.wait(rig.send(points=False))
        rig.later(10.0)
        unknown = scan.wait(rig.send(points=False))
    assert message.header == header(stamp, 'base_link')
    ranges = np.array(message.ranges)
    assert (
        len(ranges) == round((message.angle_max - message.angle_min) / message.angle_increment) + 1
    )
    angles = message.angle_min + np.arange(len(ranges)) * message.angle_increment
    assert message.angle_increment > 0
    finite = ranges[np.isfinite(ranges)]
    assert ((finite >= message.range_min) & (finite <= message.range_max)).all()
    assert not np.isneginf(ranges).any()
    lidar = rig.drive.points(40)
    lidar = lidar[
        (lidar[:, 2] > -1.2) & (lidar[:, 2] < 0.2)
    ]  # it is 1.73 m over the road, x forward
    azimuth, distance = np.arctan2(lidar[:, 1], lidar[:, 0]), np.hypot(lidar[:, 0], lidar[:, 1])
    for low, high in ((-0.6, -0.4), (-0.1, 0.05), (0.4, 0.6)):
        truth = np.percentile(distance[(azimuth > low) & (azimuth < high)], 10)
        sector = ranges[(angles > low) & (angles < high)]
        # The camera sits 0.27 m before the LiDAR; the model is small and sees few tokens.
        assert np.nanpercentile(sector, 10) == pytest.approx(truth - 0.27, rel=0.25)
    assert (again.angle_min, len(again.ranges)) == (message.angle_min, len(ranges))
    assert np.isnan(unknown.ranges).all()  # no scale, no metres
    scan.close()


def test_clearing(rig: Rig) -> None:
    """The sky clears up to the range, an object up to itself, and unknown depth nothing."""
    clearing = rig.tester.listen(PointCloud2, 'depth/clearing')
    depth = rig.tester.listen(Image, 'depth/image')
    with parameters(rig, depth__max_range=20.0, clearing__max_range=8.0):
        stamp = rig.send()
        message = clearing.wait(stamp)
        assert message.header == header(stamp)
        points = xyz(message)
        seen = metres(depth.wait(stamp))
        rig.later(10.0)
        unknown = clearing.wait(rig.send(points=False))
    assert np.isposinf(seen).any()
    assert np.isfinite(points).all()
    stride = int(0.05 * rig.drive.k[0, 0] / 8.0)
    ends = np.minimum(seen, 8.0)[::stride, ::stride]
    np.testing.assert_array_equal(points[:, 2], ends[~np.isnan(ends)])
    assert (unknown.height, unknown.width) == (1, 0)
    clearing.close()
    depth.close()


def test_range(rig: Rig) -> None:
    depth = rig.tester.listen(Image, 'depth/image')
    rig.forget()
    everything = metres(depth.wait(rig.send()))
    assert rig.tester.set('depth.max_range', 15.0)[0]
    assert rig.tester.set('depth.min_range', 8.0)[0]
    rig.forget()
    try:
        limited = metres(depth.wait(rig.send()))
    finally:
        assert rig.tester.set('depth.min_range', 0.1)[0]
        assert rig.tester.set('depth.max_range', 100.0)[0]
    known = np.isfinite(everything)
    near, far = known & (everything < 7.99), everything > 15.01
    assert near.any()
    assert far.any()
    assert np.isnan(limited[near]).all()
    assert np.isposinf(limited[far]).all()
    between = known & (everything > 8.01) & (everything < 14.99)
    np.testing.assert_allclose(limited[between], everything[between], rtol=1e-5)
    depth.close()


def test_token_budget(rig: Rig) -> None:
    relative = rig.tester.listen(Image, 'depth/relative')
    small = metres(relative.wait(rig.send()))
    assert rig.tester.set('token_budget', 300)[0]
    try:
        large = metres(relative.wait(rig.send()))
    finally:
        assert rig.tester.set('token_budget', 150)[0]
    assert not np.allclose(small, large)
    np.testing.assert_allclose(metres(relative.wait(rig.send())), small, rtol=1e-5, atol=1e-6)
    relative.close()


def test_rectified_images_take_p(rig: Rig) -> None:
    cloud = rig.tester.listen(PointCloud2, 'depth/points')

    info = info_message(rig.drive.k, WIDTH, HEIGHT, 0.0)
    info.p[0] /= 2  # half the focal length: everything twice as far to the side

    def slope() -> float:
        fields = cloud_fields(cloud.wait(rig.send(info=info)))
        u = np.arange(WIDTH) - rig.drive.k[0, 2]
        return float(np.nanmedian(fields['x'] / fields['z'] / u)) * rig.drive.k[0, 0]

    assert slope() == pytest.approx(1.0, rel=1e-3)
    assert rig.tester.set('image_is_rectified', True)[0]
    try:
        # A frame may overtake its camera_info, so the first may still come by the old P.
        until(lambda: slope() == pytest.approx(2.0, rel=1e-3), 'a cloud by P')
    finally:
        assert rig.tester.set('image_is_rectified', False)[0]
    cloud.close()


def test_reset_scale(rig: Rig) -> None:
    status = rig.tester.listen(DepthStatus, 'depth/status')
    depth = rig.tester.listen(Image, 'depth/image')
    assert status.wait(rig.send()).state == DepthStatus.METRIC
    rig.later(0.3)
    assert status.wait(rig.send(points=False)).state == DepthStatus.HELD
    rig.forget()
    stamp = rig.send(points=False)
    assert status.wait(stamp).state == DepthStatus.RELATIVE
    assert status.of(stamp).age == -1.0
    assert np.isnan(metres(depth.wait(stamp))).all()
    status.close()
    depth.close()


def test_time_that_begins_again_forgets_the_scale(rig: Rig) -> None:
    status = rig.tester.listen(DepthStatus, 'depth/status')
    assert status.wait(rig.send()).state == DepthStatus.METRIC
    rig.later(-500.0)
    assert status.wait(rig.send(points=False)).state == DepthStatus.RELATIVE
    assert status.wait(rig.send()).state == DepthStatus.METRIC  # and sparse data count again
    rig.later(500.0)
    status.close()
