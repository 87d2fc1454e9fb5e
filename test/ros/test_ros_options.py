"""Parameters that are read on configure, each with a node of its own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from conftest import small_parameters
from harness import (
    CAMERA_FRAME,
    DepthNodeProcess,
    Drive,
    Rig,
    Tester,
    header,
    image_message,
    image_pixels,
    info_message,
    repeat,
)
from rclpy.qos import ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from briges_ros.msg import DepthStatus

HEIGHT, WIDTH = 375, 1242


def metres(message: Image) -> np.ndarray:
    return image_pixels(message, np.float32)


@pytest.mark.parametrize('qos', ['reliable', 'sensor_data'])
def test_output_qos(
    start: Callable[..., DepthNodeProcess], tester: Tester, model: str, drive: Drive, qos: str
) -> None:
    process = start({**small_parameters(model, drive), 'output_qos': qos})
    assert tester.configure()
    assert tester.activate()
    rig = Rig(tester, process, drive)
    rig.connect()
    best_effort = tester.listen(DepthStatus, 'depth/status')
    (publisher,) = tester.node.get_publishers_info_by_topic('/depth/status')
    reliable = tester.listen(DepthStatus, 'depth/status', reliable=True)
    expected = {
        'reliable': ReliabilityPolicy.RELIABLE,
        'sensor_data': ReliabilityPolicy.BEST_EFFORT,
    }
    assert publisher.qos_profile.reliability == expected[qos]
    stamp = rig.send()
    best_effort.wait(stamp)
    if qos == 'reliable':
        reliable.wait(stamp)
    else:
        process.logged("a subscriber of '/depth/status' asks for more", "'output_qos' to reliable")
        assert not reliable.messages
    best_effort.close()
    reliable.close()


def test_compressed_images(
    start: Callable[..., DepthNodeProcess], tester: Tester, model: str, drive: Drive
) -> None:
    process = start({**small_parameters(model, drive), 'image_transport': 'compressed'})
    assert tester.configure()
    assert tester.activate()
    status = tester.listen(DepthStatus, 'depth/status')
    depth = tester.listen(Image, 'depth/image')
    jpeg = (drive.folder / 'image' / '000040.jpg').read_bytes()
    message = CompressedImage(header=header(1.0), format='rgb8; jpeg compressed bgr8', data=jpeg)

    def send() -> None:
        tester.publish('camera_info', info_message(drive.k, WIDTH, HEIGHT, 1.0))
        tester.publish('image/compressed', message)

    repeat(send, lambda: status.of(1.0) and depth.of(1.0), 'an output')
    assert status.wait(1.0).header.frame_id == CAMERA_FRAME
    assert metres(depth.wait(1.0)).shape == (HEIGHT, WIDTH)
    tester.publish('image/compressed', CompressedImage(format='jpeg', data=jpeg[:40]))
    process.logged("image of '/image/compressed' dropped: ", 'cannot be decoded')
    status.close()
    depth.close()


def test_prior(
    start: Callable[..., DepthNodeProcess], tester: Tester, model: str, drive: Drive
) -> None:
    process = start({**small_parameters(model, drive), 'prior.scale': 0.5, 'prior.shift': 0.02})
    assert tester.configure()
    assert tester.activate()
    status = tester.listen(DepthStatus, 'depth/status')
    depth = tester.listen(Image, 'depth/image')
    rig = Rig(tester, process, drive)
    repeat(lambda: rig.send(points=False), lambda: status.messages and depth.messages, 'an output')
    said = status.messages[-1]
    assert (said.state, said.scale, said.shift) == (DepthStatus.PRIOR, 0.5, 0.02)
    topics = "'/sparse/points', '/sparse/scan', '/sparse/depth' or '/sparse/range'"
    assert f'nothing came on {topics} yet' in said.reason
    process.logged('scale PRIOR: ')
    assert not np.isnan(metres(depth.messages[-1])).all()
    status.close()
    depth.close()


def test_without_camera_info(
    start: Callable[..., DepthNodeProcess], tester: Tester, model: str, drive: Drive
) -> None:
    process = start({**small_parameters(model, drive), 'horizontal_fov': 81.0, 'autostart': True})
    status = tester.listen(DepthStatus, 'depth/status')
    came = tester.listen(CameraInfo, 'depth/camera_info')
    pixels = drive.image(40)
    stamps = iter(range(1, 10000))
    repeat(
        lambda: tester.publish('image', image_message(pixels, float(next(stamps)))),
        lambda: status.messages and came.messages,
        'an output',
    )
    says = "camera_info of '/camera_info' is missing: field of view taken as 81 degrees"
    assert says in status.messages[0].reason
    process.logged(says)
    assert came.messages[0].width == 1242
    assert came.messages[0].header == header(float(came.messages[0].header.stamp.sec))
    assert 2 * np.degrees(np.arctan(621 / came.messages[0].k[0])) == pytest.approx(81.0)
    # It comes after all.
    info = info_message(drive.k, 1242, 375, 1.0)

    def send() -> None:
        tester.publish('camera_info', info)
        tester.publish('image', image_message(pixels, float(next(stamps))))

    repeat(send, lambda: 'camera_info' not in status.messages[-1].reason, 'its camera_info')
    lines = process.log.splitlines()
    assert sum(says in line for line in lines if 'scale' not in line) == 1
    for listener in (status, came):
        listener.close()
