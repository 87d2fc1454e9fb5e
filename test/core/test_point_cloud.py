"""Clouds: geometry, the bytes of a PointCloud2, and PLY files."""

import os
import stat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from briges_ros.camera import CameraModel
from briges_ros.point_cloud import (
    clearing_points,
    organised_points,
    pack_depth,
    pack_points,
    voxel_filter,
    write_ply,
)

WIDTH, HEIGHT = 32, 24
K = [[30.0, 0, 15.25], [0, 31.0, 12.5], [0, 0, 1]]
PINHOLE = CameraModel(WIDTH, HEIGHT, K)
BARREL = CameraModel(WIDTH, HEIGHT, K, [-0.2, 0.03, 1e-3, -1e-3])

POINT = np.dtype([('x', '<f4'), ('y', '<f4'), ('z', '<f4'), ('bgr', 'u1', 3), ('rest', 'u1')])
VERTEX = np.dtype([('xyz', '<f4', 3), ('rgb', 'u1', 3)])


def some_depth():
    return np.random.default_rng(0).uniform(0.5, 20, (HEIGHT, WIDTH)).astype(np.float32)


def some_image():
    return np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


@pytest.mark.parametrize('camera', [PINHOLE, BARREL])
def test_points_project_back_to_their_pixels(camera):
    depth = some_depth()
    points = organised_points(depth, camera)
    assert points.shape == (HEIGHT, WIDTH, 3)
    assert points.dtype == np.float32
    np.testing.assert_array_equal(points[..., 2], depth)
    uv, in_view = camera.project(points.reshape(-1, 3))
    v, u = np.divmod(np.arange(WIDTH * HEIGHT), WIDTH)
    np.testing.assert_allclose(uv, np.column_stack([u, v]), atol=1e-3)
    assert in_view.all()


@given(stride=st.integers(1, 40))
def test_stride_takes_every_so_many_th_pixel(stride):
    depth = some_depth()
    points = organised_points(depth, PINHOLE, stride)
    np.testing.assert_array_equal(points, organised_points(depth, PINHOLE)[::stride, ::stride])


@given(
    depth=arrays.arrays(
        np.float32,
        (HEIGHT, WIDTH),
        elements=st.sampled_from([np.nan, np.inf, -np.inf, 0.0, -1.0, 2.5]),
    )
)
def test_a_point_is_known_whole_or_not_at_all(depth):
    before = depth.copy()
    points = organised_points(depth, PINHOLE)
    np.testing.assert_array_equal(np.isfinite(points), np.repeat(depth[..., None] == 2.5, 3, 2))
    assert np.isnan(points[depth != 2.5]).all()
    np.testing.assert_array_equal(depth, before)


def test_pixels_without_a_ray_have_no_point():
    wide = CameraModel(WIDTH, HEIGHT, [[9.0, 0, 15.5], [0, 9.0, 11.5], [0, 0, 1]], [-0.3, 0, 0, 0])
    points = organised_points(some_depth(), wide)
    assert np.isnan(points[0, 0]).all()
    assert np.isfinite(points[12, 16]).all()


def test_depth_and_camera_must_agree_in_size():
    with pytest.raises(ValueError, match=r'camera\.scaled'):
        organised_points(np.ones((HEIGHT, WIDTH + 1), np.float32), PINHOLE)
    with pytest.raises(ValueError, match='stride'):
        organised_points(some_depth(), PINHOLE, 0)


def test_points_end_at_the_greatest_range():
    depth = some_depth()
    points = organised_points(depth, PINHOLE, max_range=8.0)
    expected = organised_points(np.where(depth <= 8.0, depth, np.nan).astype(np.float32), PINHOLE)
    np.testing.assert_array_equal(points, expected)
    assert np.isfinite(points).any()
    assert np.isnan(points).any()


