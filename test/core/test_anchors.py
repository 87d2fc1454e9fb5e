"""Anchors from points and depth images; what the camera cannot see is left out."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from briges_ros.alignment import Anchors
from briges_ros.camera import CameraModel

CAMERA = CameraModel(640, 480, [[500.0, 0, 319.5], [0, 500.0, 239.5], [0, 0, 1]])


def mounted(x=0.0, y=0.0, z=0.0):
    """A sensor that looks the camera's way from (x, y, z) in the camera's frame."""
    T = np.eye(4)
    T[:3, 3] = x, y, z
    return T


def test_points_land_on_their_pixels():
    xyz = np.array([[0.0, 0, 2], [1, 0.5, 4], [-0.2, 0.1, 1]], np.float32)
    anchors = Anchors.from_points(xyz, CAMERA)
    np.testing.assert_allclose(anchors.u, [319.5, 444.5, 219.5], atol=1e-4)
    np.testing.assert_allclose(anchors.v, [239.5, 302.0, 289.5], atol=1e-4)
    np.testing.assert_array_equal(anchors.depth, [2, 4, 1])
    np.testing.assert_allclose(anchors.sigma, 0.02 + 0.005 * anchors.depth)
    for values in (anchors.u, anchors.v, anchors.depth, anchors.sigma):
        assert values.dtype == np.float32


def test_points_of_no_use_are_dropped():
    xyz = np.array(
        [
            [np.nan, 0, 2],
            [0, 0, np.inf],
            [0, 0, -3],  # behind
            [9, 0, 3],  # beside
            [0, 0, 0.05],  # too near
            [0, 0, 500],  # too far
            [0, 0, 7],
        ]
    )
    anchors = Anchors.from_points(xyz, CAMERA, mounted(0.1), sigma=np.arange(1.0, 8.0))
    np.testing.assert_array_equal(anchors.depth, [7])
    np.testing.assert_array_equal(anchors.sigma, [7])


def test_the_transform_takes_sensor_to_camera():
    # x forward, y left, z up, as a LiDAR has it
    T = np.array([[0, -1, 0, 0.1], [0, 0, -1, -0.2], [1, 0, 0, -0.3], [0, 0, 0, 1]], np.float64)
    anchors = Anchors.from_points(np.array([[10.3, -2.0, 1.0]], np.float32), CAMERA, T)
    np.testing.assert_allclose(anchors.depth, [10.0], rtol=1e-6)
    np.testing.assert_allclose(anchors.u, [319.5 + 500 * 2.1 / 10], rtol=1e-6)
    np.testing.assert_allclose(anchors.v, [239.5 - 500 * 1.2 / 10], rtol=1e-6)


def test_whole_numbers_are_points_too():
    anchors = Anchors.from_points(np.array([[0, 0, 2]]), CAMERA, mounted(z=0.25))
    np.testing.assert_array_equal(anchors.depth, [2.25])


@pytest.mark.parametrize('count', [0, 1])
def test_few_points(count):
    points = np.tile(np.float32([0.1, 0.2, 3.0]), (count, 1))
    assert len(Anchors.from_points(points, CAMERA, mounted(0.1))) == count
    assert len(Anchors.from_points(np.full((3, 3), np.nan), CAMERA, mounted(0.1))) == 0


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'xyz': np.zeros((4, 4))}, r'\(N, 3\)'),
        ({'T_camera_sensor': np.eye(3)}, r'\(4, 4\)'),
        ({'T_camera_sensor': np.full((4, 4), np.nan)}, 'finite'),
        ({'T_camera_sensor': np.diag([2.0, 2, 2, 1])}, 'rigid'),
        ({'T_camera_sensor': np.diag([1.0, 1, -1, 1])}, 'rigid'),
        ({'sigma': np.ones(3)}, 'each of the 5'),
        ({'sigma': 0.0}, 'positive'),
    ],
)
def test_input_that_cannot_be_right_is_refused(arguments, message):
    xyz = np.tile([0.0, 0.0, 5.0], (5, 1))
    with pytest.raises(ValueError, match=message):
        Anchors.from_points(**{'xyz': xyz, 'camera': CAMERA, **arguments})


def scan(origin, board, wall, lines, columns):
    """What a scanner at `origin` measures of a board in front of a wall, in its own frame.

    Args:
        origin: (3,) the scanner in the camera's frame; it looks the camera's way.
        board: (x0, x1, y0, y1, z) in the camera's frame, metres.
        wall: z of the wall.
        lines: Elevations in radians.
        columns: Azimuths in radians.

    Returns:
        (N, 3) points in the scanner's frame, and (N,) whether the board hides the point from the
        camera.
    """
    x0, x1, y0, y1, z = board
    azimuth, elevation = (a.ravel() for a in np.meshgrid(columns, lines))
    rays = np.stack(
        [np.tan(azimuth), np.tan(elevation) / np.cos(azimuth), np.ones_like(azimuth)], 1
    )
    on_board = origin + rays * (z - origin[2])
    on_wall = origin + rays * (wall - origin[2])
    hits = (
        (on_board[:, 0] > x0)
        & (on_board[:, 0] < x1)
        & (on_board[:, 1] > y0)
        & (on_board[:, 1] < y1)
    )
    xyz = np.where(hits[:, None], on_board, on_wall)
    seen_at = xyz * (z / xyz[:, 2:])  # where the camera's line of sight crosses the board's plane
    inside = (
        (seen_at[:, 0] > x0) & (seen_at[:, 0] < x1) & (seen_at[:, 1] > y0) & (seen_at[:, 1] < y1)
    )
    return xyz - origin, inside & ~hits


BOARD = (-1.0, 0.8, -0.6, 1.2, 6.0)
FINE_LINES = np.radians(np.arange(-20, 20, 0.4))
FINE_COLUMNS = np.radians(np.arange(-28, 28, 0.17))


@pytest.mark.parametrize(
    'origin', [(0.06, -0.08, -0.27), (0.0, -0.3, 0.0), (0.5, 0.0, 0.1), (0.0, -1.0, -0.5)]
)
def test_points_behind_a_board_are_dropped(origin):
    xyz, hidden = scan(np.array(origin), BOARD, 40.0, FINE_LINES, FINE_COLUMNS)
    sigma = np.where(hidden, 2.0, 1.0)  # to know them again
    everything = CAMERA.project(xyz + origin)[1]
    anchors = Anchors.from_points(xyz, CAMERA, mounted(*origin), sigma)
    assert (everything & hidden).sum() > 40
    assert (anchors.sigma == 2).sum() < 0.08 * (everything & hidden).sum()
    # and little that the camera does see is lost with them
    assert (anchors.sigma == 1).sum() > 0.96 * (everything & ~hidden).sum()
    assert (anchors.depth < 7).sum() == (xyz[everything, 2] + origin[2] < 7).sum()


def test_a_coarse_scanner_is_cleaned_too():
    """16 beams, 2 degrees apart: 17 pixels between the rows."""
    origin = np.array([0.0, -0.4, 0.0])
    lines = np.radians(np.arange(-15, 16, 2.0))
    xyz, hidden = scan(origin, BOARD, 40.0, lines, FINE_COLUMNS)
    anchors = Anchors.from_points(xyz, CAMERA, mounted(*origin), np.where(hidden, 2.0, 1.0))
    assert hidden.sum() > 20
    assert (anchors.sigma == 2).sum() < 0.2 * hidden.sum()


@pytest.mark.parametrize('T', [None, np.eye(4)])
def test_seen_from_the_camera_itself_nothing_is_hidden(T):
    xyz, _ = scan(np.zeros(3), BOARD, 40.0, FINE_LINES, FINE_COLUMNS)
    in_view = CAMERA.project(xyz)[1].sum()
    assert len(Anchors.from_points(xyz, CAMERA, T)) == in_view


@pytest.mark.parametrize('above', [0.08, 0.5])
def test_the_ground_hides_nothing(above):
    """Grazing rays: neighbouring rows lie far apart in depth, on one surface."""
    elevation, azimuth = np.meshgrid(np.radians(np.arange(1.2, 20, 0.4)), FINE_COLUMNS)
    height = 1.6 + above
    forward = height / np.tan(elevation) * np.cos(azimuth)
    sideways = height / np.tan(elevation) * np.sin(azimuth)
    xyz = np.stack([sideways, np.full_like(forward, height), forward], -1).reshape(-1, 3)
    T = mounted(y=-above)
    in_view = CAMERA.project(xyz + T[:3, 3])[1].sum()
    assert len(Anchors.from_points(xyz, CAMERA, T)) > 0.995 * in_view


def test_a_few_hundred_scattered_points_stay():
    rng = np.random.default_rng(0)
    z = rng.uniform(1, 10, 300)
    xyz = np.column_stack([rng.uniform(-0.6, 0.6, 300) * z, rng.uniform(-0.45, 0.45, 300) * z, z])
    T = mounted(0.05, -0.03)
    in_view = CAMERA.project(xyz + T[:3, 3])[1].sum()
    assert len(Anchors.from_points(xyz, CAMERA, T)) > 0.9 * in_view


def test_a_real_lidar_on_a_car(data):
    """KITTI: the scanner sits 8 cm above and 27 cm behind the camera."""
    drive = data / 'kitti_drive'
    calibration = json.loads((drive / 'calibration.json').read_text())
    camera = CameraModel(
        calibration['width'], calibration['height'], calibration['K'], calibration['D']
    )
    T = np.array(calibration['T_camera_lidar'])
    for frame in (0, 20, 40):
        xyz = np.load(drive / f'lidar/{frame:06d}.npy')[:, :3]
        in_camera = xyz @ T[:3, :3].T + T[:3, 3]
        in_view = camera.project(in_camera)[1]
        number = np.arange(1.0, len(xyz) + 1)  # as sigma, to know the points again
        anchors = Anchors.from_points(xyz, camera, T, number)
        same_view = Anchors.from_points(in_camera, camera)
        assert len(same_view) == in_view.sum()
        # Hidden are the rims of near things: a few percent (pictures were looked at).
        assert 0.92 * in_view.sum() < len(anchors) < 0.98 * in_view.sum()
        # Of the road ahead the points stay, but for some at the edges of cars.
        x, y, z = in_camera.T
        road = in_view & (np.abs(x + 1.0) < 1.0) & (y > 1.5) & (z > 8) & (z < 20)
        assert np.isin(number[road], anchors.sigma).sum() >= 0.93 * road.sum() > 50, frame


def test_depth_images_give_all_their_pixels():
    depth = np.full((30, 40), np.nan, np.float32)
    depth[3, 5], depth[20, 39], depth[29, 0] = 1.5, 2.5, 3.5
    depth[0, 0], depth[1, 1], depth[2, 2] = 0.0, -1.0, np.inf
    anchors = Anchors.from_depth(depth)
    np.testing.assert_array_equal(anchors.u, [5, 39, 0])
    np.testing.assert_array_equal(anchors.v, [3, 20, 29])
    np.testing.assert_array_equal(anchors.depth, [1.5, 2.5, 3.5])
    np.testing.assert_allclose(anchors.sigma, 0.02 + 0.005 * anchors.depth)


def test_sigma_of_a_depth_image():
    depth = np.full((4, 5), 2.0)
    depth[0, 0] = np.nan
    sigma = np.arange(20.0).reshape(4, 5)
    np.testing.assert_array_equal(Anchors.from_depth(depth, sigma=sigma).sigma, np.arange(1.0, 20))
    assert (Anchors.from_depth(depth, sigma=0.3).sigma == np.float32(0.3)).all()


def test_a_depth_image_without_a_measurement():
    assert len(Anchors.from_depth(np.zeros((4, 5)))) == 0
    with pytest.raises(ValueError, match=r'\(H, W\)'):
        Anchors.from_depth(np.zeros((4, 5, 1)))


def test_millimetres_are_not_taken_for_metres():
    with pytest.raises(ValueError, match='millimetres'):
        Anchors.from_depth(np.full((4, 5), 1500, np.uint16))


def cell_counts(anchors, rows, columns, height, width):
    counts, _, _ = np.histogram2d(
        anchors.v, anchors.u, (rows, columns), ((-0.5, height - 0.5), (-0.5, width - 0.5))
    )
    return counts


def test_dense_depth_is_thinned_evenly():
    depth = np.random.default_rng(0).uniform(1, 5, (480, 640)).astype(np.float32)
    anchors = Anchors.from_depth(depth, max_count=5000)
    assert len(anchors) == 5000
    counts = cell_counts(anchors, 6, 8, 480, 640)
    assert counts.min() > 0.75 * counts.mean()
    assert counts.max() < 1.25 * counts.mean()
    u, v = anchors.u.astype(int), anchors.v.astype(int)
    np.testing.assert_array_equal(anchors.depth, depth[v, u])


def crowded(count, seed=0):
    """Anchors of which nine in ten crowd in the lowest tenth of a 1242 x 375 image."""
    rng = np.random.default_rng(seed)
    low = rng.random(count) < 0.9
    v = np.where(low, rng.uniform(337, 374, count), rng.uniform(0, 374, count))
    return Anchors(rng.uniform(0, 1241, count), v, rng.uniform(2, 50, count), np.ones(count))


def test_thinning_evens_out_a_crowd():
    thinned = crowded(20000).thinned(1000)
    counts = cell_counts(thinned, 5, 10, 375, 1242)
    assert len(thinned) == 1000
    assert counts.min() > 0.6 * counts.mean()
    assert counts.max() < 2.0 * counts.mean()


@given(count=st.integers(0, 400), max_count=st.integers(0, 400), seed=st.integers(0, 99))
def test_thinning_chooses_as_many_as_asked_and_always_the_same(count, max_count, seed):
    anchors = crowded(count, seed)
    thinned = anchors.thinned(max_count)
    assert len(thinned) == min(count, max_count)
    whole = list(zip(anchors.u, anchors.v, anchors.depth, anchors.sigma, strict=True))
    chosen = list(zip(thinned.u, thinned.v, thinned.depth, thinned.sigma, strict=True))
    assert set(chosen) <= set(whole)
    assert len(set(chosen)) == len(chosen)
    np.testing.assert_array_equal(anchors.thinned(max_count).u, thinned.u)


@given(wide=st.floats(0, 5000), tall=st.floats(0, 5000))
def test_thinning_any_shape_of_crowd(wide, tall):
    rng = np.random.default_rng(0)
    anchors = Anchors(rng.random(500) * wide, rng.random(500) * tall, np.ones(500), np.ones(500))
    assert len(anchors.thinned(123)) == 123


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'v': np.ones((3, 1))}, 'length'),
        ({'sigma': np.ones(2)}, 'length'),
        ({'u': np.array([1.0, np.nan, 1.0])}, 'finite'),
        ({'depth': np.zeros(3)}, 'positive'),
    ],
)
def test_anchors_check_themselves(change, message):
    good = dict.fromkeys(('u', 'v', 'depth', 'sigma'), np.ones(3))
    assert len(Anchors(**good)) == 3
    with pytest.raises(ValueError, match=message):
        Anchors(**{**good, **change})


def test_no_anchors():
    assert len(Anchors.empty()) == 0
    assert len(Anchors.empty().thinned(5)) == 0
