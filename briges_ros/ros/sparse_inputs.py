"""Sparse sensors: messages kept for a while, and turned into anchors when a frame asks for them."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import numpy as np
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, Image, LaserScan, PointCloud2, Range
from std_msgs.msg import Header

from briges_ros.alignment.anchors import Anchors
from briges_ros.camera import CameraModel, Undistortion
from briges_ros.errors import quoted
from briges_ros.ros.compat import NO_SUBSCRIPTION_EVENTS
from briges_ros.ros.conversions import (
    MessageError,
    camera_from_info,
    cloud_to_points,
    image_to_depth,
    range_to_reading,
    same_calibration,
    scan_to_polar,
    stamp_seconds,
)
from briges_ros.ros.endpoints import other_types, type_name
from briges_ros.ros.health import SourceReport
from briges_ros.ros.limits import MAX_BYTES, bytes_of, check_limits
from briges_ros.ros.parameters import Settings, SourceSettings
from briges_ros.ros.throttle import ThrottledLog
from briges_ros.ros.transforms import TransformError, Transforms

T = TypeVar('T')

_KEPT = 60  # messages of a sensor: a 30 Hz depth camera may run ahead of the network by 2 s
_LOOP = 1.0  # s; stamps that go back by more mean that time began again
_MAX_POINTS = 20_000  # of a depth image from another camera; more cost time and add nothing
_MAX_SENSORS = 16  # on one topic, told apart by frame_id
_STILL = 1e-3  # m, or radians: half a pixel for a VGA camera
_NEAREST = 1e-3  # m; nothing measures less, or to less, and what is next to 0 has no inverse

# What to do about measurements that are left out, by reason.
_MENDS = {
    'not_finite': 'are not finite: check the sensor, if that is not its way to say nothing there',
    'not_positive': 'have a range of zero or less: have the driver send NaN or +inf for nothing '
    'there (REP 117)',
    'duplicate': 'repeat others: have the driver send each point once',
    'too_near': "are nearer than the sensor can measure or '{parameters}.min_range' allows",
    'too_far': "are farther than the sensor can measure or '{parameters}.max_range' allows, or "
    'nothing was there',
    'behind_camera': 'are behind the camera: check that its frame {frame} and the extrinsics are '
    'right, which may be upside down',
    'outside_image': 'are beside the image: check that its frame {frame} and the extrinsics are '
    'right',
    'hidden': 'are hidden from the camera by others: check the extrinsics',
}
_TOLD_ANYWAY = ('not_finite', 'not_positive', 'duplicate')
_REGULAR = ('too_near', 'too_far')  # a sensor with nothing in its range works


class StampedBuffer(Generic[T]):
    """The last messages of one topic, by stamp. Filled and asked from different threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: deque[tuple[float, T]] = deque(maxlen=_KEPT)

    @property
    def size(self) -> int:
        """Bytes that the messages take."""
        with self._lock:
            return sum(bytes_of(message) for _, message in self._entries)

    def drop_oldest(self) -> None:
        """Forget the oldest message, if there is one."""
        with self._lock:
            if self._entries:
                self._entries.popleft()

    def add(self, stamp: float, message: T) -> None:
        """Keep a message; a stamp far in the past of the last one empties the buffer first."""
        with self._lock:
            if self._entries and stamp < self._entries[-1][0] - _LOOP:
                self._entries.clear()
            self._entries.append((stamp, message))

    def nearest(self, stamp: float, max_age: float) -> T | None:
        """Return the message nearest to `stamp` (seconds), or None if none is within `max_age`.

        Messages that are too old for this stamp are dropped: images come in order.
        """
        with self._lock:
            while self._entries and self._entries[0][0] < stamp - max_age:
                self._entries.popleft()
            if not self._entries:
                return None
            # Of those with one stamp the last: a driver may send all with none.
            latest_first = reversed(self._entries)
            nearest, message = min(latest_first, key=lambda entry: abs(entry[0] - stamp))
        return message if abs(nearest - stamp) <= max_age else None


