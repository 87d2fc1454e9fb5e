"""Point clouds from depth images: organised arrays, PointCloud2 bytes and PLY files."""

from __future__ import annotations

import math
import os
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from briges_ros.camera import CameraModel

POINT_STEP = 16  # bytes of a packed point


def organised_points(
    depth: npt.NDArray[np.float32], camera: CameraModel, stride: int = 1
) -> npt.NDArray[np.float32]:
    """Back-project a depth image to points of the optical frame.

    Args:
        depth: (H, W) float32 metres along optical Z.
        camera: The camera of the image, H x W.
        stride: Takes every `stride`-th row and column, starting with the first.

    Returns:
        (h, w, 3) float32 metres, h = ceil(H / stride) and w likewise. All three NaN where the depth
        is not a finite positive number, or the pixel has no ray.

    Raises:
        ValueError: Depth and camera differ in size, or the stride is less than 1.
    """
    if depth.shape != (camera.height, camera.width):
        raise ValueError(
            f'depth is {depth.shape[1]} x {depth.shape[0]} but the camera {camera.width} x '
            f'{camera.height}; use camera.scaled(width, height)'
        )
    if stride < 1:
        raise ValueError(f'stride must be at least 1, got {stride}')
    rays = camera.rays()[::stride, ::stride]
    z = np.array(depth[::stride, ::stride], dtype=np.float32)
    np.copyto(z, np.float32(math.nan), where=~((z > 0) & (z < np.inf)))
    if camera.distorted:
        np.copyto(z, np.float32(math.nan), where=np.isnan(rays[..., 0]))
    points = np.empty((*z.shape, 3), np.float32)
    np.multiply(rays[..., 0], z, out=points[..., 0])
    np.multiply(rays[..., 1], z, out=points[..., 1])
    points[..., 2] = z
    return points


def pack_xyzrgb(
    points: npt.NDArray[np.float32], image: npt.NDArray[np.uint8] | None, stride: int = 1
) -> npt.NDArray[np.uint8]:
    """Pack an organised cloud as the data of a sensor_msgs/PointCloud2.

    Fields: x, y, z as FLOAT32 at 0, 4, 8 and rgb as FLOAT32 at 12 (bytes b, g, r, 0: the layout PCL
        and
    RViz expect); point_step 16, little endian, row_step 16 * w.

    Args:
        points: (h, w, 3) float32 metres, from `organised_points`.
        image: (H, W, 3) uint8 RGB, or None for white points.
        stride: The stride the points were made with.

    Returns:
        (h, w * 16) uint8, C-contiguous: one row of the message per row.

    Raises:
        ValueError: Image, stride and points do not fit together.
    """
    h, w = points.shape[:2]
    # A fourth channel, to hold the colour.
    packed = np.asarray(cv2.cvtColor(np.ascontiguousarray(points), cv2.COLOR_RGB2RGBA))
    rgb = packed.view(np.uint32)[..., 3]
    if image is None:
        rgb[...] = 0xFFFFFF
    else:
        image = image[::stride, ::stride]
        if image.shape != (h, w, 3):
            raise ValueError(
                f'points of {h} x {w} do not fit an image of {image.shape} after stride {stride}; '
                'give the image and the stride the points were made from'
            )
        bgra = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2BGRA)
        np.bitwise_and(bgra.view(np.uint32)[..., 0], np.uint32(0xFFFFFF), out=rgb)
    return packed.view(np.uint8).reshape(h, w * POINT_STEP)


def write_ply(
    path: str | os.PathLike[str],
    points: npt.NDArray[np.float32],
    colors: npt.NDArray[np.uint8],
) -> int:
    """Write the finite points of a cloud as a binary little-endian PLY file.

    The file appears complete or not at all: it is written beside its place and then moved there.

    Args:
        path: File to write, replaced if there.
        points: (..., 3) float32 metres; points with a NaN or infinite coordinate are left out.
        colors: (..., 3) uint8 RGB, one for each point.

    Returns:
        Number of points written.

    Raises:
        ValueError: Points and colours differ in number.
        OSError: The file cannot be written.
    """
    points = points.reshape(-1, 3)
    colors = colors.reshape(-1, 3)
    if len(points) != len(colors):
        raise ValueError(f'{len(points)} points but {len(colors)} colours')
    finite = np.isfinite(points).all(axis=1)
    vertices = np.empty(
        int(finite.sum()),
        [('x', '<f4'), ('y', '<f4'), ('z', '<f4'), ('red', 'u1'), ('green', 'u1'), ('blue', 'u1')],
    )
    for i, name in enumerate(('x', 'y', 'z')):
        vertices[name] = points[finite, i]
    for i, name in enumerate(('red', 'green', 'blue')):
        vertices[name] = colors[finite, i]
    header = (
        'ply\nformat binary_little_endian 1.0\n'
        'comment metres, camera optical frame: x right, y down, z forward\n'
        f'element vertex {len(vertices)}\n'
        'property float x\nproperty float y\nproperty float z\n'
        'property uchar red\nproperty uchar green\nproperty uchar blue\nend_header\n'
    )
    path = Path(path)
    part = path.with_name(f'.{path.name}.{os.getpid()}.part')
    try:
        with part.open('wb') as file:
            file.write(header.encode('ascii'))
            vertices.tofile(file)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return len(vertices)
