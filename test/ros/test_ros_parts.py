"""The parts that need no process: worker, throttle, buffers, transforms, diagnostics."""

from __future__ import annotations

import gc
import threading
import weakref
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
from harness import Tester, header, image_message, info_message, until
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.node import Node
from sensor_msgs.msg import Image, Range

from briges_ros.alignment.tracker import ScaleState, ScaleTracker
from briges_ros.camera import CameraModel
from briges_ros.errors import BrigesError
from briges_ros.pipeline import DepthPipeline
from briges_ros.ros.frame_processor import FrameProcessor
from briges_ros.ros.frame_worker import FrameWorker
from briges_ros.ros.health import Counters, Health, SourceReport, diagnostics
from briges_ros.ros.recovery import Recovery
from briges_ros.ros.sparse_inputs import FrameContext, StampedBuffer, _Source
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


def test_messages_without_a_stamp_have_that_of_their_arrival(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr('time.monotonic', lambda: now)
    source = _Source('range', Range, lambda *_: None)
    source.add(Range(header=header(0.0)))
    now = 100.1
    source.add(Range(header=header(0.0), range=2.0))
    now = 200.0
    source.add(Range(header=header(7.0)))
    (found,) = source.nearest(100.1, False, 0.2)
    assert found.range == 2.0
    assert not source.nearest(200.0, False, 0.2)
    assert len(source.nearest(7.0, True, 0.2)) == 1
    assert (source.latest(True), source.latest(False)) == (7.0, 100.1)


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


def test_what_moved_in_a_time_that_is_over_is_forgotten(transforms: Transforms) -> None:
    transforms.forget()  # without tf2_ros there is nothing
    transforms._buffer = mock.Mock()
    transforms.forget()
    transforms._buffer.clear.assert_called_once_with()


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
    health.warnings = ('a subscriber is deaf',)
    assert health.summary()[1].endswith('70 degrees; a subscriber is deaf')
    health.camera = ''
    assert health.summary() == (b'\1', 'a subscriber is deaf')
    health.warnings = ()
    assert health.summary() == (b'\0', 'metric')
    health.sources = (
        SourceReport('points', 12, 0.01, {'hidden': 3, 'too_far': 1}),
        SourceReport('range', 1, 0.01, {}),
    )
    values = {entry.key: entry.value for entry in diagnostics(health, '/d', stamp).status[0].values}
    assert values['sparse/points'] == '12 in use; 3 hidden, 1 too_far'
    assert values['sparse/range'] == '1 in use'
    health.silence = 'no image'
    assert health.summary() == (b'\1', 'no image')
    health.silence, health.idle = '', True
    assert health.summary() == (b'\0', 'idle: nobody subscribes to an output')


@pytest.mark.parametrize(('age', 'level'), [(-600.0, b'\1'), (9e3, b'\0'), (11e3, b'\1')])
def test_stamps_of_another_clock_are_a_warning(age: float, level: bytes) -> None:
    scale = replace(ScaleTracker().update(None, 1.0), state=ScaleState.METRIC)
    health = Health(Counters(), state='active', scale=scale, image_age_ms=age)
    assert health.summary()[0] == level
    assert ('clock' in health.summary()[1]) == (level == b'\1')


def test_dropped_images_are_a_warning_and_many_in_a_row_an_error() -> None:
    health = Health(Counters(), state='active', error='cmyk8', dropped_in_a_row=2)
    assert health.summary() == (b'\1', 'an image was dropped: cmyk8')
    health.dropped_in_a_row = 3
    assert health.summary() == (b'\2', 'the last 3 images were dropped: cmyk8')
    health.silence = 'no image'  # what was before is no longer the matter
    assert health.summary() == (b'\1', 'no image')
    health.begin()
    health.silence = ''
    assert health.summary() == (b'\0', 'no frame yet')


def test_rates_are_those_since_the_last_message(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr('time.monotonic', lambda: now)
    health = Health(Counters(received=7, processed=5))
    assert health.rates() == (0.0, 0.0)
    now, health.counters = 102.0, Counters(received=47, processed=15)
    assert health.rates() == (20.0, 5.0)
    now = 103.0
    health.begin()
    assert health.rates() == (0.0, 0.0)


# ---- recovery ----


def test_pauses_between_tries_double_up_to_a_minute() -> None:
    now = 0.0
    recovery = Recovery(clock=lambda: now)
    assert not recovery.pending
    assert not recovery.due
    for pause in (1, 2, 4, 8, 16, 32, 60, 60):
        recovery.failed('no device')
        assert str(recovery) == f'the backend failed: no device; next try in {pause} s'
        now += pause - 0.001
        assert not recovery.due
        now += 0.001
        assert recovery.due
        assert str(recovery).endswith('; trying again')
    assert recovery.failures == 1


@pytest.mark.parametrize(('lasts', 'pause'), [(60.0, 8), (60.1, 1)])
def test_pauses_start_anew_when_the_backend_has_worked_for_a_minute(
    lasts: float, pause: int
) -> None:
    now = 0.0
    recovery = Recovery(clock=lambda: now)
    for _ in range(3):
        recovery.failed('no device')
    recovery.succeeded()
    assert not recovery.pending
    now = lasts
    recovery.failed('no device')
    assert str(recovery).endswith(f'next try in {pause} s')
    assert recovery.failures == 2


def test_tries_that_were_stopped_are_over() -> None:
    now = 0.0
    recovery = Recovery(clock=lambda: now)
    for _ in range(3):
        recovery.failed('no device')
    recovery.stop()
    now = 1000.0
    assert not recovery.due
    recovery.failed('no device')
    assert str(recovery).endswith('next try in 1 s')


def configured(node: Any, model: str) -> None:
    """Take a node of this process to active."""
    from rclpy.parameter import Parameter

    settings = {'model': model, 'backend': 'onnxruntime', 'token_budget': 60, 'threads': 1}
    node.set_parameters([Parameter(name, value=value) for name, value in settings.items()])
    assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS
    assert node.trigger_activate() == TransitionCallbackReturn.SUCCESS


def play(node: Any, number: int) -> None:
    """Hand so many images to a node that nobody spins, and wait for each."""
    health, camera = node._health, node._inputs.camera
    camera._receive_info(info_message(np.diag([300.0, 300.0, 1.0]), 64, 48, 1.0))
    for count in range(1, number + 1):
        pixels = np.full((48, 64, 3), 50 * count, np.uint8)
        camera._receive_image(image_message(pixels, float(count)))
        until(lambda n=count: health.counters.processed + health.counters.failed == n, 'the frame')


def test_what_nobody_wants_is_not_computed(
    depth_node: Any, tester: Tester, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from briges_ros.msg import DepthStatus
    from briges_ros.ros import outputs

    configured(depth_node, model)
    made = []
    for name in ('_sparse', '_clearing', 'fit_ground', 'colorize', 'array_to_image', 'info_for'):
        monkeypatch.setattr(outputs, name, lambda *_, name=name: made.append(name))
    monkeypatch.setattr(outputs.Outputs, '_organised', lambda *_: made.append('points'))
    status = tester.listen(DepthStatus, 'depth/status')
    until(depth_node._outputs.wanted, 'the subscriber')
    play(depth_node, 1)
    status.wait(1.0)
    assert not made
    assert depth_node._health.counters.processed == 1
    status.close()


@pytest.mark.parametrize('dies', [False, True])
def test_an_engine_is_freed_without_the_garbage_collector(
    depth_node: Any, tester: Tester, model: str, dies: bool
) -> None:
    """It has hundreds of megabytes and threads of its own, and no circle may hold it."""
    configured(depth_node, model)
    pipeline, inputs = depth_node._pipeline, depth_node._inputs
    if dies:
        pipeline.engine._graphs = dict.fromkeys(pipeline.engine._graphs, dict)  # no outputs
    depth = tester.listen(Image, 'depth/image')
    until(depth_node._outputs.wanted, 'the subscriber')
    play(depth_node, 3)
    until(lambda: bool(depth_node._inputs.process.dead) == dies, 'its death')
    engine, processor = weakref.ref(pipeline.engine), weakref.ref(inputs.process)
    sparse = weakref.ref(inputs.sparse)
    del pipeline, inputs
    gc.collect()
    gc.disable()
    try:
        if dies:
            depth_node._tick()
            assert depth_node._health.recovery.pending
            assert depth_node._health.state == 'unconfigured'
        else:
            depth_node.trigger_deactivate()
            depth_node.trigger_cleanup()
        assert [engine(), processor(), sparse()] == [None] * 3
    finally:
        gc.enable()
    depth.close()


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


def processor_of_mocks() -> tuple[FrameProcessor, mock.Mock]:
    parts = mock.Mock()
    processor = FrameProcessor(
        *(parts.pipeline, parts.camera, parts.sparse, parts.mount, parts.transforms, parts.outputs),
        *(parts.settings, parts.health, parts.log),
    )
    return processor, parts


@pytest.mark.parametrize(
    ('changes', 'scale', 'ground', 'transforms'),
    [
        ({}, False, False, False),
        ({'stamp': 3.5}, False, True, False),
        ({'stamp': 1.9}, False, True, False),  # frames out of order
        ({'stamp': 0.5}, False, True, True),
        ({'frame_id': 'other'}, True, True, False),
        ({'width': 320}, True, True, False),
        ({'fx': 296.0}, True, True, False),
        ({'fx': 298.0}, False, False, False),
    ],
)
def test_what_is_over_is_forgotten(
    changes: dict[str, Any], scale: bool, ground: bool, transforms: bool
) -> None:
    processor, parts = processor_of_mocks()

    def frame(
        stamp: float = 2.1, frame_id: str = 'camera', width: int = 640, fx: float = 300.0
    ) -> FrameContext:
        parts.camera.focal_length = fx
        camera = CameraModel(width, 480, np.diag([300.0, 300.0, 1.0]))
        return FrameContext(header(stamp, frame_id), camera, parts.settings)

    processor._forget_what_is_over(frame(1.9))
    processor._forget_what_is_over(frame(2.0))
    parts.reset_mock()
    processor._forget_what_is_over(frame(**changes))
    assert parts.pipeline.reset_scale.called == scale
    assert parts.outputs.forget.called == ground
    assert parts.transforms.forget.called == transforms


def test_a_lens_that_zooms_slowly_is_another_camera_in_the_end() -> None:
    processor, parts = processor_of_mocks()
    for step in range(5):
        parts.camera.focal_length = 300.0 + step
        camera = CameraModel(640, 480, np.diag([300.0, 300.0, 1.0]))
        context = FrameContext(header(1.0 + step / 10), camera, parts.settings)
        processor._forget_what_is_over(context)
        assert parts.pipeline.reset_scale.called == (step == 4), step