@dataclass(frozen=True)
class FrameContext:
    """What the anchors of a frame depend on."""

    header: Header  # of the image: its stamp and optical frame
    camera: CameraModel
    settings: Settings
    undistortion: Undistortion | None = None  # what the image went through
    taken_up: float = field(default_factory=time.monotonic)

    @property
    def stamp(self) -> float:
        """Seconds: the header's; if it has none, when the image was taken up.

        Time has to go on for a driver that does not stamp too, or a scale would be held for ever.
        """
        return stamp_seconds(self.header.stamp) or self.taken_up

    @property
    def stamped(self) -> bool:
        """Whether the header has a stamp."""
        return stamp_seconds(self.header.stamp) != 0


@dataclass(frozen=True)
class _Refused:
    """What is kept of a message that is too large to be kept."""

    header: Header
    why: str  # not the error, whose traceback holds the message


class _Source:
    """One topic: the messages of each of the sensors on it, told apart by frame_id.

    It keeps MAX_BYTES of them at most.
    """

    def __init__(self, name: str, message_type: type, convert: _Convert) -> None:
        self.name = name
        self.message_type = message_type
        self.convert = convert
        self.topic = ''  # fully qualified, once subscribed
        self._latest: dict[bool, float] = {}  # see `latest`
        self._lock = threading.Lock()
        self._sensors: dict[tuple[str, bool], StampedBuffer[Any]] = {}

    def add(self, message: Any) -> None:
        # Those without a stamp have that of their arrival, which is another time line.
        stamp, frame_id = stamp_seconds(message.header.stamp), message.header.frame_id
        stamped = stamp != 0
        stamp = stamp or time.monotonic()
        try:
            check_limits(message)
        except MessageError as error:
            frame_id = ''  # which may be what is too large
            message = _Refused(Header(stamp=message.header.stamp), str(error))
        key = frame_id, stamped
        with self._lock:
            buffer = self._sensors.pop(key, None) or StampedBuffer()
            self._sensors[key] = buffer  # the last to have sent comes last
            if len(self._sensors) > _MAX_SENSORS:
                del self._sensors[next(iter(self._sensors))]
            buffer.add(stamp, message)
            sizes = {name: each.size for name, each in self._sensors.items()}
            while sum(sizes.values()) > MAX_BYTES:
                largest = max(sizes, key=lambda name: sizes[name])
                self._sensors[largest].drop_oldest()
                sizes[largest] = self._sensors[largest].size
        self._latest[stamped] = stamp

    def latest(self, stamped: bool) -> float | None:
        """Return the stamp of the last message that had one, or the arrival of one that had not."""
        return self._latest.get(stamped)

    @property
    def sent(self) -> bool:
        """Whether anything came."""
        return bool(self._latest)

    def nearest(self, stamp: float, stamped: bool, max_age: float) -> list[Any]:
        """Return of each sensor the message nearest to `stamp`, if one is within `max_age`."""
        with self._lock:
            buffers = [buffer for (_, own), buffer in self._sensors.items() if own == stamped]
        found = (buffer.nearest(stamp, max_age) for buffer in buffers)
        return [message for message in found if message is not None]


_Convert = Callable[[Any, FrameContext, SourceSettings], Anchors]