@pytest.mark.parametrize('stride', [1, 2, 5])
def test_packed_bytes_are_what_rviz_and_pcl_read(stride):
    depth, image = some_depth(), some_image()
    depth[4:9] = np.nan
    points = organised_points(depth, PINHOLE, stride)
    packed = pack_points(points, image[::stride, ::stride])
    h, w = points.shape[:2]
    assert packed.dtype == np.uint8
    assert packed.shape == (h, w, POINT.itemsize)
    assert packed.flags.c_contiguous
    cloud = np.frombuffer(packed.tobytes(), POINT).reshape(h, w)
    for i, name in enumerate('xyz'):
        np.testing.assert_array_equal(cloud[name], points[..., i])
    np.testing.assert_array_equal(cloud['bgr'][..., ::-1], image[::stride, ::stride])
    assert (cloud['rest'] == 0).all()


def test_packed_colours_read_as_one_float():
    """PCL's packing: rgb = r << 16 | g << 8 | b, the bits of a float32."""
    points = organised_points(some_depth(), PINHOLE)
    image = some_image()
    packed = pack_points(points, image).view('<f4')
    bits = packed[3, 7, 3:].view(np.uint32)[0]
    r, g, b = (int(c) for c in image[3, 7])
    assert bits == (r << 16 | g << 8 | b)


