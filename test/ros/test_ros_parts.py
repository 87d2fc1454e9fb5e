"""The parts that need no process: worker, throttle, buffers, transforms, diagnostics."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from harness import Tester, header, until
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.node import Node

from briges_ros.alignment.tracker import ScaleState, ScaleTracker
from briges_ros.errors import BrigesError
from briges_ros.pipeline import DepthPipeline
from briges_ros.ros.frame_worker import FrameWorker
from briges_ros.ros.health import Counters, Health, SourceReport, diagnostics
from briges_ros.ros.sparse_inputs import StampedBuffer
from briges_ros.ros.throttle import ThrottledLog
from briges_ros.ros.transforms import TransformError, Transforms, matrix


def test_newest_frame_wins() -> None:
    done: list[int] = []
    begun, go = threading.Event(), threading.Event()

    def process(item: int) -> None:
        begun.set()
        go.wait()
        done.append(item)

    worker = FrameWorker(process)
    assert not worker.put(0)
    begun.wait()  # 0 is in flight
    assert not worker.put(1)  # waits
    assert worker.put(2)  # 1 is dropped
    assert worker.put(3)
    go.set()
    until(lambda: len(done) == 2, 'two items')
    worker.stop()
    assert done == [0, 3]


def test_stop_lets_the_frame_in_flight_finish() -> None:
    done: list[int] = []
    begun, go = threading.Event(), threading.Event()

    def process(item: int) -> None:
        begun.set()
        go.wait()
        done.append(item)

    worker = FrameWorker(process)
    worker.put(0)
    begun.wait()
    worker.put(1)
    stopper = threading.Thread(target=worker.stop)
    stopper.start()
    go.set()
    stopper.join()
    assert done == [0]


class Recorder:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.warning = self.error = self.lines.append


def test_throttle_tells_kinds_apart_but_not_numbers() -> None:
    now = 0.0
    recorder = Recorder()
    log = ThrottledLog(recorder, period=5.0, clock=lambda: now)
    for width in range(3):
        log.error(f'image is {width}')
    log.warning('no cloud')
    assert recorder.lines == ['image is 0', 'no cloud']
    now = 5.0
    log.error('image is 7')
    assert recorder.lines[-1] == 'image is 7 (2 more like this)'


def test_nearest_message() -> None:
    buffer: StampedBuffer[str] = StampedBuffer()
    assert buffer.nearest(1.0, 0.2) is None
    for stamp in (1.0, 1.1, 1.2, 1.3):
        buffer.add(stamp, f'at {stamp}')
    assert buffer.nearest(1.14, 0.2) == 'at 1.1'
    assert buffer.nearest(1.16, 0.2) == 'at 1.2'
    assert buffer.nearest(1.45, 0.2) == 'at 1.3'
    assert buffer.nearest(1.6, 0.2) is None
    buffer.add(1.6, 'first')
    buffer.add(1.6, 'second')
    assert buffer.nearest(1.6, 0.2) == 'second'


def test_time_that_begins_again_empties_the_buffer() -> None:
    buffer: StampedBuffer[str] = StampedBuffer()
    buffer.add(100.0, 'old')
    buffer.add(1.0, 'new')
    assert buffer.nearest(1.0, 0.2) == 'new'
    assert buffer.nearest(100.0, 200.0) == 'new'


def test_buffer_is_bounded() -> None:
    buffer: StampedBuffer[int] = StampedBuffer()
    for index in range(1000):
        buffer.add(index * 0.01, index)
    assert buffer.nearest(0.0, 100.0) == 940


def test_matrix_of_a_quaternion() -> None:
    half = np.sqrt(0.5)  # 90 degrees about z takes x to y
    transform = matrix((1.0, 2.0, 3.0), (0.0, 0.0, half, half))
    np.testing.assert_allclose(transform @ [1, 0, 0, 1], [1, 3, 3, 1], atol=1e-12)
    np.testing.assert_array_equal(matrix((0, 0, 0), (0, 0, 0, 1)), np.eye(4))


@pytest.fixture
def transforms(ros: None) -> Any:
    import rclpy

    node: Node = rclpy.create_node('transforms')
    transforms = Transforms(node)
    yield transforms
    transforms.close()
    node.destroy_node()


POSE = (1.0, 2.0, 3.0, 0.0, 0.0, 0.0, 1.0)


def test_same_frame_needs_no_transform(transforms: Transforms) -> None:
    stamp = header(1.0).stamp
    assert transforms.camera_from_sensor('camera', 'camera', stamp, None) is None
    assert transforms.camera_from_sensor('camera', 'camera', stamp, POSE) is None


def test_the_parameter_gives_the_pose(transforms: Transforms) -> None:
    found = transforms.camera_from_sensor('camera', 'lidar', header(1.0).stamp, POSE)
    np.testing.assert_array_equal(found, matrix(POSE[:3], POSE[3:]))


@pytest.mark.parametrize('frames', [('camera', 'nowhere'), ('camera', ''), ('', ''), ('', 'lidar')])
def test_unknown_pose_says_how_to_give_it(transforms: Transforms, frames: Any) -> None:
    with pytest.raises(TransformError, match=r"set the parameter 'sparse\.extrinsics'"):
        transforms.camera_from_sensor(*frames, header(1.0).stamp, None)


@pytest.mark.parametrize('base_frame', ['nowhere', ''])
def test_unknown_mount_says_how_to_give_it(transforms: Transforms, base_frame: str) -> None:
    with pytest.raises(TransformError, match=r"'camera\.height' and 'camera\.pitch'"):
        transforms.base_from_camera(base_frame, 'camera', header(1.0).stamp)


def test_tf_gives_the_pose(ros: None) -> None:
    tf2_ros = pytest.importorskip('tf2_ros', reason='tf2_ros comes with a ROS installation only')
    import rclpy
    from geometry_msgs.msg import TransformStamped

    node = rclpy.create_node('transforms')
    transforms = Transforms(node)
    message = TransformStamped(header=header(0.0, 'camera'), child_frame_id='lidar')
    message.transform.translation.x = 1.0
    message.transform.rotation.w = 1.0
    broadcaster = tf2_ros.StaticTransformBroadcaster(node)
    broadcaster.sendTransform(message)

    def pose() -> Any:
        rclpy.spin_once(node, timeout_sec=0.1)
        try:
            return transforms.camera_from_sensor('camera', 'lidar', header(5.0).stamp, None)
        except TransformError:
            return ()

    np.testing.assert_array_equal(
        until(lambda: len(found := pose()) and found, 'the transform'),
        matrix((1.0, 0.0, 0.0), (0, 0, 0, 1)),
    )
    np.testing.assert_array_equal(
        transforms.base_from_camera('camera', 'lidar', header(5.0).stamp),
        matrix((1.0, 0.0, 0.0), (0, 0, 0, 1)),
    )
    transforms.close()
    node.destroy_node()


def test_diagnostics() -> None:
    health = Health(Counters(received=7, superseded=2, processed=5))
    stamp = header(3.0).stamp
    assert health.summary() == (b'\0', 'unconfigured')
    health.fault = 'configure failed: no model'
    array = diagnostics(health, '/robot/depth', stamp)
    assert array.header.stamp == stamp
    status = array.status[0]
    assert (status.level, status.name) == (b'\2', 'robot/depth: depth')
    assert status.message == health.fault
    values = {entry.key: entry.value for entry in status.values}
    assert values['images received'] == '7'
    assert values['images superseded by newer ones'] == '2'
    health.fault, health.state = '', 'active'
    assert health.summary() == (b'\0', 'no frame yet')
    health.scale = ScaleTracker().update(None, 1.0)
    health.sparse = 'no message'
    level, message = health.summary()
    assert level == b'\1'
    assert message.startswith('RELATIVE: ')
    assert message.endswith('(no message)')
    assert any(
        entry.key == 'scale state' for entry in diagnostics(health, '/d', stamp).status[0].values
    )
    health.camera = 'field of view taken as 70 degrees'
    assert health.summary()[1].endswith('(no message); field of view taken as 70 degrees')
    health.scale = replace(health.scale, state=ScaleState.METRIC)
    assert health.summary() == (b'\1', 'metric, but field of view taken as 70 degrees')
    health.sources = (
        SourceReport('points', 12, 0.01, {'hidden': 3, 'too_far': 1}),
        SourceReport('range', 1, 0.01, {}),
    )
    values = {entry.key: entry.value for entry in diagnostics(health, '/d', stamp).status[0].values}
    assert values['sparse/points'] == '12 in use; 3 hidden, 1 too_far'
    assert values['sparse/range'] == '1 in use'
    health.silence = 'no image'
    assert health.summary() == (b'\1', 'no image')


@pytest.fixture
def depth_node(ros: None) -> Any:
    from briges_ros.ros.lifecycle_node import DepthNode

    node = DepthNode()
    yield node
    node.close()
    node.destroy_node()


def test_a_build_is_in_the_diagnostics_while_configure_works(
    depth_node: Any, tester: Tester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody spins the node: as with autostart, and as if its one thread were busy."""
    from diagnostic_msgs.msg import DiagnosticArray

    diagnostics = tester.listen(DiagnosticArray, '/diagnostics')

    def load(*_: Any, progress: Any, **__: Any) -> Any:
        def told() -> Any:
            progress('depth_encoder', 0.43)
            return [m.status[0] for m in diagnostics.messages if 'build' in m.status[0].message]

        status = until(told, 'a build in the diagnostics')[0]
        values = {entry.key: entry.value for entry in status.values}
        assert values['engine build'] == '43 % of depth_encoder'
        assert values['life cycle'] == 'configuring'
        assert (status.level, status.message) == (b'\0', 'engine build: 43 % of depth_encoder')
        progress('depth_encoder', 1.0)
        raise BrigesError('that was all')

    monkeypatch.setattr(DepthPipeline, 'load', load)
    before = threading.active_count()
    assert depth_node.trigger_configure() == TransitionCallbackReturn.FAILURE
    assert threading.active_count() == before
    health = depth_node._health
    assert (health.build, health.state) == ('', 'unconfigured')
    assert health.fault == 'configure failed: that was all'  # and no failed assertion
    diagnostics.close()


def test_a_build_ends_when_the_node_is_to_stop(
    depth_node: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = threading.Event()

    def load(*_: Any, progress: Any, **__: Any) -> Any:
        def build() -> bool:
            progress('depth_encoder', 0.43)
            begun.set()
            return False

        until(build, 'the end of a build that nobody ends')

    monkeypatch.setattr(DepthPipeline, 'load', load)

    def interrupt() -> None:
        begun.wait()
        depth_node.interrupt()

    threading.Thread(target=interrupt).start()
    assert depth_node.trigger_configure() == TransitionCallbackReturn.FAILURE
    assert 'the node is being stopped, while it builds depth_encoder' in depth_node._health.fault


def test_a_build_that_holds_frames_up_is_a_warning() -> None:
    health = Health(Counters(), state='active', build='43 % of depth_encoder')
    assert health.summary() == (b'\1', 'engine build: 43 % of depth_encoder')
