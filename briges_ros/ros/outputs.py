"""What the node publishes: made only for those who listen."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image, LaserScan, PointCloud2
from std_msgs.msg import Header

from briges_ros.depth_image import colorize, to_millimetres
from briges_ros.errors import BrigesError
from briges_ros.obstacles import Ground, fit_ground, ground_of_base, obstacle_mask
from briges_ros.pipeline import DepthFrame
from briges_ros.point_cloud import (
    XYZ_STEP,
    XYZRGB_STEP,
    clearing_points,
    organised_points,
    pack_depth,
    pack_points,
    voxel_filter,
)
from briges_ros.ros.compat import NO_PUBLISHER_EVENTS
from briges_ros.ros.conversions import (
    array_to_image,
    info_for,
    packed_of,
    packed_to_cloud,
    scan_message,
    stamp_seconds,
)
from briges_ros.ros.endpoints import deaf_subscribers
from briges_ros.ros.health import Health
from briges_ros.ros.parameters import Settings
from briges_ros.ros.throttle import ThrottledLog
from briges_ros.scan import laser_scan

_DEPTH = 5  # messages kept for a slow subscriber; of clouds this is tens of megabytes

IMAGE = 'depth/image'
INFO = 'depth/camera_info'
POINTS = 'depth/points'
SIGMA = 'depth/sigma'
RELATIVE = 'depth/relative'
PREVIEW = 'depth/preview'
OBSTACLES = 'depth/obstacles'
SCAN = 'depth/scan'
CLEARING = 'depth/clearing'
STATUS = 'depth/status'

OVER_GROUND = frozenset({OBSTACLES, SCAN})  # those that need the pose of the camera


def status_type() -> Any:
    """Return the message class of depth/status, which only a build of the package has.

    Raises:
        BrigesError: the package was not built, or the build is not sourced.
    """
    try:
        return import_module('briges_ros.msg').DepthStatus
    except ImportError as error:
        raise BrigesError(
            f'the messages of briges_ros are missing ({error}): build the package (make setup, or '
            'colcon build) and source its install/setup.bash'
        ) from error


@dataclass(frozen=True)
class Source:
    """What a frame was made of, and when."""

    header: Header  # of the image
    info: CameraInfo  # of what is published
    started: float  # s, time.monotonic() when the image was taken up
    decode_ms: float  # from message to RGB
    T_base_camera: np.ndarray | None = None  # (4, 4); None: not asked for, or not known


class Outputs:
    """The publishers, from configure to cleanup.

    Args:
        node: the lifecycle node.
        reliable: reliable or best effort. A best-effort publisher and a reliable subscriber never
            connect, so reliable suits everyone unless the network loses packets.
        log: for complaints about subscribers.
    """

    def __init__(self, node: Any, reliable: bool, log: ThrottledLog) -> None:
        self._node = node
        self._log = log
        self._status_type = status_type()
        self._ground: Ground | None = None  # of the last frame
        # Filled again with each frame: 4.9 MB of new memory would cost more than what goes into it.
        self._cloud: PointCloud2 | None = None
        qos = QoSProfile(
            depth=_DEPTH,
            reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        )
        self._publishers = {
            name: node.create_lifecycle_publisher(
                message_type, name, qos, event_callbacks=NO_PUBLISHER_EVENTS
            )
            for name, message_type in (
                (IMAGE, Image),
                (INFO, CameraInfo),
                (POINTS, PointCloud2),
                (SIGMA, Image),
                (RELATIVE, Image),
                (PREVIEW, Image),
                (OBSTACLES, PointCloud2),
                (SCAN, LaserScan),
                (CLEARING, PointCloud2),
                (STATUS, self._status_type),
            )
        }

    def close(self) -> None:
        """Destroy the publishers."""
        for publisher in self._publishers.values():
            self._node.destroy_lifecycle_publisher(publisher)
        self._publishers.clear()

    def forget(self) -> None:
        """Forget the last frame: the next one shows something else."""
        self._ground = None

    def deaf_subscribers(self) -> tuple[str, ...]:
        """Name those who subscribe and get nothing, with the mend."""
        topics = [publisher.topic_name for publisher in self._publishers.values()]
        return deaf_subscribers(self._node, topics)

    def wanted(self) -> frozenset[str]:
        """Return the names of the outputs that somebody subscribes to."""
        return frozenset(
            name
            for name, publisher in self._publishers.items()
            if publisher.get_subscription_count() > 0
        )

    def publish(
        self,
        frame: DepthFrame,
        source: Source,
        settings: Settings,
        wanted: frozenset[str],
        health: Health,
    ) -> None:
        """Publish what is wanted of a frame, with the stamp and frame of its image.

        Args:
            frame: the result.
            source: what it was made of.
            settings: the parameters of this frame.
            wanted: from `wanted()`.
            health: counters and names for the status; learns the latency and the image's age.
        """
        begin = time.monotonic()
        header = source.header
        if IMAGE in wanted:
            encoding = settings.depth_encoding
            depth = to_millimetres(frame.depth) if encoding == '16UC1' else frame.depth
            self._publishers[IMAGE].publish(array_to_image(depth, encoding, header))
        health.image_age_ms = self._age_ms(header)
        if INFO in wanted:
            self._publishers[INFO].publish(info_for(source.info, header))
        if POINTS in wanted:
            make = self._organised if settings.points_kind == 'organised' else _sparse
            self._publishers[POINTS].publish(make(frame, header, settings))
        if CLEARING in wanted:
            self._publishers[CLEARING].publish(_clearing(frame, header, settings))
        if source.T_base_camera is not None and wanted & OVER_GROUND:
            self._publish_over_ground(frame, header, source.T_base_camera, settings, wanted)
        if SIGMA in wanted:
            self._publishers[SIGMA].publish(array_to_image(frame.sigma, '32FC1', header))
        if RELATIVE in wanted:
            self._publishers[RELATIVE].publish(array_to_image(frame.relative, '32FC1', header))
        if PREVIEW in wanted:
            picture = colorize(frame.relative)
            self._publishers[PREVIEW].publish(array_to_image(picture, 'rgb8', header))
        end = time.monotonic()
        health.total_ms = (end - source.started) * 1e3
        if STATUS in wanted:
            status = self._status(frame, source, health)
            status.publish_ms = (end - begin) * 1e3
            status.total_ms = health.total_ms
            status.image_age_ms = health.image_age_ms
            self._publishers[STATUS].publish(status)

    def _organised(self, frame: DepthFrame, header: Header, settings: Settings) -> PointCloud2:
        """Return the cloud of all pixels. The next call fills the same message again."""
        assert frame.camera is not None
        stride = settings.points_stride
        height, width = frame.depth[::stride, ::stride].shape
        colors = frame.image if settings.points_fields == 'xyzrgb' else None
        shape = height, width, XYZ_STEP if colors is None else XYZRGB_STEP
        cloud = self._cloud
        if cloud is None or (cloud.height, cloud.width, cloud.point_step) != shape:
            cloud = packed_to_cloud(np.zeros(shape, np.uint8), header, is_dense=False)
            self._cloud = cloud
        max_range = settings.points_max_range or math.inf
        pack_depth(frame.depth, frame.camera, colors, stride, max_range, out=packed_of(cloud))
        cloud.header = header
        return cloud

    def _publish_over_ground(
        self,
        frame: DepthFrame,
        header: Header,
        T_base_camera: np.ndarray,
        settings: Settings,
        wanted: frozenset[str],
    ) -> None:
        """Publish what stands on the ground, as a cloud in the optical frame and as a scan."""
        depth, camera = frame.depth, frame.camera
        assert camera is not None
        expected = ground_of_base(T_base_camera)
        ground = self._ground = fit_ground(depth, camera, expected, self._ground)
        if OBSTACLES in wanted:
            mask = obstacle_mask(
                depth, camera, ground, settings.obstacles_min_height, settings.obstacles_max_height
            )
            standing = np.where(mask, depth, np.float32(math.nan))
            points = organised_points(standing, camera, max_range=settings.obstacles_max_range)
            packed = pack_points(_voxels(points, None, settings.points_voxel_size)[0])
            self._publishers[OBSTACLES].publish(packed_to_cloud(packed, header, is_dense=True))
        if SCAN in wanted and not settings.base_frame:
            self._log.warning(
                "'depth/scan' is not published, as it would have no frame: set 'base_frame'"
            )
        elif SCAN in wanted:
            scan = laser_scan(
                depth,
                camera,
                obstacle_mask(
                    depth, camera, ground, settings.scan_min_height, settings.scan_max_height
                ),
                T_base_camera,
                settings.depth_min_range,
                settings.scan_max_range,
                settings.scan_max_height,
            )
            base = Header(stamp=header.stamp, frame_id=settings.base_frame)
            self._publishers[SCAN].publish(scan_message(scan, base, settings.scan_max_range))

    def _status(self, frame: DepthFrame, source: Source, health: Health) -> Any:
        scale, timing = frame.scale, frame.timing
        left_out = [
            (report.source, reason, count)
            for report in health.sources
            for reason, count in report.left_out.items()
        ]
        return self._status_type(
            header=source.header,
            state=int(getattr(self._status_type, scale.state.name)),
            reason=health.scale_reason(),
            scale=float(scale.scale),
            shift=float(scale.shift),
            covariance=[float(value) for value in scale.covariance.flat],
            inliers=int(scale.inliers),
            outliers=int(scale.outliers),
            residual=float(scale.residual),
            quality=float(scale.quality),
            age=float(scale.age) if math.isfinite(scale.age) else -1.0,
            sparse_sources=[report.source for report in health.sources],
            sparse_anchors=[report.anchors for report in health.sources],
            sparse_delays=[report.delay for report in health.sources],
            sparse_reasons=[f'{source}: {reason}' for source, reason, _ in left_out],
            sparse_counts=[count for _, _, count in left_out],
            preprocess_ms=float(source.decode_ms + timing['preprocess']),
            inference_ms=float(timing['inference']),
            align_ms=float(timing['align']),
            postprocess_ms=float(timing['postprocess']),
            frames_processed=health.counters.processed,
            frames_dropped=health.counters.dropped,
            model=health.model,
            engine=health.engine,
            precision=health.precision,
        )

    def _age_ms(self, header: Header) -> float:
        """Return the node's clock minus the stamp in ms; NaN for an image without a stamp."""
        stamp = stamp_seconds(header.stamp)
        if stamp == 0.0:
            return math.nan
        return (self._node.get_clock().now().nanoseconds * 1e-9 - stamp) * 1e3


