"""Several cameras in one process, on one model. Real process, real services."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, small_parameters
from harness import (
    DepthNodeProcess,
    Drive,
    Rig,
    Tester,
    cloud_message,
    image_message,
    info_message,
    repeat,
    until,
)
from sensor_msgs.msg import Image

from briges_ros.msg import DepthStatus

Start = Callable[..., DepthNodeProcess]


@pytest.fixture
def front() -> Iterator[Tester]:
    yield from _in_namespace('front')


@pytest.fixture
def rear() -> Iterator[Tester]:
    yield from _in_namespace('rear')


def _in_namespace(namespace: str) -> Iterator[Tester]:
    tester = Tester(namespace)
    yield tester
    tester.close()


def test_two_cameras_share_the_model(
    ros: None, start: Start, front: Tester, rear: Tester, model: str, drive: Drive, tmp_path: Path
) -> None:
    common = small_parameters(model, drive)
    file = tmp_path / 'cameras.yaml'
    file.write_text(
        yaml.safe_dump(
            {
                '/**': {'ros__parameters': common},
                '/rear/depth': {'ros__parameters': {'depth.encoding': '16UC1'}},
            }
        )
    )
    process = start(
        arguments=['--params-file', str(file), '-r', '/rear/image:=/usb_cam/image_raw'],
        program_arguments=['--cameras', 'front', 'rear'],
    )
    assert front.configure()
    assert front.activate()
    rig = Rig(front, process, drive)
    rig.connect()
    one, _, _ = process.resources()

    assert rear.state() == 'unconfigured'  # it has a life of its own
    assert rear.configure()
    assert rear.activate()
    depth = rear.listen(Image, 'depth/image')
    status = rear.listen(DepthStatus, 'depth/status')
    index, stamp = 41, 2000.0

    def send() -> None:
        nonlocal stamp
        stamp += 0.1
        pixels = drive.image(index)
        info = info_message(drive.k, pixels.shape[1], pixels.shape[0], stamp)
        rear.publish('sparse/points', cloud_message(drive.points(index), stamp))
        rear.publish('camera_info', info)
        rear.publish('/usb_cam/image_raw', image_message(pixels, stamp))

    repeat(send, lambda: any(m.state == DepthStatus.METRIC for m in status.messages), 'metres')
    until(lambda: depth.messages, 'a depth image')
    assert depth.messages[-1].encoding == '16UC1'  # its own parameter
    two, _, _ = process.resources()
    # Its own engine would be 150 MB more. What it does take is buffers, most of them of DDS.
    assert two - one < 70

    # Both at once; and one that leaves takes nothing from the other.
    status.messages.clear()
    repeat(lambda: (rig.send(), send()), lambda: len(status.messages) > 2, 'both')
    assert front.deactivate()
    assert front.cleanup()
    status.messages.clear()
    repeat(send, lambda: any(m.state == DepthStatus.METRIC for m in status.messages), 'metres')


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['--cameras', 'front', 'front'], 'another namespace'),
        (['--cameras', 'a', 'b', '--ros-args', '-r', '__ns:=/robot'], 'do not remap __ns'),
        (['--cameras', 'not a name'], "'not a name' is no namespace"),
        (['--cameras'], 'expected at least one argument'),
        (['--camera', 'front'], 'unrecognized arguments'),
    ],
)
def test_what_cannot_be_is_refused(arguments: list[str], words: str) -> None:
    result = subprocess.run(
        [sys.executable, str(ROOT / 'scripts' / 'depth_node'), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert words in result.stderr
    assert 'Traceback' not in result.stderr
