"""The straightforward way to publish what the depth node publishes: what `node.py` compares with.

A node as tutorials have it: a queue of ten, one thread, the pipeline in the image's callback.
Images go through copies as cv_bridge makes them, clouds through `create_cloud` of sensor_msgs_py,
which takes an array or, as its documentation has it, a list of points. Both packages come with an
installed ROS 2 only, so what they do is written out here.
"""

from __future__ import annotations

import array
from collections.abc import Iterable
from typing import Any

import numpy as np
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, Image, PointCloud2, PointField

from briges_ros import Anchors, CameraModel, DepthPipeline

QUEUE = 10  # messages, the number in every tutorial

XYZ = [('x', 0), ('y', 4), ('z', 8)]
XYZRGB = [*XYZ, ('rgb', 12)]


class StraightforwardNode(Node):
    """Subscribes to image, camera_info and sparse/points, publishes depth/image and depth/points.

    Args:
        pipeline: the same as the depth node's.
        as_list: give `create_cloud` a list of points, not an array.
    """

    def __init__(self, pipeline: DepthPipeline, as_list: bool) -> None:
        super().__init__('straightforward')
        self._pipeline = pipeline
        self._as_list = as_list
        self._info: CameraInfo | None = None
        self._points: PointCloud2 | None = None
        self._publishers_of = [
            self.create_publisher(kind, topic, QUEUE)
            for kind, topic in ((Image, 'depth/image'), (PointCloud2, 'depth/points'))
        ]
        self.create_subscription(CameraInfo, 'camera_info', self._take_info, QUEUE)
        self.create_subscription(PointCloud2, 'sparse/points', self._take_points, QUEUE)
        self.create_subscription(Image, 'image', self._take_image, QUEUE)

    def _take_info(self, message: CameraInfo) -> None:
        self._info = message

    def _take_points(self, message: PointCloud2) -> None:
        self._points = message

    def _take_image(self, message: Image) -> None:
        if self._info is None or self._points is None:
            return
        image = imgmsg_to_cv2(message, 3)
        camera = CameraModel(message.width, message.height, np.array(self._info.k).reshape(3, 3))
        anchors = Anchors.from_points(read_points(self._points), camera)
        stamp = message.header.stamp.sec + message.header.stamp.nanosec * 1e-9
        frame = self._pipeline(image, camera, anchors, stamp)
        depth, points = self._publishers_of
        depth.publish(cv2_to_imgmsg(frame.depth, '32FC1', message.header))
        cloud = coloured_points(frame.depth, image, camera)
        points.publish(
            create_cloud(message.header, XYZRGB, cloud.tolist() if self._as_list else cloud)
        )


def imgmsg_to_cv2(message: Image, channels: int) -> np.ndarray:
    """As `CvBridge.imgmsg_to_cv2`: the pixels, converted into an array of their own."""
    shape = message.height, message.width, channels
    return np.ndarray(shape, np.uint8, buffer=message.data).copy()


def cv2_to_imgmsg(pixels: np.ndarray, encoding: str, header: Any) -> Image:
    """As `CvBridge.cv2_to_imgmsg`: the data by way of `tobytes`."""
    message = Image(header=header, encoding=encoding)
    message.height, message.width = pixels.shape[:2]
    message.data = array.array('B', pixels.tobytes())
    message.step = len(message.data) // message.height
    return message


def coloured_points(depth: np.ndarray, image: np.ndarray, camera: CameraModel) -> np.ndarray:
    """Every pixel as x, y, z and colour, as PCL has it: (N, 4) float32."""
    v, u = np.indices(depth.shape)
    x = (u - camera.cx) * depth / camera.fx
    y = (v - camera.cy) * depth / camera.fy
    r, g, b = (image[..., channel].astype(np.uint32) for channel in range(3))
    rgb = (r << 16 | g << 8 | b).view(np.float32)
    points = np.stack([x, y, depth, rgb], axis=-1).astype(np.float32).reshape(-1, 4)
    points[~np.isfinite(points[:, 2]), :3] = np.nan
    return points


def create_cloud(header: Any, fields: list[tuple[str, int]], points: Iterable) -> PointCloud2:
    """As `sensor_msgs_py.point_cloud2.create_cloud`: a structured array, then an array of bytes."""
    dtype = np.dtype([(name, np.float32) for name, _ in fields])
    if isinstance(points, np.ndarray):
        structured = np.ascontiguousarray(points, np.float32).view(dtype)[:, 0]
    else:
        structured = np.array(list(map(tuple, points)), dtype)
    data = array.array('B')
    data.frombytes(memoryview(structured).cast('B'))
    message = PointCloud2(
        header=header,
        height=1,
        width=len(structured),
        fields=[
            PointField(name=name, offset=offset, datatype=PointField.FLOAT32, count=1)
            for name, offset in fields
        ],
        point_step=dtype.itemsize,
        row_step=dtype.itemsize * len(structured),
    )
    message.data = data
    return message


def read_points(message: PointCloud2) -> np.ndarray:
    """As `sensor_msgs_py.point_cloud2.read_points`, then a column for each coordinate: (N, 3)."""
    dtype = np.dtype(
        {
            'names': [field.name for field in message.fields],
            'formats': [np.float32] * len(message.fields),
            'offsets': [field.offset for field in message.fields],
            'itemsize': message.point_step,
        }
    )
    points = np.ndarray((message.width * message.height,), dtype, buffer=message.data)
    return np.column_stack([points[name] for name in 'xyz'])
