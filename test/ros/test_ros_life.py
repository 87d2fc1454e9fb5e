"""What happens in weeks: backends fail, cameras stall and change, time jumps, others ask too much.

A real node process, real DDS. The tests with a node of their own come first: that of the others
lives from the first of them to the last.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rclpy
from conftest import ROOT, small_parameters
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from harness import (
    DepthNodeProcess,
    Drive,
    Listener,
    Rig,
    Tester,
    cloud_message,
    header,
    image_message,
    info_message,
    repeat,
    seconds,
    until,
)
from rclpy.duration import Duration
from rclpy.qos import (
    DurabilityPolicy,
    LivelinessPolicy,
    QoSProfile,
    ReliabilityPolicy,
    qos_profile_sensor_data,
)
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image, LaserScan, PointCloud2, Range

from briges_ros.msg import DepthStatus

Start = Callable[..., DepthNodeProcess]

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR
OUTPUTS = {
    'depth/image': Image,
    'depth/camera_info': CameraInfo,
    'depth/points': PointCloud2,
    'depth/sigma': Image,
    'depth/relative': Image,
    'depth/preview': Image,
    'depth/obstacles': PointCloud2,
    'depth/scan': LaserScan,
    'depth/clearing': PointCloud2,
    'depth/status': DepthStatus,
}
INPUTS = {
    'image': Image,
    'camera_info': CameraInfo,
    'sparse/points': PointCloud2,
    'sparse/scan': LaserScan,
    'sparse/depth': Image,
    'sparse/camera_info': CameraInfo,
    'sparse/range': Range,
}


class Diagnostics(Listener):
    """What the node says of itself, of now."""

    def __init__(self, tester: Tester) -> None:
        super().__init__(tester, DiagnosticArray, '/diagnostics', QoSProfile(depth=10))

    @property
    def status(self) -> DiagnosticStatus:
        until(lambda: self.messages, 'diagnostics')
        return self.messages[-1].status[0]

    def value(self, key: str) -> str:
        return {entry.key: entry.value for entry in self.status.values}[key]

    def says(self, level: bytes, *texts: str) -> None:
        """Wait until it is of this level, and all the texts are in its message."""
        until(
            lambda: self.status.level == level and all(t in self.status.message for t in texts),
            f'{texts} in the diagnostics',
        )

    def recovers(self) -> None:
        """Wait until there is no error."""
        until(lambda: self.status.level != ERROR, 'no error in the diagnostics')


# ---- the backend ---------------------------------------------------------------------------------


def test_a_backend_that_fails_comes_back(
    start: Start, tester: Tester, model: str, drive: Drive, tmp_path: Path
) -> None:
    broken = tmp_path / 'broken'
    process = start(
        {**small_parameters(model, drive), 'backend': 'onnxruntime', 'autostart': True},
        environment={'BREAK': str(broken)},
        script=Path(__file__).with_name('breakable_node.py'),
    )
    rig = Rig(tester, process, drive)
    rig.stamp = time.time()
    rig.connect()
    status = tester.listen(DepthStatus, 'depth/status')
    diagnostics = Diagnostics(tester)
    diagnostics.says(OK, 'metric')

    def fail(times: int, how: str) -> None:
        diagnostics.messages.clear()  # they may be of the activation before
        before = int(diagnostics.value('images failed'))
        broken.write_text(how)
        for failed in range(times):
            rig.send()
            until(
                lambda n=before + failed: int(diagnostics.value('images failed')) > n, 'a failure'
            )

    # One bad frame is one bad frame.
    fail(1, 'once')
    assert not broken.exists()
    assert status.wait(rig.send()).state == DepthStatus.METRIC
    diagnostics.recovers()
    process.logged("image of '/image' dropped: onnxruntime (fp32) does not run the depth_encoder")

    # A backend that is gone takes the node through error processing, and back when it is back.
    fail(3, 'all')
    why = 'CUDA error 719: unspecified launch failure'
    diagnostics.says(ERROR, 'the backend failed: onnxruntime (fp32) does not run', why, 'next try')
    until(lambda: tester.state() == 'unconfigured', 'error processing')
    assert diagnostics.value('life cycle') == 'unconfigured'
    process.logged('next try in 1 s', 'next try in 2 s')
    broken.unlink()
    until(lambda: tester.state() == 'active', 'the return')
    rig.connect()
    diagnostics.recovers()
    assert diagnostics.value('backend failures') == '1'
    assert 'Traceback' not in process.log

    # If it does not last, the pauses go on growing. Whoever asks for a transition, decides.
    fail(3, 'all')
    process.logged('next try in 4 s')
    assert tester.state() == 'unconfigured'
    assert not tester.cleanup()
    until(lambda: 'next try' not in diagnostics.status.message, 'the end of the tries')
    diagnostics.says(ERROR, 'the backend failed: ', why)
    process.logged('no more tries of our own')
    broken.unlink()
    assert tester.configure()
    assert tester.activate()
    rig.connect()
    diagnostics.recovers()

    # Images that the engine does not run are no reason to load another.
    fail(3, 'images')
    process.logged('3 images in a row failed, and the engine passes its self-check')
    diagnostics.says(ERROR, 'the last 3 images were dropped: image of', why)
    assert tester.state() == 'active'
    broken.unlink()
    assert status.wait(rig.send()).state == DepthStatus.METRIC
    diagnostics.recovers()

    # One that hangs cannot be helped, but told.
    broken.write_text('hang')
    rig.send()
    diagnostics.says(ERROR, 'one image is in the works for', 'restart the node')
    broken.unlink()
    diagnostics.recovers()
    status.close()
    diagnostics.close()


# ---- time ----------------------------------------------------------------------------------------


def test_time_is_simulated_and_begins_again(
    start: Start, tester: Tester, model: str, drive: Drive
) -> None:
    parameters = {
        **small_parameters(model, drive),
        'refinement': True,  # depth is carried from frame to frame
        'autostart': True,
        'use_sim_time': True,
    }
    process = start(parameters)
    rig = Rig(tester, process, drive)
    diagnostics = Diagnostics(tester)
    until(lambda: "nothing came on '/clock' yet" in diagnostics.status.message, 'the missing clock')

    def tick(stamp: float) -> None:
        tester.publish('/clock', Clock(clock=header(stamp).stamp))

    tick(rig.stamp)
    rig.connect()
    status = tester.listen(DepthStatus, 'depth/status')
    depth = tester.listen(Image, 'depth/image')

    def play() -> list[tuple[DepthStatus, bytes]]:
        """The drive from its beginning: three frames with LiDAR, and one without."""
        came = []
        for frame, stamp, points in (
            (30, 100.0, True),
            (31, 100.1, True),
            (32, 100.2, True),
            (33, 100.7, False),  # what the LiDAR sent before is too old
        ):
            rig.stamp = stamp - 0.1
            tick(stamp + 0.05)
            status.messages.clear()
            depth.messages.clear()
            rig.send(index=frame, points=points)
            came.append((status.wait(stamp), depth.wait(stamp).data.tobytes()))
        return came

    first, second = play(), play()
    states = [DepthStatus.METRIC] * 3 + [DepthStatus.HELD]
    assert [said.state for said, _ in first] == states
    for (one, pixels), (other, same_pixels) in zip(first, second, strict=True):
        assert (one.state, one.scale, one.shift) == (other.state, other.scale, other.shift)
        assert one.covariance.tolist() == other.covariance.tolist()
        assert (one.inliers, one.age) == (other.inliers, other.age)
        assert pixels == same_pixels
        assert 0 < one.image_age_ms < 1e3  # by the simulated clock
    # The clock stands still: the node does not.
    diagnostics.messages.clear()
    until(lambda: len(diagnostics.messages) >= 2, 'diagnostics')
    assert {seconds(message.header.stamp) for message in diagnostics.messages} == {100.75}
    assert tester.set('points.stride', 2)[0]
    assert 'time begins again' in process.log
    for listener in (status, depth, diagnostics):
        listener.close()


# ---- cameras -------------------------------------------------------------------------------------


def test_a_camera_stalls_and_another_comes(rig: Rig) -> None:
    tester, drive = rig.tester, rig.drive
    status = tester.listen(DepthStatus, 'depth/status')
    diagnostics = Diagnostics(tester)
    assert status.wait(rig.send()).state == DepthStatus.METRIC
    diagnostics.says(WARN, "no image on '/image' for ", '1 publisher(s)')
    for gap, state in ((3.0, DepthStatus.HELD), (6.0, DepthStatus.RELATIVE)):
        assert status.wait(rig.send()).state == DepthStatus.METRIC
        rig.later(gap)
        said = status.wait(rig.send(points=False))
        assert said.state == state
        assert said.age == pytest.approx(gap + 0.1, abs=0.01)
    assert status.wait(rig.send()).state == DepthStatus.METRIC
    until(lambda: 'no image' not in diagnostics.status.message, 'the end of the stall')

    # The camera is unplugged, another one comes: of its scale nothing is known.
    for topic in ('image', 'camera_info'):
        tester.forget(topic)
    diagnostics.says(WARN, "no image on '/image' for ", 'nobody publishes it')
    left, width, height = 300, 640, 360
    k = drive.k - [[0, 0, left], [0, 0, 0], [0, 0, 0]]

    def other(points: bool, frame_id: str = 'other_optical_frame') -> DepthStatus:
        stamp = rig.later(0.5)  # what the LiDAR sent before is too old
        if points:
            tester.publish('sparse/points', cloud_message(drive.points(40), stamp))
        pixels = np.ascontiguousarray(drive.image(40)[:height, left : left + width, ::-1])
        info = info_message(k, width, height, stamp)
        image = image_message(pixels, stamp, 'bgr8', frame_id)
        info.header = image.header
        tester.publish('camera_info', info)
        tester.publish('image', image)
        return status.wait(stamp)

    repeat(lambda: rig.send(), lambda: status.of(rig.stamp), 'an image of the old one')  # METRIC
    assert status.of(rig.stamp).state == DepthStatus.METRIC
    said = other(points=False)
    assert said.state == DepthStatus.RELATIVE
    assert said.header.frame_id == 'other_optical_frame'
    assert other(points=True).state == DepthStatus.METRIC
    assert other(points=False).state == DepthStatus.HELD
    assert other(points=False, frame_id='third').state == DepthStatus.RELATIVE
    status.close()
    diagnostics.close()


def test_an_image_that_cannot_be_used_is_told_until_one_can(rig: Rig) -> None:
    diagnostics = Diagnostics(rig.tester)
    status = rig.tester.listen(DepthStatus, 'depth/status')
    odd = image_message(np.zeros((8, 8), np.uint8), 0.0, 'mono8')
    odd.encoding = 'cmyk8'
    repeat(
        lambda: rig.send(image=odd),
        lambda: diagnostics.status.level == ERROR,
        'an error in the diagnostics',
    )
    assert re.match(
        "the last . images were dropped: image of '/image' dropped: .*cmyk8",
        diagnostics.status.message,
    )
    rig.send()
    diagnostics.recovers()
    repeat(
        lambda: rig.send(image=odd),
        lambda: diagnostics.status.level == ERROR,
        'an error in the diagnostics',
    )
    status.close()
    repeat(lambda: rig.send(image=odd), lambda: 'idle' in diagnostics.status.message, 'idleness')
    diagnostics.says(OK, 'idle: nobody subscribes to an output')
    diagnostics.close()


def test_stamps_that_are_wrong(rig: Rig) -> None:
    status = rig.tester.listen(DepthStatus, 'depth/status')
    diagnostics = Diagnostics(rig.tester)
    begin = rig.stamp
    for stamp in (begin + 1e6, begin, begin - 100.0, begin + 10):
        rig.stamp = stamp
        assert status.wait(rig.send()).state == DepthStatus.METRIC, stamp
    # These stamps are of another clock than the node's.
    diagnostics.says(WARN, "behind the node's clock: set use_sim_time for a bag")
    status.close()

    # Without any stamps, measurements belong to the images that come when they do.
    status = rig.tester.listen(DepthStatus, 'depth/status')

    def send(points: bool) -> None:
        rig.stamp = -0.1
        rig.send(points=points)

    repeat(
        lambda: send(points=True),
        lambda: any(said.state == DepthStatus.METRIC for said in status.messages),
        'metres without stamps',
    )
    assert np.isnan(status.messages[-1].image_age_ms)
    status.messages.clear()
    repeat(lambda: send(points=False), lambda: status.messages[-1:], 'a frame')
    repeat(
        lambda: send(points=False),
        lambda: status.messages[-1].state == DepthStatus.HELD and status.messages[-1].age > 1.0,
        'a scale that ages',
    )
    # A sensor that stamps does not go with a camera that does not.
    rig.tester.publish('sparse/points', cloud_message(rig.drive.points(40), begin))
    until(lambda: 'sparse' in status.messages[-1].reason, 'a reason')
    rig.stamp = begin + 1000.0
    rig.send()
    status.close()
    diagnostics.close()


# ---- quality of service --------------------------------------------------------------------------


def test_subscribers_that_ask_too_much_are_named_with_the_mend(rig: Rig) -> None:
    tester = rig.tester
    diagnostics = Diagnostics(tester)
    asks = QoSProfile(
        depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
    )
    subscriptions = [
        tester.spinning(tester.node.create_subscription, kind, topic, print, asks)
        for topic, kind in OUTPUTS.items()
    ]
    says = "a subscriber of '/{}' asks for more than is offered and gets nothing: '/tester' has to "
    says += 'subscribe volatile'
    diagnostics.says(WARN, *map(says.format, OUTPUTS))
    rig.process.logged(*map(says.format, OUTPUTS))
    for subscription in subscriptions:
        tester.spinning(tester.node.destroy_subscription, subscription)
    until(lambda: 'a subscriber of' not in diagnostics.status.message, 'the end of it')
    diagnostics.close()


@pytest.mark.parametrize('topic', INPUTS)
def test_every_publisher_is_heard(rig: Rig, topic: str) -> None:
    profiles = (
        qos_profile_sensor_data,
        QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL),
        QoSProfile(
            depth=1,
            reliability=ReliabilityPolicy.BEST_EFFORT,
            deadline=Duration(seconds=10),
            lifespan=Duration(seconds=10),
            liveliness=LivelinessPolicy.MANUAL_BY_TOPIC,
            liveliness_lease_duration=Duration(seconds=10),
        ),
    )
    tester = rig.tester
    for profile in profiles:
        publisher = tester.spinning(tester.node.create_publisher, INPUTS[topic], topic, profile)
        until(lambda p=publisher: p.get_subscription_count() > 0, f'the node to hear {profile}')
        tester.spinning(tester.node.destroy_publisher, publisher)


def test_a_sparse_topic_of_another_type_is_named(rig: Rig) -> None:
    diagnostics = Diagnostics(rig.tester)
    context = rclpy.Context()  # another process, as it were: a topic has one type in each
    context.init()
    stranger = rclpy.create_node('stranger', context=context)
    stranger.create_publisher(PointCloud2, '/sparse/range', 1)
    diagnostics.says(
        WARN,
        "'/sparse/range' is published as sensor_msgs/msg/PointCloud2, not sensor_msgs/msg/Range",
    )
    stranger.destroy_node()
    context.try_shutdown()
    until(lambda: 'is published as' not in diagnostics.status.message, 'the end of it')
    diagnostics.close()


# ---- diagnostics ---------------------------------------------------------------------------------


def test_the_page_names_what_the_node_tells(rig: Rig) -> None:
    page = (ROOT / 'docs' / 'diagnostics.md').read_text()
    described = set(re.findall(r'^\| `([^`]+)` \|', page, re.MULTILINE))
    diagnostics = Diagnostics(rig.tester)
    status = rig.tester.listen(DepthStatus, 'depth/status')
    repeat(rig.send, lambda: diagnostics.value('output rate [Hz]') != '0.00', 'frames')
    said = {entry.key: entry.value for entry in diagnostics.status.values}
    assert {re.sub('^sparse/.*', 'sparse/SOURCE', key) for key in said} == described
    for key in described - {'sparse/SOURCE'}:
        if '[' in key or key.startswith('images'):
            assert np.isfinite(float(said[key])), key
    assert float(said['latency, total [ms]']) >= float(said['latency, inference [ms]']) > 0
    assert 50 < float(said['memory [MB]']) < 4000
    assert 0 < float(said['self-check relative error']) < 0.2
    assert said['scale state'] in ('METRIC', 'HELD')
    status.close()
    diagnostics.close()