def _sparse(frame: DepthFrame, header: Header, settings: Settings) -> PointCloud2:
    """Return the cloud of one point for each voxel."""
    assert frame.camera is not None
    stride = settings.points_stride
    max_range = settings.points_max_range or math.inf
    points = organised_points(frame.depth, frame.camera, stride, max_range)
    colors = frame.image[::stride, ::stride] if settings.points_fields == 'xyzrgb' else None
    points, colors = _voxels(points, colors, settings.points_voxel_size)
    return packed_to_cloud(pack_points(points, colors), header, is_dense=True)


def _clearing(frame: DepthFrame, header: Header, settings: Settings) -> PointCloud2:
    """Return the ends of the sight lines that are known to be free."""
    assert frame.camera is not None
    ends = clearing_points(
        frame.depth, frame.camera, settings.clearing_max_range, settings.points_voxel_size
    )
    return packed_to_cloud(pack_points(ends[None]), header, is_dense=True)


def _voxels(
    points: np.ndarray, colors: np.ndarray | None, size: float
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return one finite point, with its colour, for each voxel: (1, N, 3) each."""
    points = points.reshape(-1, 3)
    index = np.flatnonzero(np.isfinite(points[:, 2]))
    index = index[voxel_filter(points[index], size)]
    return points[index][None], None if colors is None else colors.reshape(-1, 3)[index][None]
