"""Point clouds from depth images: organised arrays, PointCloud2 bytes and PLY files."""

from __future__ import annotations

import math
import os
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from briges_ros.camera import CameraModel

XYZ_STEP = 12  # bytes of a packed point
XYZRGB_STEP = 16

# Pixels to pack at a time: what lies between depth and cloud stays in the cache, and is so small
# that malloc need not ask the kernel for it.
_BAND = 1 << 14

# The three numbers of a voxel as one: 17 bits each, which a float64 holds exactly.
_VOXEL_KEY = np.array([2.0**34, 2.0**17, 1.0])
# Multiplicative hashing (Knuth, The Art of Computer Programming 3, 6.4): odd, about 2^64 / golden
# ratio. Each round takes another multiplier, so that those who met in one part in the next.
_MULTIPLIER = 0x9E3779B97F4A7C15


def organised_points(
    depth: npt.NDArray[np.float32],
    camera: CameraModel,
    stride: int = 1,
    max_range: float = math.inf,
) -> npt.NDArray[np.float32]:
    """Back-project a depth image to points of the optical frame.

    Args:
        depth: (H, W) float32 metres along optical Z.
        camera: The camera of the image, H x W.
        stride: Takes every `stride`-th row and column, starting with the first.
        max_range: Metres along optical Z; what is farther is left out.

    Returns:
        (h, w, 3) float32 metres, h = ceil(H / stride) and w likewise. All three NaN where the depth
        is not a finite positive number up to `max_range`, or the pixel has no ray.

    Raises:
        ValueError: Depth and camera differ in size, or the stride is less than 1.
    """
    depth, rays = _taken(depth, camera, stride)
    points: npt.NDArray[np.float32] = cv2.merge(
        _coordinates(depth, rays, max_range, camera.distorted)
    )
    return points


