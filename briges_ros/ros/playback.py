"""The other side of the node: start it as a process, walk its lifecycle, play frames, collect.

Used by the demonstration and the benchmarks; nothing here runs on a robot.
"""

from __future__ import annotations

import array
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from numpy.typing import NDArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CameraInfo, Image, PointCloud2, PointField
from std_msgs.msg import Header

from briges_ros.camera import CameraModel
from briges_ros.errors import BrigesError
from briges_ros.ros.conversions import array_to_image
from briges_ros.ros.outputs import status_type

NODE_NAME = 'depth'
CAMERA_FRAME = 'camera_optical_frame'
SENSOR_FRAME = 'sparse_sensor'


@dataclass(frozen=True, eq=False)
class PlayFrame:
    """One moment to play.

    Attributes:
        stamp_ns: of all its messages.
        image: (H, W, 3) uint8 RGB.
        camera: its intrinsics.
        points: (N, 3) float32 metres in `SENSOR_FRAME`, or None: the sensor is silent.
    """

    stamp_ns: int
    image: NDArray[np.uint8]
    camera: CameraModel
    points: NDArray[np.float32] | None


@dataclass
class Outputs:
    """What came back for one stamp; the times are `time.monotonic()` seconds."""

    sent: float | None = None
    received: float | None = None  # when depth/image came
    depth: Image | None = None
    cloud: PointCloud2 | None = None
    status: Any = None


class DepthNodeProcess:
    """The real node as a child process; its log goes to a file.

    Args:
        arguments: after ``--ros-args``, e.g. ``['-p', 'model:=compact']``.
        log_path: where its output goes.
    """

    def __init__(self, arguments: Sequence[str], log_path: Path) -> None:
        self.log_path = log_path
        self._log = log_path.open('wb')
        command = [sys.executable, '-m', 'briges_ros.ros.depth_node', '--ros-args', *arguments]
        self._process = subprocess.Popen(
            command, stdout=self._log, stderr=subprocess.STDOUT, start_new_session=True
        )

    def require_alive(self) -> None:
        """Raise BrigesError with the end of the log if the node has died."""
        code = self._process.poll()
        if code is not None:
            raise BrigesError(f'the node ended with code {code}: {self.log_tail()}')

    def log_tail(self, lines: int = 3) -> str:
        """The last lines of the node's log."""
        text = self.log_path.read_text(errors='replace').strip().splitlines()
        return ' | '.join(text[-lines:]) + f' (all of it: {self.log_path})'

    def stop(self, patience: float = 20.0) -> int:
        """Interrupt it as Ctrl-C does and return its exit code."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGINT)
        try:
            return self._process.wait(patience)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            return self._process.wait()
        finally:
            self._log.close()


class Player(Node):
    """Publishes frames to the node and collects its outputs by stamp."""

    def __init__(self, namespace: str = '') -> None:
        super().__init__('briges_player', namespace=namespace)
        # Reliable, so that a bag of big images arrives whole; the node's best effort accepts it.
        self._image = self.create_publisher(Image, 'image', QoSProfile(depth=5))
        self._info = self.create_publisher(CameraInfo, 'camera_info', QoSProfile(depth=5))
        self._points = self.create_publisher(PointCloud2, 'sparse/points', QoSProfile(depth=5))
        self.outputs: dict[int, Outputs] = {}
        best_effort = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
        self.create_subscription(Image, 'depth/image', self._on_depth, best_effort)
        self.create_subscription(PointCloud2, 'depth/points', self._on_cloud, best_effort)
        self.create_subscription(
            status_type(), 'depth/status', self._on_status, qos_profile_sensor_data
        )
        self._interrupted = False
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self)

    def _entry(self, header: Header) -> Outputs:
        stamp = header.stamp.sec * 1_000_000_000 + header.stamp.nanosec
        return self.outputs.setdefault(stamp, Outputs())

    def _on_depth(self, message: Image) -> None:
        entry = self._entry(message.header)
        entry.received = time.monotonic()
        entry.depth = message

    def _on_cloud(self, message: PointCloud2) -> None:
        self._entry(message.header).cloud = message

    def _on_status(self, message: Any) -> None:
        self._entry(message.header).status = message

    def interrupt(self, *_: object) -> None:
        """Have the next `spin_for` raise KeyboardInterrupt; takes what a signal handler takes."""
        self._interrupted = True

    def spin_for(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Handle messages for a while, or until a condition holds; returns whether it does."""
        end = time.monotonic() + seconds
        while not until():
            left = end - time.monotonic()
            if left <= 0:
                return until()
            self._executor.spin_once(timeout_sec=min(left, 0.05))
            if self._interrupted:
                raise KeyboardInterrupt
        return True

    def change_state(self, transition: int, node: DepthNodeProcess, patience: float = 90.0) -> None:
        """Ask the node for a lifecycle transition and wait until it is done.

        Raises:
            BrigesError: it died, refused or did not answer.
        """
        client = self.create_client(ChangeState, f'{NODE_NAME}/change_state')
        try:
            self._wait(client.service_is_ready, node, patience, 'offer its lifecycle services')
            request = ChangeState.Request(transition=Transition(id=transition))
            future = client.call_async(request)
            self._wait(future.done, node, patience, 'answer')
            if not future.result().success:
                raise BrigesError(f'the node refused the transition: {node.log_tail()}')
        finally:
            self.destroy_client(client)

    def wait_connected(self, node: DepthNodeProcess, patience: float = 30.0) -> None:
        """Wait until the node listens to what we publish and publishes what we listen to."""

        def connected() -> bool:
            publishers = (self._image, self._info, self._points)
            outputs = ('depth/image', 'depth/points', 'depth/status')
            return all(p.get_subscription_count() for p in publishers) and all(
                self.count_publishers(topic) for topic in outputs
            )

        self._wait(connected, node, patience, 'connect')

    def _wait(
        self, done: Callable[[], bool], node: DepthNodeProcess, patience: float, what: str
    ) -> None:
        end = time.monotonic() + patience
        while not self.spin_for(0.2, done):
            node.require_alive()
            if time.monotonic() > end:
                raise BrigesError(f'the node did not {what} in {patience:.0f} s: {node.log_tail()}')

    def play(self, frame: PlayFrame) -> None:
        """Publish one moment: points first, so that they are there when the image is aligned."""
        header = Header(frame_id=CAMERA_FRAME)
        header.stamp.sec, header.stamp.nanosec = divmod(frame.stamp_ns, 1_000_000_000)
        self.outputs.setdefault(frame.stamp_ns, Outputs()).sent = time.monotonic()
        if frame.points is not None:
            sensor = Header(frame_id=SENSOR_FRAME, stamp=header.stamp)
            self._points.publish(cloud_message(frame.points, sensor))
        self._info.publish(camera_info_message(frame.camera, header))
        self._image.publish(array_to_image(frame.image, 'rgb8', header))


