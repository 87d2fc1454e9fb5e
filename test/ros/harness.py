"""The real node as a process, and a ROS node beside it that plays, listens and calls services.

Everything goes over real DDS. Nothing waits for a fixed time: `until` waits for a condition, with a
deadline that is generous because a test machine may be busy.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import pytest

pytest.importorskip(
    'briges_ros.msg',
    reason='ROS 2 or the messages of briges_ros are missing: run make setup',
    exc_type=ImportError,
)

import rclpy
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import GetParameters, SetParameters
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image, PointCloud2, PointField
from std_msgs.msg import Header
from std_srvs.srv import Trigger

from briges_ros.msg import DepthStatus

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 90.0  # s; a deadline, not a duration
ANSWER_PATIENCE = 15.0  # s until a service is asked again
CAMERA_FRAME = 'camera_optical_frame'
LIDAR_FRAME = 'velodyne'

T = TypeVar('T')

running: list[DepthNodeProcess] = []  # those that are not to die while somebody waits


def until(condition: Callable[[], T], what: str, patience: float = PATIENCE) -> T:
    """Wait until `condition` returns something true, and return that."""
    deadline = time.monotonic() + patience
    while True:
        result = condition()
        if result:
            return result
        dead = [process for process in running if not process.alive]
        late = time.monotonic() > deadline
        if dead or late:
            logs = '\n'.join(process.log for process in dead or running)
            why = 'the node died' if dead else f'{patience:.0f} s passed'
            raise AssertionError(f'{why} while waiting for {what}. Its log:\n{logs}')
        time.sleep(0.01)


def repeat(action: Callable[[], Any], condition: Callable[[], T], what: str) -> T:
    """Act again and again, twice a second, until `condition` returns something true."""
    last = -math.inf

    def held() -> T:
        nonlocal last
        if time.monotonic() - last > 0.5:
            action()
            last = time.monotonic()
        return condition()

    return until(held, what)


class DepthNodeProcess:
    """scripts/depth_node of this checkout, as `ros2 run` starts it, or another script like it."""

    def __init__(
        self,
        parameters: Mapping[str, Any] | None = None,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        program_arguments: Sequence[str] = (),
        script: Path = ROOT / 'scripts' / 'depth_node',
    ) -> None:
        program = [sys.executable, str(script), *program_arguments]
        command = [*program, '--ros-args', *arguments]
        for name, value in (parameters or {}).items():
            command += ['-p', f'{name}:={_yaml(value)}']
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH', '')]))
        self._log = tempfile.TemporaryFile('w+')  # noqa: SIM115, closed in stop()
        self._process = subprocess.Popen(
            command,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env={**os.environ, 'PYTHONPATH': path, **(environment or {})},
            cwd='/',
        )
        running.append(self)
        atexit.register(self.stop)  # whatever becomes of the test

    @property
    def log(self) -> str:
        """Everything printed so far."""
        self._log.flush()
        return os.pread(self._log.fileno(), 1 << 24, 0).decode(errors='replace')

    def resources(self) -> tuple[int, int, int]:
        """Resident memory in MB, and how many threads and open files there are."""
        folder = Path('/proc') / str(self._process.pid)
        status = dict(line.split(':', 1) for line in (folder / 'status').read_text().splitlines())
        memory = int(status['VmRSS'].split()[0]) // 1024
        return memory, int(status['Threads']), len(list((folder / 'fd').iterdir()))

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def logged(self, *texts: str, since: int = 0) -> None:
        """Wait until all the texts are in the log (after the first `since` characters)."""
        until(lambda: all(text in self.log[since:] for text in texts), f'{texts} in the log')

    def signal(self, number: int) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def wait(self, patience: float = PATIENCE) -> int:
        """Wait for the end and return the exit code."""
        if self in running:
            running.remove(self)
        return self._process.wait(patience)

    def stop(self) -> int:
        """End it with SIGINT, by force if that fails, and return the exit code."""
        try:
            if self.alive:
                self.signal(signal.SIGINT)
            return self.wait()
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def _yaml(value: Any) -> str:
    return json.dumps(value)


class Listener:
    """Messages of one topic, in the order they came."""

    def __init__(self, tester: Tester, message_type: type, topic: str, qos: QoSProfile) -> None:
        self.messages: list[Any] = []
        self._tester = tester
        self._subscription = tester.spinning(
            tester.node.create_subscription, message_type, topic, self.messages.append, qos
        )
        self.topic = self._subscription.topic_name
        until(lambda: tester.node.count_publishers(self.topic) > 0, f'a publisher of {topic}')

    def of(self, stamp: float) -> Any | None:
        """The message with this stamp, if it came."""
        for message in reversed(self.messages):
            if seconds(message.header.stamp) == stamp:
                return message
        return None

    def wait(self, stamp: float) -> Any:
        """Wait for the message with this stamp."""
        return until(lambda: self.of(stamp), f'{self.topic} at {stamp}')

    def close(self) -> None:
        """Unsubscribe."""
        self._tester.spinning(self._tester.node.destroy_subscription, self._subscription)


class Tester:
    """A ROS node spun in a thread of its own."""

    __test__ = False  # says to pytest that it is no test

    def __init__(self, namespace: str | None = None) -> None:
        self.node = rclpy.create_node('tester', namespace=namespace)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self._publishers: dict[str, Any] = {}
        self._clients: dict[str, Any] = {}
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        with contextlib.suppress(ExternalShutdownException):
            self._executor.spin()

    def close(self) -> None:
        """Stop spinning and destroy the node."""
        self._executor.shutdown()
        self._thread.join()
        self.node.destroy_node()

    def spinning(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function in the thread that spins.

        What is destroyed in another one while the executor builds its wait set ends the executor.
        """
        task = self._executor.create_task(function, *arguments)
        until(task.done, f'{function.__name__} to be done')
        return task.result()

    # ---- services ----

    def call(self, service_type: type, name: str, request: Any) -> Any:
        """Call a service that may be called twice, and wait for the answer.

        An answer gets lost if the service has not discovered its client yet, although the client
        has discovered the service; so the call is repeated.
        """
        answers: list[Any] = []
        until(lambda: answers or self._call_once(service_type, name, request, answers), name)
        return answers[0]

    def _call_once(self, service_type: type, name: str, request: Any, answers: list[Any]) -> bool:
        """Call a service, collect the answer, and return whether it came in reasonable time."""
        if name not in self._clients:
            self._clients[name] = self.spinning(self.node.create_client, service_type, name)
        client = self._clients[name]
        until(client.service_is_ready, f'the service {name}')
        future = client.call_async(request)
        future.add_done_callback(lambda done: answers.append(done.result()))
        deadline = time.monotonic() + ANSWER_PATIENCE
        until(lambda: answers or time.monotonic() > deadline, f'an answer of {name}')
        return bool(answers)

    def transition(self, transition_id: int) -> bool:
        """Ask for a transition; return whether it succeeded."""
        request = ChangeState.Request(transition=Transition(id=transition_id))
        before = self.state()
        answers: list[Any] = []
        while not self._call_once(ChangeState, 'depth/change_state', request, answers):
            if self.state() != before:  # done, and the answer was lost
                return True
        return bool(answers[0].success)

    def configure(self) -> bool:
        """Ask for configure."""
        return self.transition(Transition.TRANSITION_CONFIGURE)

    def activate(self) -> bool:
        """Ask for activate."""
        return self.transition(Transition.TRANSITION_ACTIVATE)

    def deactivate(self) -> bool:
        """Ask for deactivate."""
        return self.transition(Transition.TRANSITION_DEACTIVATE)

    def cleanup(self) -> bool:
        """Ask for cleanup."""
        return self.transition(Transition.TRANSITION_CLEANUP)

    def state(self) -> str:
        """Return the label of the node's state."""
        return str(self.call(GetState, 'depth/get_state', GetState.Request()).current_state.label)

    def set(self, name: str, value: Any) -> tuple[bool, str]:
        """Set a parameter of the node; return whether it took it, and why not."""
        message = Parameter(name, value=value).to_parameter_msg()
        request = SetParameters.Request(parameters=[message])
        result = self.call(SetParameters, 'depth/set_parameters', request).results[0]
        return result.successful, result.reason

    def get(self, name: str) -> Any:
        """Get a parameter of the node."""
        request = GetParameters.Request(names=[name])
        value = self.call(GetParameters, 'depth/get_parameters', request).values[0]
        return Parameter.from_parameter_msg(_named(name, value)).value

    # ---- topics ----

    def listen(self, message_type: type, topic: str, reliable: bool = False) -> Listener:
        """Subscribe to an output of the node."""
        reliability = ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT
        return Listener(self, message_type, topic, QoSProfile(depth=50, reliability=reliability))

    def publish(self, topic: str, message: Any) -> None:
        """Publish to an input of the node, once it listens.

        The first message of a topic may still be lost: the node may not have discovered the
        publisher that has discovered it.
        """
        self.publish_bytes(topic, type(message), message)

    def publish_bytes(self, topic: str, kind: type, content: Any) -> None:
        """Publish as `publish`, bytes that stand for a serialised message of a type."""
        if topic not in self._publishers:
            self._publishers[topic] = self.spinning(
                self.node.create_publisher, kind, topic, QoSProfile(depth=10)
            )
        publisher = self._publishers[topic]
        until(lambda: publisher.get_subscription_count() > 0, f'a subscriber of {topic}')
        publisher.publish(content)

    def forget(self, topic: str) -> None:
        """Stop publishing a topic."""
        self.spinning(self.node.destroy_publisher, self._publishers.pop(topic))