def pack_depth(
    depth: npt.NDArray[np.float32],
    camera: CameraModel,
    colors: npt.NDArray[np.uint8] | None = None,
    stride: int = 1,
    max_range: float = math.inf,
    out: npt.NDArray[np.uint8] | None = None,
) -> npt.NDArray[np.uint8]:
    """Pack the points of a depth image as `pack_points` does those of `organised_points`.

    They are written once, with their colours, where the two write them twice.

    Args:
        depth: (H, W) float32 metres along optical Z.
        camera: The camera of the image, H x W.
        colors: (H, W, 3) uint8 RGB, or None for points without a colour.
        stride: Takes every `stride`-th row and column, starting with the first.
        max_range: Metres along optical Z; what is farther is left out.
        out: Where to write the result: of its shape, C-contiguous. Default: new memory.

    Returns:
        (h, w, step) uint8 as `pack_points` has it, of the points of `organised_points`.

    Raises:
        ValueError: Depth, camera, colours and `out` differ in size, or the stride is less than 1.
    """
    if colors is not None:
        _check_colors(colors, depth.shape)
        colors = colors[::stride, ::stride]
    depth, rays = _taken(depth, camera, stride)
    height, width = depth.shape
    shape = height, width, XYZ_STEP if colors is None else XYZRGB_STEP
    if out is None:
        out = np.empty(shape, np.uint8)
    elif out.shape != shape:
        raise ValueError(f'a cloud of {shape} does not fit into {out.shape}')
    rows = max(1, _BAND // width)
    for top in range(0, height, rows):
        band = slice(top, top + rows)
        channels = _coordinates(depth[band], rays[band], max_range, camera.distorted)
        if colors is not None:
            channels.append(_color_channel(colors[band]))
        cv2.merge(channels, dst=out[band].view(np.float32))
    return out


def _taken(
    depth: npt.NDArray[np.float32], camera: CameraModel, stride: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return every `stride`-th depth, and the rays of these; see `organised_points`."""
    check_size(depth, camera)
    if stride < 1:
        raise ValueError(f'stride must be at least 1, got {stride}')
    return depth[::stride, ::stride], camera.rays()[::stride, ::stride]


def _coordinates(
    depth: npt.NDArray[np.float32],
    rays: npt.NDArray[np.float32],
    max_range: float,
    holes: bool,
) -> list[npt.NDArray[np.float32]]:
    """Return x, y and z of (h, w) depths along (h, w, 2) rays, all NaN where there is no point.

    `holes` says that some rays may be NaN.
    """
    z = np.array(depth, np.float32, order='C')
    known = (z > 0) & ((z < np.inf) if math.isinf(max_range) else (z <= np.float32(max_range)))
    np.copyto(z, np.float32(math.nan), where=~known)
    x, y = rays[..., 0] * z, rays[..., 1] * z
    if holes:
        np.copyto(z, np.float32(math.nan), where=np.isnan(x))
    return [x, y, z]


def check_size(depth: npt.NDArray[np.float32], camera: CameraModel) -> None:
    """Raise ValueError unless the (H, W) depth image is of the camera's size."""
    if depth.shape != (camera.height, camera.width):
        raise ValueError(
            f'depth is {depth.shape[1]} x {depth.shape[0]} but the camera {camera.width} x '
            f'{camera.height}; use camera.scaled(width, height)'
        )


def clearing_points(
    depth: npt.NDArray[np.float32], camera: CameraModel, max_range: float, spacing: float
) -> npt.NDArray[np.float32]:
    """Give the ends of the sight lines that are known to be free: what a costmap clears along.

    A sight line ends at what is seen, or at `max_range` where that is nearer. So a depth of +inf,
    which a cloud cannot hold, is an end as well. Nothing is said along a ray of unknown depth.

    Args:
        depth: (H, W) float32 metres along optical Z; NaN unknown, +inf beyond range (REP 118).
        camera: The camera of the image, H x W.
        max_range: Metres along optical Z.
        spacing: Metres; only so many rows and columns are taken that neighbouring ends at
            `max_range` are at most that far apart (but at least every one), since a costmap pays
            for each.

    Returns:
        (N, 3) float32 metres in the optical frame, all finite.

    Raises:
        ValueError: Depth and camera differ in size.
    """
    stride = max(1, math.floor(spacing * min(camera.fx, camera.fy) / max_range))
    ends = np.minimum(depth, np.float32(max_range))  # of NaN: NaN
    points = organised_points(ends, camera, stride).reshape(-1, 3)
    return points[np.isfinite(points[:, 2])]


def voxel_filter(points: npt.NDArray[np.float32], voxel_size: float) -> npt.NDArray[np.intp]:
    """Choose the first point of each voxel.

    A measured point with its own colour, where a centroid would lie on no surface at the edges of
    objects. By a hash table: linear in the number of points, where sorting is not.

    Args:
        points: (N, 3) float32 metres, all finite.
        voxel_size: Edge of the cubes in metres; one corner of one of them is the origin. No
            coordinate may be more than 2^16 of them away from it.

    Returns:
        (M,) indices, ascending.

    Raises:
        ValueError: The size is not positive.
    """
    if not voxel_size > 0:
        raise ValueError(f'voxel_size must be positive, got {voxel_size}')
    cells = np.floor(points * np.float32(1.0 / voxel_size))
    key = cells.astype(np.float64) @ _VOXEL_KEY + 0.0  # not -0.0, whose bits are others
    # Neighbours in a row of the image are mostly in one voxel.
    fresh = np.ones(len(key), np.bool_)
    np.not_equal(key[1:], key[:-1], out=fresh[1:])
    open_ = np.flatnonzero(fresh)
    own = key[open_]
    chosen = np.zeros(len(key), np.bool_)
    table_bits = max(4, (4 * len(open_)).bit_length())
    table = np.empty(1 << table_bits, np.intp)
    multiplier = _MULTIPLIER
    while open_.size:
        place = (own.view(np.uint64) * np.uint64(multiplier)) >> np.uint64(64 - table_bits)
        # NumPy lets the last one have a place that is assigned more than once: so backwards.
        table[place[::-1]] = open_[::-1]
        first = table[place]
        chosen[first] = True
        other = key[first] != own  # the place went to another voxel: once more
        open_, own = open_[other], own[other]
        multiplier = multiplier * _MULTIPLIER & 0xFFFFFFFFFFFFFFFF
    return np.flatnonzero(chosen)


def pack_points(
    points: npt.NDArray[np.float32], colors: npt.NDArray[np.uint8] | None = None
) -> npt.NDArray[np.uint8]:
    """Pack points as the data of a sensor_msgs/PointCloud2.

    Fields: x, y, z as FLOAT32 at 0, 4, 8 and, with colours, rgb as FLOAT32 at 12 (bytes b, g, r, 0:
    the layout that PCL and RViz expect), little endian.

    Args:
        points: (h, w, 3) float32 metres; h is 1 for a cloud that is not organised.
        colors: (h, w, 3) uint8 RGB, or None for points without a colour.

    Returns:
        (h, w, step) uint8, C-contiguous, step 16 with colours, 12 without.

    Raises:
        ValueError: Points and colours differ in size.
    """
    points = np.ascontiguousarray(points)
    if colors is None:
        return points.view(np.uint8)
    _check_colors(colors, points.shape[:2])
    if not points.size:
        return np.empty((*points.shape[:2], XYZRGB_STEP), np.uint8)
    packed: npt.NDArray[np.float32] = cv2.merge([points, _color_channel(colors)])
    return packed.view(np.uint8)


def _check_colors(colors: npt.NDArray[np.uint8], shape: tuple[int, ...]) -> None:
    if colors.shape != (*shape, 3):
        raise ValueError(
            f'points of {shape} do not fit colours of {colors.shape[:2]}; take the same pixels of '
            'both'
        )


def _color_channel(colors: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return (h, w, 3) uint8 RGB as (h, w) float32, whose bytes are b, g, r, 0."""
    bgra = cv2.cvtColor(np.ascontiguousarray(colors), cv2.COLOR_RGB2BGRA)
    rgb: npt.NDArray[np.uint32] = bgra.view(np.uint32)[..., 0]
    rgb &= np.uint32(0xFFFFFF)
    return rgb.view(np.float32)


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
