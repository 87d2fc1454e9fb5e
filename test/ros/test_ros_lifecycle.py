"""The life of the process: states, failures, parameters, signals. Real process, real services."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rclpy
from conftest import small_parameters
from diagnostic_msgs.msg import DiagnosticArray
from harness import (
    DepthNodeProcess,
    Drive,
    Rig,
    Tester,
    image_message,
    info_message,
    repeat,
    until,
)
from lifecycle_msgs.msg import Transition
from sensor_msgs.msg import CompressedImage, Image
from std_srvs.srv import Trigger

from briges_ros.errors import BrigesError
from briges_ros.inference.bundle import ModelBundle
from briges_ros.inference.engine import precisions
from briges_ros.msg import DepthStatus

Start = Callable[..., DepthNodeProcess]


@pytest.fixture
def node(start: Start) -> Iterator[DepthNodeProcess]:
    """An unconfigured node."""
    yield start()


def test_states(start: Start, tester: Tester, model: str, drive: Drive) -> None:
    rig = Rig(tester, start(small_parameters(model, drive)), drive)
    assert tester.state() == 'unconfigured'
    # What a state does not allow is answered, and not the end of the node.
    assert not tester.activate()
    assert not tester.cleanup()
    assert not tester.transition(123)
    assert tester.state() == 'unconfigured'

    for _ in range(2):
        assert tester.configure()
        assert tester.state() == 'inactive'
        assert not tester.configure()
        assert tester.node.count_subscribers('/image') == 0
        status = tester.listen(DepthStatus, 'depth/status')
        for _ in range(2):
            assert tester.activate()
            assert tester.state() == 'active'
            came = status.messages
            came.clear()
            repeat(rig.send, came.copy, 'an output')
            assert came[0].frames_processed == 1  # since activation
            assert tester.deactivate()
            until(lambda: tester.node.count_subscribers('/image') == 0, 'no subscription')
            assert tester.state() == 'inactive'
        assert tester.cleanup()
        assert tester.state() == 'unconfigured'
        until(lambda: tester.node.count_publishers('/depth/status') == 0, 'no publisher')
        status.close()
    assert tester.transition(Transition.TRANSITION_UNCONFIGURED_SHUTDOWN)
    assert tester.state() == 'finalized'


def test_missing_model(node: DepthNodeProcess, tester: Tester, model: str) -> None:
    assert tester.set('model', 'no_such_model') == (True, '')
    diagnostics = tester.listen(DiagnosticArray, '/diagnostics')
    assert not tester.configure()
    node.logged("configure failed: no model bundle named 'no_such_model'")
    assert tester.state() == 'unconfigured'
    assert tester.node.count_publishers('/depth/image') == 0  # nothing half-loaded

    def fault() -> bool:
        return any(
            message.status[0].level == b'\2' and 'no_such_model' in message.status[0].message
            for message in diagnostics.messages
        )

    until(fault, 'the reason in the diagnostics')
    diagnostics.close()
    assert tester.set('model', model) == (True, '')
    assert tester.configure()
    assert tester.state() == 'inactive'


@pytest.mark.parametrize('damage', ['truncated graph', 'no graph', 'no description'])
def test_corrupt_model(
    node: DepthNodeProcess, tester: Tester, model: str, tmp_path: Path, damage: str
) -> None:
    bundle = ModelBundle.load(model)
    folder = tmp_path / 'damaged'
    shutil.copytree(bundle.folder, folder)
    graph = folder / bundle.graphs['gate_decoder'].name
    if damage == 'truncated graph':
        graph.write_bytes(graph.read_bytes()[:1000])
    elif damage == 'no graph':
        graph.unlink()
    else:
        (folder / 'model.json').write_text('{')
    assert tester.set('model', str(folder))[0]
    assert not tester.configure()
    node.logged('configure failed: ', str(folder))
    assert 'Traceback' not in node.log
    assert tester.state() == 'unconfigured'
    assert tester.set('model', str(bundle.folder))[0]
    assert tester.configure()


def test_unknown_backend(node: DepthNodeProcess, tester: Tester, model: str) -> None:
    assert tester.set('backend', 'abacus')[0]
    assert not tester.configure()
    node.logged("configure failed: unknown backend 'abacus'")
    try:
        precisions(ModelBundle.load(model), 'tensorrt')
    except BrigesError as error:  # no GPU, or no TensorRT: the node says it in the same words
        assert tester.set('backend', 'tensorrt')[0]
        assert not tester.configure()
        node.logged(f'configure failed: {error}')
        assert tester.state() == 'unconfigured'
    assert 'Traceback' not in node.log
    assert tester.set('backend', 'onnxruntime')[0]
    assert tester.configure()
    node.logged('onnxruntime')


def test_the_engine_is_made_ready_for_the_images(
    start: Start, tester: Tester, model: str, drive: Drive
) -> None:
    rig = Rig(tester, start(small_parameters(model, drive)), drive)
    height, width = drive.image(0).shape[:2]
    assert tester.set('image_width', 64)[0]
    assert not tester.configure()
    rig.process.logged("configure failed: 'image_width' is 64 and 'image_height' 0: give both")
    assert tester.set('image_height', 48)[0]
    assert tester.configure()
    assert tester.activate()
    rig.connect()
    rig.process.logged(f'images are {width}x{height}, not 64x48 as image_size')


def test_parameters_take_effect_or_are_refused(
    node: DepthNodeProcess, tester: Tester, model: str
) -> None:
    for name, value, says in (
        ('depth.encoding', 'mono8', 'choose one of 32FC1, 16UC1'),
        ('points.stride', 0, 'out of range'),
        ('points.stride', 2.0, 'Wrong parameter type'),
        ('depth.min_range', 500.0, 'not below'),
        ('sparse.extrinsics', [1.0, 2.0], 'holds 2 numbers'),
        ('autostart', True, 'read'),
        ('no_such_parameter', 1, 'declared'),
    ):
        taken, why = tester.set(name, value)
        assert not taken, name
        assert says in why
    structural = {
        'model': 'other',
        'backend': 'onnxruntime',
        'threads': 1,
        'image_transport': 'compressed',
        'output_qos': 'sensor_data',
        'hold_duration': 1.0,
        'prior.scale': 0.5,
        'prior.shift': 0.1,
    }
    assert tester.configure()
    before = {name: tester.get(name) for name in structural}
    for name, value in structural.items():
        taken, why = tester.set(name, value)
        assert not taken
        assert f"'{name}'" in why
        assert 'cleanup' in why
        assert tester.get(name) == before[name]
        assert tester.set(name, before[name])[0]  # what does not change is no change
    assert tester.cleanup()
    for name, value in structural.items():
        assert tester.set(name, value) == (True, '')


@pytest.mark.parametrize(
    ('arguments', 'says'),
    [
        (['-p', 'depth.max_range:=80'], "'depth.max_range' takes a double (with a decimal point)"),
        (['-p', 'depth.max_range:=-1.0'], 'depth.max_range'),
        (['-p', 'depth.encoding:=mono8'], 'choose one of 32FC1, 16UC1'),
        (['-p', 'depth.min_range:=200.0'], 'not below'),
        (['--params-file', '/no/such/file.yaml'], '/no/such/file.yaml'),
        (['--no-such-argument'], '--no-such-argument'),
    ],
)
def test_bad_command_line_is_one_line_and_code_2(arguments: list[str], says: str) -> None:
    process = DepthNodeProcess(arguments=arguments)
    assert process.wait() == 2
    lines = [line for line in process.log.splitlines() if line.startswith('depth_node: ')]
    assert len(lines) == 1
    assert says in lines[0]
    assert 'Traceback' not in process.log


def test_shipped_parameter_file_and_misspelt_parameter(start: Start, tester: Tester) -> None:
    file = Path(__file__).resolve().parents[2] / 'config' / 'depth.yaml'
    process = start({'points.strid': 2}, ['--params-file', str(file), '-r', '__ns:=/'])
    process.logged("parameter 'points.strid' is unknown and ignored; did you mean 'points.stride'?")
    assert tester.state() == 'unconfigured'
    assert tester.get('points.stride') == 1
    assert process.log.count('is unknown') == 1


def test_autostart(start: Start, tester: Tester, model: str) -> None:
    process = start({'model': model, 'autostart': True})
    process.logged("active: waiting for '/image' and '/camera_info'")
    assert tester.state() == 'active'


def test_autostart_that_fails_can_be_mended(start: Start, tester: Tester, model: str) -> None:
    process = start({'model': 'no_such_model', 'autostart': True})
    process.logged('configure failed: ')
    assert tester.state() == 'unconfigured'
    assert tester.set('model', model)[0]
    assert tester.configure()


@pytest.mark.parametrize('signals', [[signal.SIGINT] * 2, [signal.SIGTERM], [signal.SIGINT] * 5])
def test_signals_while_working_end_with_0(
    start: Start, tester: Tester, model: str, drive: Drive, signals: list[int]
) -> None:
    rig = Rig(tester, start(small_parameters(model, drive)), drive)
    assert tester.configure()
    assert tester.activate()
    rig.connect()
    status = tester.listen(DepthStatus, 'depth/status')
    for _ in range(3):
        rig.send()  # in flight and waiting when the signals come
    for number in signals:
        rig.process.signal(number)
    assert rig.process.wait() == 0
    assert 'Traceback' not in rig.process.log
    status.close()


def test_signals_while_loading_end_with_0(start: Start, model: str) -> None:
    process = start({'model': model, 'autostart': True, 'points.strid': 1})
    process.logged('is unknown')  # up, and about to load
    process.signal(signal.SIGINT)
    process.signal(signal.SIGINT)
    assert process.wait() == 0
    assert 'Traceback' not in process.log


def test_rounds_of_the_life_cycle_leave_nothing_behind(
    start: Start, tester: Tester, model: str, drive: Drive
) -> None:
    process = start(small_parameters(model, drive))
    seen = []
    for _ in range(8):
        assert tester.configure()
        assert tester.activate()
        assert tester.deactivate()
        assert tester.cleanup()
        seen.append(process.resources())
    megabytes, threads, files = zip(*seen, strict=True)
    assert set(threads[1:]) == {threads[1]}, threads
    assert set(files[1:]) == {files[1]}, files
    assert max(megabytes[2:]) < megabytes[1] + 40, megabytes  # an engine has 200


def test_reset_scale_needs_a_configured_node(node: DepthNodeProcess, tester: Tester) -> None:
    answer = tester.call(Trigger, 'depth/reset_scale', Trigger.Request())
    assert not answer.success
    assert 'not configured' in answer.message


def test_silence_is_explained(start: Start, tester: Tester, model: str, drive: Drive) -> None:
    process = start(
        {'model': model, 'autostart': True}, ['-r', 'image:=/cam/image', '-r', '__ns:=/robot']
    )
    process.logged("no image on '/cam/image'", 'nobody publishes it; start the camera')

    context = rclpy.Context()  # another process, as it were: a topic has one type in each
    context.init()
    stranger = rclpy.create_node('stranger', context=context)
    stranger.create_publisher(CompressedImage, '/cam/image', 1)
    process.logged('its publishers send sensor_msgs/msg/CompressedImage, not sensor_msgs/msg/Image')
    stranger.destroy_node()
    context.try_shutdown()

    silent = tester.spinning(tester.node.create_publisher, Image, '/cam/image', 1)
    process.logged('1 publisher(s), but nothing comes through')
    tester.spinning(tester.node.destroy_publisher, silent)

    pixels = drive.image(0)

    repeat(
        lambda: tester.publish('/cam/image', image_message(pixels, 1.0)),
        lambda: "no camera_info on '/robot/camera_info'" in process.log,
        'the missing camera_info',
    )
    tester.forget('/cam/image')


def test_first_image_waits_for_camera_info(
    start: Start, tester: Tester, model: str, drive: Drive
) -> None:
    process = start(small_parameters(model, drive))
    assert tester.configure()
    assert tester.activate()
    status = tester.listen(DepthStatus, 'depth/status')
    pixels = drive.image(0)
    height, width = pixels.shape[:2]
    stamps = iter(range(1, 1000))
    repeat(
        lambda: tester.publish('image', image_message(pixels, next(stamps))),
        lambda: 'images arrive, but no camera_info' in process.log,
        'the missing camera_info',
    )
    last = next(stamps) - 1
    info = info_message(np.array(drive.k), width, height, 1.0)
    repeat(lambda: tester.publish('camera_info', info), lambda: status.of(last), 'the last image')
    assert [message.frames_processed for message in status.messages] == [1]
    status.close()


def test_namespace_and_remapping(start: Start, tester: Tester, model: str, drive: Drive) -> None:
    parameters: dict[str, Any] = {**small_parameters(model, drive), 'autostart': True}
    parameters['image_transport'] = 'compressed'
    process = start(
        parameters, ['-r', '__ns:=/robot', '-r', 'image:=/cam/image', '-r', 'depth/points:=cloud']
    )
    # The compressed topic moves along with its base, as with image_transport.
    process.logged("active: waiting for '/cam/image/compressed' and '/robot/camera_info'")
    until(lambda: tester.node.count_publishers('/robot/cloud'), 'the cloud')
    assert tester.node.count_publishers('/robot/depth/image') == 1