class SparseInputs:
    """Subscribes to the sparse sensors while it exists, and makes anchors of what they sent.

    Attributes:
        note: what was wrong with the sensors in the last frame, in words; empty for nothing.
        reports: what became of the measurements of each source in the last frame.
    """

    def __init__(self, node: Any, transforms: Transforms, log: ThrottledLog) -> None:
        self._node = node
        self._transforms = transforms
        self._log = log
        self._told: set[tuple[str, str]] = set()
        self._depth_info: CameraInfo | None = None
        self._depth_camera: tuple[CameraInfo, CameraModel] | None = None
        self.note = ''
        self.reports: tuple[SourceReport, ...] = ()
        self._sources: tuple[_Source, ...] = (
            _Source('points', PointCloud2, self._from_cloud),
            _Source('scan', LaserScan, self._from_scan),
            _Source('depth', Image, self._from_depth),
            _Source('range', Range, self._from_range),
        )
        self._subscriptions: list[Any] = []
        for source in self._sources:
            source.topic = self._subscribe(source.message_type, source.name, source.add)
        self._info_topic = self._subscribe(CameraInfo, 'camera_info', self._receive_info)

    def _subscribe(self, message_type: type, name: str, callback: Callable[[Any], None]) -> str:
        subscription = self._node.create_subscription(
            message_type,
            f'sparse/{name}',
            callback,
            qos_profile_sensor_data,
            event_callbacks=NO_SUBSCRIPTION_EVENTS,
        )
        self._subscriptions.append(subscription)
        return str(subscription.topic_name)

    def close(self) -> None:
        """Drop the subscriptions, and the messages."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()
        self._sources = ()  # they know this object, and would wait for the garbage collector

    def strangers(self) -> tuple[str, ...]:
        """Name the topics on which something is sent that is not taken, with the mend."""
        sent = (
            (source, other_types(self._node, source.topic, source.message_type))
            for source in self._sources
        )
        return tuple(
            f"'{source.topic}' is published as {other}, not {type_name(source.message_type)}, and "
            f'not heard: remap another of the sparse topics to it'
            for source, other in sent
            if other
        )

    def anchors(self, context: FrameContext) -> Anchors | None:
        """Return the anchors of the messages nearest to the frame; None if there is no message.

        A message that cannot be used is reported and left out; the frame goes on without it.
        """
        found, reports, notes = [], [], []
        for source in self._sources:
            if not source.sent:
                continue
            anchors, report, note = self._of_source(source, context)
            reports.append(report)
            if note:
                notes.append(note)
            if anchors is not None:
                found.append(anchors)
        if not reports:
            topics = [f"'{source.topic}'" for source in self._sources]
            notes.append(f'nothing came on {", ".join(topics[:-1])} or {topics[-1]} yet')
        self.note = '; '.join(notes)
        self.reports = tuple(reports)
        return Anchors.joined(found) if found else None

    def _of_source(
        self, source: _Source, context: FrameContext
    ) -> tuple[Anchors | None, SourceReport, str]:
        """Return a source's anchors, what became of its measurements, and what is wrong."""
        settings = context.settings.sources[source.name]
        max_age = context.settings.sparse_max_age
        messages = source.nearest(context.stamp, context.stamped, max_age)
        left_out: Counter[str] = Counter()
        if not messages:
            reason, note = _of_another_time(source, context)
            left_out[reason] = 1
            self._log.warning(note)
            return None, SourceReport(source.name, 0, math.nan, left_out), note
        found, notes, delay = [], [], math.inf
        for message in messages:
            later = stamp_seconds(context.header.stamp) - stamp_seconds(message.header.stamp)
            delay = min(delay, later, key=abs)
            try:
                if isinstance(message, _Refused):
                    raise MessageError(message.why)
                anchors = source.convert(message, context, settings)
            except (MessageError, TransformError) as error:
                left_out['malformed' if isinstance(error, MessageError) else 'no_pose'] += 1
                notes.append(f"'{source.topic}': {error}")
                self._log.error(notes[-1])
                continue
            dropped = {reason: n for reason, n in anchors.dropped.by_reason().items() if n}
            left_out.update(dropped)
            if len(anchors):
                self._tell_once(source, dropped)
            else:
                notes.append(self._nothing_left(source, message, dropped))
            if settings.weight > 0:
                found.append(anchors.weighted(settings.weight))
        if settings.weight == 0:
            notes.append(f"'{source.topic}' is not used: 'sparse.{source.name}.weight' is 0")
        joined = Anchors.joined(found) if found else None
        count = joined.measurements if joined is not None else 0
        return joined, SourceReport(source.name, count, delay, left_out), '; '.join(notes)

    def _nothing_left(self, source: _Source, message: Any, dropped: dict[str, int]) -> str:
        """Say why no measurement of a message is of use."""
        reason = max(dropped, key=lambda reason: dropped[reason])
        mend = _MENDS[reason].format(
            parameters=f'sparse.{source.name}', frame=quoted(message.header.frame_id)
        )
        total = sum(dropped.values())
        note = (
            f"'{source.topic}': nothing of it falls into the image: {dropped[reason]} of {total} "
            f'measurements {mend}'
        )
        if reason in _REGULAR:
            self._once((source.name, reason), note)
        else:
            self._log.warning(note)
        return note

    def _tell_once(self, source: _Source, dropped: dict[str, int]) -> None:
        """Name the measurements that are wrong, though others are left, once for each reason."""
        for reason in _TOLD_ANYWAY:
            # A sparse depth image has holes, and may say so by 0 or NaN (REP 118).
            holes = source.name == 'depth' and reason != 'duplicate'
            if reason in dropped and not holes:
                told = f"'{source.topic}': {dropped[reason]} measurements {_MENDS[reason]}"
                self._once((source.name, reason), told)

    def _once(self, key: tuple[str, str], text: str) -> None:
        """Log what may be as it should, the first time."""
        if key not in self._told:
            self._told.add(key)
            self._log.info(text)

    # ---- by type of message ----------------------------------------------------------------------

    def _from_cloud(
        self, message: PointCloud2, context: FrameContext, settings: SourceSettings
    ) -> Anchors:
        points = cloud_to_points(message)
        pose = self._pose(message, context, settings)
        if pose is not None and message.header.frame_id == context.settings.sparse_fixed_frame:
            # Landmarks of a VIO: the frame is not where they were seen from, the camera is.
            points, pose = points @ pose[:3, :3].T + pose[:3, 3], None
        return Anchors.from_points(
            points,
            context.camera,
            pose,
            settings.noise,
            max(settings.min_range, _NEAREST),
            settings.max_range,
        )

    def _from_scan(
        self, message: LaserScan, context: FrameContext, settings: SourceSettings
    ) -> Anchors:
        scan = scan_to_polar(message)
        return Anchors.from_scan(
            scan.ranges,
            scan.angles,
            context.camera,
            self._pose(message, context, settings),
            settings.noise,
            max(scan.min_range, settings.min_range, _NEAREST),
            min(scan.max_range, settings.max_range),
            self._motion_while_scanning(message, scan.duration, context, settings),
        )

    def _from_range(
        self, message: Range, context: FrameContext, settings: SourceSettings
    ) -> Anchors:
        reading = range_to_reading(message)
        return Anchors.from_cone(
            reading.distance,
            reading.field_of_view,
            context.camera,
            self._pose(message, context, settings),
            settings.noise if reading.sigma is None else max(reading.sigma, _NEAREST),
            max(reading.min_range, settings.min_range, _NEAREST),
            min(reading.max_range, settings.max_range),
        )

    def _from_depth(
        self, message: Image, context: FrameContext, settings: SourceSettings
    ) -> Anchors:
        depth = image_to_depth(message)
        height, width = depth.shape
        camera = context.camera
        registered = message.header.frame_id == context.header.frame_id
        registered &= (width, height) == (camera.width, camera.height)
        if registered:
            own, pose = camera, self._motion_until_image(message, context)
            if context.undistortion is not None:
                depth = context.undistortion.depth(depth)
        else:
            own = self._camera_of_depth(message, context)
            pose = self._pose(message, context, settings)
        pixels = Anchors.from_depth(
            depth,
            _MAX_POINTS,
            settings.noise,
            max(settings.min_range, _NEAREST),
            settings.max_range,
        )
        if registered and pose is None:
            return pixels
        # From another camera, or from where this one was: its pixels become points.
        rays = own.rays()[pixels.v.astype(np.intp), pixels.u.astype(np.intp)]
        xyz = np.concatenate([rays, np.ones_like(rays[:, :1])], axis=1) * pixels.depth[:, None]
        seen = Anchors.from_points(xyz, camera, pose, pixels.sigma, 0.0, math.inf)
        return replace(seen, dropped=pixels.dropped + seen.dropped)

    def _camera_of_depth(self, message: Image, context: FrameContext) -> CameraModel:
        """Return the camera of a depth image that is not registered to the image."""
        info = self._depth_info
        if info is None:
            raise MessageError(
                f'it has {message.width} x {message.height} pixels in frame '
                f'{quoted(message.header.frame_id)}, the image {context.camera.width} x '
                f'{context.camera.height} in {quoted(context.header.frame_id)}, so it needs its '
                f"own camera_info on '{self._info_topic}'"
            )
        if (info.width, info.height) != (message.width, message.height):
            raise MessageError(
                f"it has {message.width} x {message.height} pixels, but '{self._info_topic}' "
                f'describes {info.width} x {info.height}: publish the camera_info of this depth '
                'image'
            )
        if self._depth_camera is None or not same_calibration(self._depth_camera[0], info):
            self._depth_camera = (info, camera_from_info(info))  # keeps its rays
        return self._depth_camera[1]

    # ---- poses -----------------------------------------------------------------------------------

    def _pose(
        self, message: Any, context: FrameContext, settings: SourceSettings
    ) -> np.ndarray | None:
        """Return T_camera_sensor, from when it was measured to when the image was taken.

        None for the identity.
        """
        mounted = self._mounted(message, context, settings)
        moved = self._motion_until_image(message, context)
        if moved is None or mounted is None:
            return mounted if moved is None else moved
        return np.asarray(moved @ mounted)

    def _mounted(
        self, message: Any, context: FrameContext, settings: SourceSettings
    ) -> np.ndarray | None:
        return self._transforms.camera_from_sensor(
            context.header.frame_id,
            message.header.frame_id,
            message.header.stamp,
            settings.extrinsics,
        )

    def _motion(self, context: FrameContext, since: int, until: int) -> np.ndarray | None:
        """Return how far the camera moved, in nanoseconds; None for not at all, or not known."""
        fixed_frame = context.settings.sparse_fixed_frame
        if not fixed_frame:
            return None
        try:
            moved = self._transforms.motion(context.header.frame_id, since, until, fixed_frame)
        except TransformError as error:
            self._once(
                ('motion', fixed_frame),
                f'sparse measurements are not compensated for motion until the image: {error}; '
                "publish odometry on /tf, name its frame in 'sparse.fixed_frame', or set that to "
                "'' if nothing moves",
            )
            return None
        if moved is None or np.abs(moved - np.eye(4)).max() < _STILL:
            return None
        return moved

    def _motion_until_image(self, message: Any, context: FrameContext) -> np.ndarray | None:
        since = _nanoseconds(message.header.stamp)
        return self._motion(context, since, _nanoseconds(context.header.stamp))

    def _motion_while_scanning(
        self, message: LaserScan, duration: float, context: FrameContext, settings: SourceSettings
    ) -> np.ndarray | None:
        """Return what takes points of the sensor from its last ray to its first; None: nothing."""
        first = _nanoseconds(message.header.stamp)
        moved = self._motion(context, first + round(duration * 1e9), first)
        if moved is None:
            return None
        mounted = self._mounted(message, context, settings)
        return moved if mounted is None else np.asarray(np.linalg.inv(mounted) @ moved @ mounted)

    def _receive_info(self, message: CameraInfo) -> None:
        self._depth_info = message


def _of_another_time(source: _Source, context: FrameContext) -> tuple[str, str]:
    """Say why no message of a source belongs to the image: the reason, and in words."""
    latest = source.latest(context.stamped)
    if latest is None:
        image, sensor = ('a', 'none') if context.stamped else ('no', 'one')
        return 'too_old' if context.stamped else 'from_the_future', (
            f"the image has {image} stamp, and the messages of '{source.topic}' have {sensor}: "
            'have both drivers stamp, by the same clock'
        )
    apart = latest - context.stamp
    return 'from_the_future' if apart > 0 else 'too_old', (
        f"the last message of '{source.topic}' is {abs(apart):.2f} s "
        f'{"younger" if apart > 0 else "older"} than the image, more than '
        f"'sparse.max_age' {context.settings.sparse_max_age:g} s: does the sensor still "
        'send, by the same clock?'
    )


def _nanoseconds(stamp: Any) -> int:
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)
