"""The main job on the real thing: camera and LiDAR of a car in, metric depth and clouds out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from harness import (
    DepthNodeProcess,
    Drive,
    Rig,
    Tester,
    cloud_fields,
    cloud_message,
    image_message,
    image_pixels,
    info_message,
)
from sensor_msgs.msg import CameraInfo, Image, PointCloud2

from briges_ros import Anchors, CameraModel
from briges_ros.msg import DepthStatus

UNSEEN = range(30, 50)  # the model was trained on the frames before
ALIGNED, HELD_OUT = 1.0, 2.0


def test_drive(
    start: Callable[..., DepthNodeProcess], tester: Tester, model: str, drive: Drive
) -> None:
    process = start({'model': model, 'sparse.extrinsics': drive.extrinsics})
    assert tester.configure()
    assert tester.activate()
    rig = Rig(tester, process, drive)
    rig.connect()
    depth = tester.listen(Image, 'depth/image')
    info = tester.listen(CameraInfo, 'depth/camera_info')
    cloud = tester.listen(PointCloud2, 'depth/points')
    status = tester.listen(DepthStatus, 'depth/status')
    random = np.random.default_rng(0)
    height, width = drive.image(0).shape[:2]
    sent_info = info_message(drive.k, width, height, 0.0)
    camera = CameraModel(width, height, drive.k)
    errors = {}

    for index in range(len(drive)):
        stamp = rig.later()
        points = drive.points(index)
        held_out = random.random(len(points)) < 0.1
        image = image_message(drive.image(index), stamp)
        sent_info.header = image.header
        tester.publish('sparse/points', cloud_message(points[~held_out], stamp))
        tester.publish('camera_info', sent_info)
        tester.publish('image', image)

        came = depth.wait(stamp)  # the next frame is sent when this one is through
        assert came.header == image.header
        assert (came.encoding, came.width, came.height) == ('32FC1', width, height)
        assert came.step == 4 * width
        assert len(came.data) == 4 * width * height
        assert info.wait(stamp) == sent_info
        assert status.wait(stamp).state == DepthStatus.METRIC, status.of(stamp).reason
        assert status.of(stamp).header == image.header
        metres = image_pixels(came, np.float32)
        organised = cloud_fields(cloud.wait(stamp))
        assert cloud.of(stamp).header == image.header
        assert organised.shape == (height, width)
        np.testing.assert_array_equal(np.isfinite(organised['z']), np.isfinite(metres))
        if index in UNSEEN:
            errors[index] = abs_rel(metres, points, held_out, camera, drive)

    for listener in (depth, info, cloud, status):
        assert len(listener.messages) == len(drive)  # one of each for each image

    # The LiDAR stops: the scale is held for 5 s of the camera's time, and not longer.
    for by, state in (
        (1.0, DepthStatus.HELD),
        (3.8, DepthStatus.HELD),
        (0.3, DepthStatus.RELATIVE),
        (0.1, DepthStatus.RELATIVE),
    ):
        rig.later(by - 0.1)
        stamp = rig.send(index=49, points=False)
        assert status.wait(stamp).state == state, status.of(stamp)
        assert 'sparse/points' in status.of(stamp).reason
        known = np.isfinite(image_pixels(depth.wait(stamp), np.float32))
        known_points = np.isfinite(cloud_fields(cloud.wait(stamp))['z'])
        if state == DepthStatus.HELD:
            assert known.mean() > 0.5
            assert 0 < status.of(stamp).age <= 5.0
        else:
            assert not known.any()
            assert not known_points.any()
            assert np.isnan(status.of(stamp).scale)

    assert np.median(list(errors.values())) <= 0.15, errors


def abs_rel(
    metres: np.ndarray, points: np.ndarray, held_out: np.ndarray, camera: CameraModel, drive: Drive
) -> float:
    """Mean of |depth - measured| / measured at the points that were held out and can be seen.

    Which points the camera sees is decided with all of them; sigma carries which are which.
    """
    label = np.where(held_out, HELD_OUT, ALIGNED)
    seen = Anchors.from_points(points, camera, drive.t_camera_lidar, sigma=label, max_range=80.0)
    scored = seen.sigma == HELD_OUT
    u, v = np.rint(seen.u[scored]).astype(int), np.rint(seen.v[scored]).astype(int)
    inside = (u < camera.width) & (v < camera.height)
    truth = seen.depth[scored][inside]
    estimate = metres[v[inside], u[inside]]
    known = np.isfinite(estimate)
    assert known.mean() > 0.95
    return float(np.mean(np.abs(estimate[known] - truth[known]) / truth[known]))