@dataclass(frozen=True)
class PlayReport:
    """How a playback went.

    Attributes:
        outputs: by stamp in nanoseconds.
        seconds: from the first frame sent to the last output.
        exit_code: of the node when interrupted at the end.
    """

    outputs: dict[int, Outputs] = field(default_factory=dict)
    seconds: float = 0.0
    exit_code: int = 0


def play_through_node(
    frames: Sequence[PlayFrame],
    arguments: Sequence[str],
    log_path: Path,
    rate_hz: float,
    on_progress: Callable[[int, str], None],
) -> PlayReport:
    """Start the node, bring it up, play frames at a rate, collect, and stop it.

    Args:
        frames: what to play.
        arguments: ROS arguments of the node.
        log_path: of the node's log.
        rate_hz: frames per second; as a camera does, it does not wait for the node.
        on_progress: called with the number of frames played and what is being done.

    Raises:
        BrigesError: the node does not come up, dies, or gives nothing.
        KeyboardInterrupt: Ctrl-C; the node has been stopped.
    """
    # Ctrl-C is ours: rclpy would shut its context down under the player, and an exception from the
    # handler would come out of the message conversion as something else.
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    # A namespace of its own: there may be a robot on this network, whose depth node must not be
    # brought up by us, nor see our frames.
    namespace = f'/briges_demo_{os.getpid()}'
    node = DepthNodeProcess(['-r', f'__ns:={namespace}', *arguments], log_path)
    player = Player(namespace)
    handler = signal.signal(signal.SIGINT, player.interrupt)
    try:
        on_progress(0, 'configuring')
        player.change_state(Transition.TRANSITION_CONFIGURE, node)
        player.change_state(Transition.TRANSITION_ACTIVATE, node)
        player.wait_connected(node)
        start = time.monotonic()
        for index, frame in enumerate(frames):
            player.spin_for(start + index / rate_hz - time.monotonic())
            node.require_alive()
            player.play(frame)
            on_progress(index + 1, 'playing')
        last = player.outputs[frames[-1].stamp_ns]
        # The newest frame always wins, so the last one must come back.
        player.spin_for(30.0, lambda: last.depth is not None and last.status is not None)
        player.spin_for(0.3)
        node.require_alive()
        received = [entry.received for entry in player.outputs.values() if entry.received]
        if not received:
            raise BrigesError(f'the node published no depth: {node.log_tail()}')
        return PlayReport(player.outputs, max(received) - start, node.stop())
    finally:
        node.stop()
        player.destroy_node()
        rclpy.shutdown()
        signal.signal(signal.SIGINT, handler)


def cloud_message(points: NDArray[np.float32], header: Header) -> PointCloud2:
    """An unorganised xyz cloud of (N, 3) points."""
    data = array.array('B')
    data.frombytes(np.ascontiguousarray(points, np.float32).tobytes())
    return PointCloud2(
        header=header,
        height=1,
        width=len(points),
        fields=[
            PointField(name=name, offset=4 * i, datatype=PointField.FLOAT32, count=1)
            for i, name in enumerate('xyz')
        ],
        point_step=12,
        row_step=12 * len(points),
        is_dense=True,
        data=data,
    )


def camera_info_message(camera: CameraModel, header: Header) -> CameraInfo:
    """The camera_info of a raw image."""
    K = camera.K
    return CameraInfo(
        header=header,
        width=camera.width,
        height=camera.height,
        distortion_model='plumb_bob',
        d=[float(value) for value in camera.D] or [0.0] * 5,
        k=[float(value) for value in K.ravel()],
        r=[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
        p=[float(value) for value in np.hstack([K, np.zeros((3, 1))]).ravel()],
    )