def _named(name: str, value: Any) -> Any:
    from rcl_interfaces.msg import Parameter as ParameterMessage

    return ParameterMessage(name=name, value=value)


# ---- what is played ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drive:
    """Consecutive frames of a car: images, LiDAR, calibration."""

    folder: Path
    k: np.ndarray  # (3, 3), pixels
    t_camera_lidar: np.ndarray  # (4, 4)

    def __len__(self) -> int:
        return len(list((self.folder / 'image').glob('*.jpg')))

    def image(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB."""
        bgr = cv2.imread(str(self.folder / 'image' / f'{index:06d}.jpg'))
        return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)

    def points(self, index: int) -> np.ndarray:
        """(N, 3) float32 metres in the frame of the LiDAR."""
        return np.load(self.folder / 'lidar' / f'{index:06d}.npy')[:, :3].astype(np.float32)

    @property
    def extrinsics(self) -> list[float]:
        """The pose of the LiDAR in the camera, as the parameter sparse.extrinsics takes it."""
        rotation, translation = self.t_camera_lidar[:3, :3], self.t_camera_lidar[:3, 3]
        vector = cv2.Rodrigues(rotation)[0].ravel()
        angle = np.linalg.norm(vector)
        quaternion = [*vector / angle * np.sin(angle / 2), np.cos(angle / 2)]
        return [float(value) for value in (*translation, *quaternion)]


class Rig:
    """An active node and the drive: sends moments, with stamps that go on from test to test."""

    def __init__(self, tester: Tester, process: DepthNodeProcess, drive: Drive) -> None:
        self.tester = tester
        self.process = process
        self.drive = drive
        self.stamp = 1000.0

    def connect(self) -> None:
        """Send until a frame comes out metric: then the node hears all the topics of `send`."""
        status = self.tester.listen(DepthStatus, 'depth/status')
        repeat(
            self.send,
            lambda: any(message.state == DepthStatus.METRIC for message in status.messages),
            'a metric frame',
        )
        status.wait(self.stamp)  # and nothing of it is under way
        status.close()

    def forget(self) -> None:
        """Have the node forget the scale, so that the next frame depends on nothing before it."""
        assert self.tester.call(Trigger, 'depth/reset_scale', Trigger.Request()).success

    def later(self, by: float = 0.1) -> float:
        """Move the stamp on and return it."""
        self.stamp = round(self.stamp + by, 6)
        return self.stamp

    def send(
        self,
        *,
        index: int = 40,
        image: Image | None = None,
        info: CameraInfo | None = None,
        points: bool = True,
    ) -> float:
        """Publish one moment with a new stamp and return that.

        Args:
            index: of the frame in the drive.
            image, info: what to send instead of the frame's; they get the stamp.
            points: whether the LiDAR sends.
        """
        stamp = self.later()
        if points:
            self.tester.publish('sparse/points', cloud_message(self.drive.points(index), stamp))
        pixels = self.drive.image(index)
        if info is None:
            info = info_message(self.drive.k, pixels.shape[1], pixels.shape[0], stamp)
        if image is None:
            image = image_message(pixels, stamp)
        info.header = image.header = header(stamp)
        self.tester.publish('camera_info', info)
        self.tester.publish('image', image)
        return stamp


# ---- messages -----------------------------------------------------------------------------------


def seconds(stamp: Any) -> float:
    """A stamp in seconds, to the microsecond."""
    return round(stamp.sec + stamp.nanosec * 1e-9, 6)


def header(stamp: float, frame_id: str = CAMERA_FRAME) -> Header:
    """A header of a stamp in seconds."""
    microseconds = round(stamp * 1e6)
    message = Header(frame_id=frame_id)
    message.stamp.sec = microseconds // 1_000_000
    message.stamp.nanosec = microseconds % 1_000_000 * 1000
    return message


def image_message(
    pixels: np.ndarray, stamp: float, encoding: str = 'rgb8', frame_id: str = CAMERA_FRAME
) -> Image:
    """An unpadded image in this machine's byte order."""
    height, width = pixels.shape[:2]
    return Image(
        header=header(stamp, frame_id),
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=int(sys.byteorder == 'big'),
        step=pixels.nbytes // height,
        data=pixels.tobytes(),
    )


def padded(message: Image, padding: int) -> Image:
    """The same image with so many bytes after each row."""
    rows = np.frombuffer(message.data, np.uint8).reshape(-1, message.step)
    message.data = np.pad(rows, ((0, 0), (0, padding)), constant_values=99).tobytes()
    message.step += padding
    return message


def info_message(
    k: np.ndarray, width: int, height: int, stamp: float, d: Sequence[float] = (0.0,) * 5
) -> CameraInfo:
    """The camera_info of a camera that is not distorted, or is by `d`."""
    message = CameraInfo(
        header=header(stamp), width=width, height=height, distortion_model='plumb_bob'
    )
    message.d = list(map(float, d))
    message.k = np.asarray(k, np.float64).ravel()
    message.r = np.eye(3).ravel()
    message.p = np.hstack([np.reshape(k, (3, 3)), np.zeros((3, 1))]).ravel()
    return message


def cloud_message(points: np.ndarray, stamp: float, frame_id: str = LIDAR_FRAME) -> PointCloud2:
    """An unorganised cloud of (N, 3) float32 points; extra room for an intensity after each."""
    packed = np.zeros((len(points), 4), np.float32)
    packed[:, :3] = points
    return PointCloud2(
        header=header(stamp, frame_id),
        height=1,
        width=len(points),
        fields=[
            PointField(name=name, offset=4 * i, datatype=PointField.FLOAT32, count=1)
            for i, name in enumerate(('x', 'y', 'z', 'intensity'))
        ],
        is_bigendian=sys.byteorder == 'big',
        point_step=16,
        row_step=16 * len(points),
        data=packed.tobytes(),
        is_dense=True,
    )


def image_pixels(message: Image, dtype: type, channels: int = 1) -> np.ndarray:
    """The pixels of an unpadded image, (H, W) or (H, W, C)."""
    pixels = np.frombuffer(message.data, dtype).reshape(message.height, message.width, channels)
    return pixels[..., 0] if channels == 1 else pixels


def cloud_fields(message: PointCloud2) -> np.ndarray:
    """An organised cloud as an (H, W) record array."""
    formats = {PointField.FLOAT32: '<f4', PointField.FLOAT64: '<f8'}
    record = np.dtype(
        {
            'names': [field.name for field in message.fields],
            'formats': [formats[field.datatype] for field in message.fields],
            'offsets': [field.offset for field in message.fields],
            'itemsize': message.point_step,
        }
    )
    return np.frombuffer(message.data, record).reshape(message.height, message.width)