def test_without_colours_a_point_is_its_coordinates():
    points = organised_points(some_depth(), PINHOLE)[::2]  # not contiguous
    packed = pack_points(points)
    assert packed.shape == (HEIGHT // 2, WIDTH, 12)
    np.testing.assert_array_equal(packed.view('<f4'), points)


@pytest.mark.parametrize('camera', [PINHOLE, BARREL])
@pytest.mark.parametrize('image', [None, some_image()])
@pytest.mark.parametrize(('stride', 'max_range'), [(1, 8.0), (5, np.inf)])
def test_depth_is_packed_as_its_points_are(camera, image, stride, max_range):
    depth = some_depth()
    depth[4:9] = np.nan
    points = organised_points(depth, camera, stride, max_range)
    expected = pack_points(points, None if image is None else image[::stride, ::stride])
    np.testing.assert_array_equal(pack_depth(depth, camera, image, stride, max_range), expected)
    memory = np.full(expected.shape, 7, np.uint8)
    pack_depth(depth, camera, image, stride, max_range, out=memory)
    np.testing.assert_array_equal(memory, expected)


def test_depth_is_packed_only_into_what_it_fits():
    with pytest.raises(ValueError, match='does not fit into'):
        pack_depth(some_depth(), PINHOLE, out=np.empty((HEIGHT, WIDTH, 16), np.uint8))
    with pytest.raises(ValueError, match='same pixels'):
        pack_depth(some_depth(), PINHOLE, some_image()[1:])


def test_a_cloud_may_be_empty():
    none = np.empty((1, 0, 3), np.float32)
    assert pack_points(none).shape == (1, 0, 12)
    assert pack_points(none, none.astype(np.uint8)).shape == (1, 0, 16)


def test_colours_of_other_pixels_are_refused():
    with pytest.raises(ValueError, match='same pixels'):
        pack_points(organised_points(some_depth(), PINHOLE, 2), some_image())


CORNERS = arrays.arrays(
    np.float32, st.tuples(st.integers(0, 60), st.just(3)), elements=st.integers(-6, 6)
)


@given(corners=CORNERS, size=st.sampled_from([0.05, 0.3, 1.0]), seed=st.integers(0, 99))
def test_a_voxel_keeps_its_first_point(corners, size, seed):
    inside = np.random.default_rng(seed).uniform(0.1, 0.9, corners.shape)
    points = ((corners + inside) * size).astype(np.float32)
    chosen = voxel_filter(points, size)
    first = {}
    for index, corner in enumerate(map(tuple, corners)):
        first.setdefault(corner, index)
    assert chosen.tolist() == sorted(first.values())


def test_many_voxels_are_told_apart():
    """So many that thousands meet in one place of the table, and near and far ones."""
    rng = np.random.default_rng(0)
    points = rng.uniform(-30, 30, (300_000, 3)).astype(np.float32)
    points[::7] *= 1000
    chosen = voxel_filter(points, 0.5)
    cells = np.floor(points * np.float32(2)).astype(np.int64) @ [1 << 40, 1 << 20, 1]
    np.testing.assert_array_equal(chosen, np.sort(np.unique(cells, return_index=True)[1]))


def test_a_voxel_needs_a_size():
    with pytest.raises(ValueError, match='voxel_size'):
        voxel_filter(np.zeros((1, 3), np.float32), 0.0)


@pytest.mark.parametrize('camera', [PINHOLE, BARREL])
def test_sight_lines_end_at_what_is_seen_or_at_the_range(camera):
    depth = np.full((HEIGHT, WIDTH), np.inf, np.float32)
    depth[:, 20:] = 2.5
    depth[:, 25:] = np.nan
    depth[:5] = 9.0
    ends = clearing_points(depth, camera, 4.0, spacing=0.01)
    expected = np.minimum(depth, 4.0)
    expected = organised_points(expected, camera).reshape(-1, 3)
    np.testing.assert_array_equal(ends, expected[np.isfinite(expected[:, 2])])
    assert len(ends) == (~np.isnan(depth)).sum()  # no pixel of infinite depth is left out


def test_sight_lines_are_as_dense_as_the_map():
    """Neighbours at the greatest range are no farther apart than asked, and hardly nearer."""
    depth = np.full((HEIGHT, WIDTH), np.inf, np.float32)
    ends = clearing_points(depth, PINHOLE, 6.0, spacing=0.9)
    steps = np.diff(np.unique(ends[:, 0]))
    assert 0.45 < steps.max() <= 0.9
    assert len(clearing_points(depth, PINHOLE, 6.0, spacing=0.001)) == depth.size


def read_ply(path):
    """The vertices of a file as `write_ply` makes it, and the lines of its header."""
    header, body = path.read_bytes().split(b'end_header\n', 1)
    return np.frombuffer(body, VERTEX), header.decode('ascii').splitlines()


def test_ply_holds_the_finite_points_with_their_colours(tmp_path):
    depth, image = some_depth(), some_image()
    depth[3, :] = np.nan
    depth[5, 5] = np.inf
    points = organised_points(depth, PINHOLE)
    path = tmp_path / 'cloud.ply'
    count = write_ply(path, points, image)
    vertices, header = read_ply(path)
    known = np.isfinite(depth)
    assert count == len(vertices) == known.sum()
    assert header[:2] == ['ply', 'format binary_little_endian 1.0']
    assert f'element vertex {count}' in header
    np.testing.assert_array_equal(vertices['xyz'], points[known])
    np.testing.assert_array_equal(vertices['rgb'], image[known])


def test_ply_replaces_a_file_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / 'cloud.ply'
    path.write_text('old')
    write_ply(str(path), np.empty((0, 3), np.float32), np.empty((0, 3), np.uint8))
    vertices, _ = read_ply(path)
    assert len(vertices) == 0
    assert [p.name for p in tmp_path.iterdir()] == ['cloud.ply']
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask  # others may read it


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / 'cloud.ply'
    path.write_text('old')

    def full_disk(*_):
        raise OSError('No space left on device')

    monkeypatch.setattr(Path, 'replace', full_disk)
    with pytest.raises(OSError, match='No space'):
        write_ply(path, np.zeros((1, 3), np.float32), np.zeros((1, 3), np.uint8))
    assert path.read_text() == 'old'
    assert [p.name for p in tmp_path.iterdir()] == ['cloud.ply']


def test_points_and_colours_must_agree_in_number(tmp_path):
    with pytest.raises(ValueError, match='2 points but 3 colours'):
        write_ply(tmp_path / 'a.ply', np.zeros((2, 3), np.float32), np.zeros((3, 3), np.uint8))
    assert not list(tmp_path.iterdir())
