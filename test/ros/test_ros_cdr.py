"""Bytes that are no message, over real DDS, to the running node: cut off, flipped, lying, random.

What cannot be read is dropped by the middleware before the node sees it; what can be read is as
good as any other message, of which test_ros_fuzz.py tries more.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from harness import (
    LIDAR_FRAME,
    Rig,
    cloud_message,
    header,
    image_message,
    image_pixels,
    info_message,
    repeat,
    seconds,
)
from rclpy.serialization import serialize_message
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, LaserScan, Range
from std_srvs.srv import Trigger

from briges_ros.msg import DepthStatus

SMALL = np.zeros((4, 6, 3), np.uint8)
SMALL_DEPTH = np.full((4, 6), 2.0, np.float32)
SCAN = LaserScan(angle_max=0.4, angle_increment=0.1, range_max=9.0, ranges=[4.0] * 5)
MESSAGES: dict[str, Any] = {
    'image': image_message(SMALL, 1.0),
    'camera_info': info_message(np.eye(3), 6, 4, 1.0),
    'sparse/points': cloud_message(np.ones((3, 3), np.float32), 1.0),
    'sparse/scan': SCAN,
    'sparse/range': Range(field_of_view=0.3, max_range=5.0, range=2.0),
    'sparse/depth': image_message(SMALL_DEPTH, 1.0, '32FC1', LIDAR_FRAME),
    'sparse/camera_info': info_message(np.eye(3), 6, 4, 1.0),
}
LENGTHS = (2**32 - 1, 2**31, 2**31 - 1, 2**28, 1000)
# What the deserialiser itself writes, once for each message, and nobody can turn off.
OF_THE_MIDDLEWARE = 'sequence size exceeds remaining buffer'


def broken(good: bytes, seed: int) -> Iterator[bytes]:
    """The bytes of a message in many ways that they should not be."""
    generator = random.Random(seed)
    for end in range(0, len(good), max(1, len(good) // 60)):
        yield good[:end]
    for place in range(0, len(good), max(1, len(good) // 60)):
        flipped = bytearray(good)
        flipped[place] ^= 1 << generator.randrange(8)
        yield bytes(flipped)
    for length in LENGTHS:
        for place in range(4, min(len(good) - 3, 200), 4):
            yield good[:place] + length.to_bytes(4, 'little') + good[place + 4 :]
    for _ in range(20):
        yield generator.randbytes(generator.randrange(200))
        yield good[:4] + generator.randbytes(generator.randrange(400))


@pytest.fixture(scope='module')
def at_rest(rig: Rig) -> int:
    """Resident megabytes of the node after some frames."""
    for _ in range(5):
        rig.send()
    return rig.process.resources()[0]


@pytest.mark.parametrize('topic', MESSAGES)
def test_bytes_that_are_no_message(rig: Rig, at_rest: int, topic: str) -> None:
    start = len(rig.process.log)
    kind = type(MESSAGES[topic])
    count = 0
    for count, content in enumerate(broken(serialize_message(MESSAGES[topic]), 0), start=1):
        rig.tester.publish_bytes(topic, kind, content)
        if count % 8 == 0:
            time.sleep(0.002)  # the queue of a subscription is short: let it take some
    assert count > 150
    assert rig.tester.call(Trigger, 'depth/reset_scale', Trigger.Request()).success
    status = rig.tester.listen(DepthStatus, 'depth/status')
    depth = rig.tester.listen(Image, 'depth/image')
    after = rig.stamp

    def metric() -> list[Any]:
        return [
            message
            for message in status.messages
            if message.state == DepthStatus.METRIC and seconds(message.header.stamp) > after
        ]

    repeat(rig.send, metric, 'a metric frame')
    stamp = seconds(metric()[0].header.stamp)
    values = image_pixels(depth.wait(stamp), np.float32)
    assert values.shape == (375, 1242)
    assert np.isfinite(values).mean() > 0.5
    status.close()
    depth.close()
    lines = rig.process.log[start:].splitlines()
    assert sum(OF_THE_MIDDLEWARE in line for line in lines) <= count
    ours = [line for line in lines if OF_THE_MIDDLEWARE not in line]
    assert len(ours) < 40, ours
    assert all(line.isprintable() and len(line) < 2000 for line in ours), ours
    assert 'Traceback' not in '\n'.join(ours)
    assert rig.process.resources()[0] < at_rest + 300


def test_a_clock_that_is_wrong(rig: Rig, at_rest: int) -> None:
    """rclpy raises on a negative time: not a line for each, and the node goes on."""
    start = len(rig.process.log)
    assert rig.tester.set('use_sim_time', True)[0]
    try:
        good = serialize_message(Clock(clock=header(1.0).stamp))
        for content in broken(good, 0):
            if len(content) == len(good):  # no other can be published
                rig.tester.publish_bytes('/clock', Clock, content)
        wrong = Clock()
        wrong.clock.sec = -1

        def tell() -> None:
            for _ in range(50):
                rig.tester.publish('/clock', wrong)

        repeat(tell, lambda: 'ValueError' in rig.process.log[start:], 'the complaint of rclpy')
        assert rig.tester.call(Trigger, 'depth/reset_scale', Trigger.Request()).success
    finally:
        assert rig.tester.set('use_sim_time', False)[0]
    rig.connect()
    assert rig.process.log[start:].count('Traceback') < 5
    assert rig.process.resources()[0] < at_rest + 300
