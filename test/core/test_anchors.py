"""Anchors from points and depth images; what the camera cannot see is left out."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from briges_ros.alignment import Anchors, Dropped, RangeNoise
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
    assert anchors.dropped == Dropped(
        not_finite=2, behind_camera=1, outside_image=1, too_near=1, too_far=1
    )


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
        ({'weight': np.ones(2)}, 'length'),
        ({'weight': np.full(3, -1.0)}, 'negative'),
        ({'group': np.zeros(2, int)}, 'length'),
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


# ---- what was dropped, and why ------------------------------------------------------------------


def test_zero_ranges_are_no_measurement_wherever_the_sensor_stands():
    """The (0, 0, 0) of a driver lies in view if the sensor stands before the camera."""
    xyz = np.array([[0.0, 0, 0], [0, 0, 0], [0, 0, 3]])
    anchors = Anchors.from_points(xyz, CAMERA, mounted(z=1.0))
    np.testing.assert_array_equal(anchors.depth, [4])
    assert anchors.dropped == Dropped(not_positive=2)
    assert Anchors.from_points(xyz, CAMERA, mounted(z=1.0), min_range=0.0).dropped.not_positive == 2


def test_repeated_points_count_once():
    xyz = np.array([[0.1, 0, 2], [0.2, 0, 2], [0.1, 0, 2], [0.1, 0, 2], [0, 0, 2], [0, 0, 4]])
    anchors = Anchors.from_points(xyz, CAMERA)
    np.testing.assert_array_equal(anchors.depth, [2, 2, 2, 4])  # one pixel, two depths: both stay
    assert anchors.dropped == Dropped(duplicate=2)


def test_extrinsics_upside_down_leave_all_behind_the_camera():
    backwards = np.diag([1.0, -1, -1, 1])
    anchors = Anchors.from_points(np.tile([0.0, 0.1, 5.0], (7, 1)), CAMERA, backwards)
    assert len(anchors) == 0
    assert anchors.dropped == Dropped(behind_camera=7)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(*[st.floats(width=32) | st.sampled_from([0.0, 1.0, -1.0, 30.0])] * 3),
        max_size=30,
    ),
    st.sampled_from([None, mounted(0.3), mounted(z=-0.5), np.diag([1.0, -1, -1, 1])]),
    st.sampled_from([(0.1, 200.0), (0.0, np.inf), (5.0, 1.0)]),
)
def test_every_point_is_an_anchor_or_has_a_reason(points, T, limits):
    xyz = np.array(points, np.float32).reshape(-1, 3)
    anchors = Anchors.from_points(xyz, CAMERA, T, None, *limits)
    counts = anchors.dropped.by_reason()
    assert len(anchors) + sum(counts.values()) == len(xyz)
    assert min(counts.values()) >= 0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(width=32) | st.sampled_from([0.0, 1.0, -1.0, np.inf]), max_size=30),
    st.sampled_from([(0.1, 200.0), (0.0, np.inf), (5.0, 1.0)]),
)
def test_every_range_and_pixel_is_an_anchor_or_has_a_reason(ranges, limits):
    values = np.array(ranges, np.float32)
    angles = np.linspace(-0.3, 0.3, len(values))
    scanned = Anchors.from_scan(values, angles, CAMERA, LIDAR, None, *limits)
    pixels = Anchors.from_depth(values[None], min_range=limits[0], max_range=limits[1])
    for anchors in (scanned, pixels):
        counts = anchors.dropped.by_reason()
        assert len(anchors) + sum(counts.values()) == len(values)
        assert min(counts.values()) >= 0


def test_special_values_mean_what_rep_117_says():
    special = np.array([np.nan, -np.inf, np.inf, 0.0, -2.0, 0.05, 90.0, 3.0], np.float32)
    said = Dropped(not_finite=1, not_positive=2, too_near=2, too_far=2)
    scanned = Anchors.from_scan(special, np.zeros(8), CAMERA, LIDAR, max_range=80.0)
    pixels = Anchors.from_depth(special[None], min_range=0.1, max_range=80.0)
    assert scanned.dropped == pixels.dropped == said
    np.testing.assert_allclose(scanned.depth, [3.0], rtol=1e-6)
    for value, reason in zip(special[:5], ('not_finite', 'too_near', 'too_far'), strict=False):
        cone = Anchors.from_cone(float(value), 0.3, CAMERA, LIDAR)
        assert len(cone) == 0 and getattr(cone.dropped, reason) == 1


# ---- noise -------------------------------------------------------------------------------------


def test_noise_grows_as_the_sensor_does():
    noise = RangeNoise(0.01, 0.02, 0.003)
    np.testing.assert_allclose(noise.sigma(np.array([0.0, 1.0, 10.0])), [0.01, 0.033, 0.51])


def test_range_noise_counts_along_z_only():
    """At 45 degrees off the axis, 10 cm of range are 7 cm of depth; the range is the sensor's."""
    wide = CameraModel.from_fov(640, 480, 2.0)
    xyz = np.array([[3.0, 0.0, 3.0], [0.0, 0.0, 3.0]])
    anchors = Anchors.from_points(xyz, wide, sigma=RangeNoise(0.0, 0.1, 0.0))
    np.testing.assert_allclose(anchors.sigma, [0.1 * 3, 0.1 * 3], rtol=1e-5)
    anchors = Anchors.from_points(xyz, wide, mounted(0.0, 0.0, 1.0), RangeNoise(0.1, 0.0, 0.0))
    np.testing.assert_allclose(anchors.sigma, [0.1 * 0.8, 0.1], rtol=1e-5)


# ---- planar scanners ---------------------------------------------------------------------------

# x forward, y left, z up in a camera that looks forward.
LIDAR = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], np.float64)


def test_a_scan_lies_in_its_plane():
    angles = np.radians([-10.0, 0.0, 10.0])
    anchors = Anchors.from_scan(np.array([2.0, 3.0, 4.0]), angles, CAMERA, LIDAR)
    np.testing.assert_allclose(anchors.depth, [2, 3, 4] * np.cos(angles), rtol=1e-5)
    np.testing.assert_allclose(anchors.u, 319.5 - 500 * np.tan(angles), atol=1e-3)
    np.testing.assert_allclose(anchors.v, 239.5, atol=1e-3)


def test_a_scan_is_taken_back_to_its_first_ray():
    """A robot that drives on while a wall is scanned: each ray is from farther on."""
    angles = np.radians(np.linspace(-20, 20, 41))
    forward = np.linspace(0.0, 0.5, 41)  # metres on, ray by ray
    ranges = (5.0 - forward) / np.cos(angles)
    moved = np.eye(4)
    moved[0, 3] = 0.5
    anchors = Anchors.from_scan(ranges, angles, CAMERA, LIDAR, T_first_last=moved)
    np.testing.assert_allclose(anchors.depth, 5.0, rtol=1e-5)
    assert np.ptp(Anchors.from_scan(ranges, angles, CAMERA, LIDAR).depth) > 0.4


def test_a_scan_needs_an_angle_for_each_range():
    with pytest.raises(ValueError, match='one length'):
        Anchors.from_scan(np.ones(3), np.ones(2), CAMERA)


# ---- rangers with a cone -----------------------------------------------------------------------


def test_a_reading_is_one_measurement_at_the_nearest_thing_in_its_cone():
    relative = np.full((480, 640), 1.0, np.float32)
    relative[200:300, 350:420] = 5.0  # something near, in the cone
    relative[0:100, 0:100] = 9.0  # nearer still, outside
    relative[240, 320] = 50.0  # a pixel gone wrong
    cone = Anchors.from_cone(2.0, np.radians(25), CAMERA, LIDAR)
    assert len(cone) > 100 and cone.measurements == 1
    (settled,) = (cone.settled(relative),)
    assert len(settled) == 1 and settled.group is None
    assert 350 <= settled.u[0] < 420 and 200 <= settled.v[0] < 300
    assert 2.0 * np.cos(np.radians(12.5)) < settled.depth[0] <= 2.0


def test_a_wider_cone_says_less():
    sigma = [
        float(Anchors.from_cone(3.0, np.radians(fov), CAMERA, LIDAR, 0.02).sigma.max())
        for fov in (0, 5, 15, 30, 45)
    ]
    assert sigma[0] == pytest.approx(0.02)
    assert sigma == sorted(sigma)
    assert sigma[-1] > 0.2  # the depth of the cap
    assert len(Anchors.from_cone(3.0, 0.0, CAMERA, LIDAR)) == 1


def test_a_cone_half_out_of_the_image_says_nothing():
    aside = LIDAR.copy()
    aside[:3, :3] = LIDAR[:3, :3] @ np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])
    assert Anchors.from_cone(3.0, 0.4, CAMERA, aside).dropped == Dropped(outside_image=1)
    back = LIDAR @ np.diag([-1.0, -1, 1, 1])
    assert Anchors.from_cone(3.0, 0.4, CAMERA, back).dropped == Dropped(behind_camera=1)
    with pytest.raises(ValueError, match='field_of_view'):
        Anchors.from_cone(3.0, 7.0, CAMERA, LIDAR)


def test_a_group_without_a_prediction_is_left_out():
    cone = Anchors.from_cone(2.0, 0.3, CAMERA, LIDAR)
    assert len(cone.settled(np.full((480, 640), np.nan, np.float32))) == 0
    alone = Anchors(np.ones(3), np.ones(3), np.ones(3), np.ones(3))
    assert alone.settled(np.ones((480, 640), np.float32)) is alone


# ---- several sensors ---------------------------------------------------------------------------


def test_sensors_are_joined_with_their_weights_and_groups():
    points = Anchors.from_points(np.array([[0.0, 0, 3], [0, 0, -3]]), CAMERA).weighted(0.5)
    cones = [Anchors.from_cone(r, 0.3, CAMERA, LIDAR) for r in (2.0, 4.0)]
    joined = Anchors.joined([cones[0], points, cones[1]])
    assert joined.measurements == 3
    assert joined.dropped == Dropped(behind_camera=1)
    assert joined.size == (640, 480)
    np.testing.assert_array_equal(np.unique(joined.weight), [0.5, 1.0])
    settled = joined.settled(np.ones((480, 640), np.float32))
    assert len(settled) == 3
    np.testing.assert_array_equal(settled.weight, [1.0, 0.5, 1.0])
    # All that picks among anchors keeps what belongs to each.
    few = joined.thinned(50).within(640, 480)
    assert len(few) == 50 and set(np.unique(few.group)) <= {-1, 0, 1}
    assert Anchors.joined([points]).group is None
    assert len(Anchors.joined([])) == 0


def test_anchors_of_different_images_are_not_joined():
    first = Anchors.from_depth(np.ones((4, 5)))
    with pytest.raises(ValueError, match='different sizes'):
        Anchors.joined([first, Anchors.from_depth(np.ones((5, 4)))])


# ---- spread ------------------------------------------------------------------------------------


def street(count=20000, seed=0):
    """Anchors all over a road that runs to the horizon, and its inverse depth: (240, 640)."""
    rng = np.random.default_rng(seed)
    relative = np.repeat(np.arange(240, dtype=np.float32)[:, None] / 800, 640, axis=1)
    v = rng.uniform(10, 239, count)
    return Anchors(rng.uniform(0, 639, count), v, 800 / v, np.ones(count)), relative


def test_spread_gives_the_far_end_its_share():
    """Of a street, the far half of the log depth covers a few rows below the horizon."""
    anchors, relative = street()
    thinned, spread = anchors.thinned(1000), anchors.spread(1000, 7 * relative - 3)
    middle = np.sqrt(anchors.depth.min() * anchors.depth.max())
    assert len(spread) == 1000
    assert (spread.depth > middle).mean() > 1.3 * (thinned.depth > middle).mean()
    # and over the image as evenly as before, where the network sees no depth
    counts = cell_counts(anchors.spread(1000, np.ones_like(relative)), 4, 8, 240, 640)
    assert counts.min() > 0.6 * counts.mean()


@pytest.mark.parametrize('count', [200, 2000])
def test_spread_does_not_favour_what_is_wrong(count):
    """Wrong depths lie far apart: by cells of measured depth, they would be most of the choice."""
    anchors, relative = street()
    rng = np.random.default_rng(1)
    wrong = rng.random(len(anchors)) < 0.4
    depth = np.where(wrong, np.exp(rng.uniform(1, 4.5, len(anchors))), anchors.depth)
    spread = Anchors(anchors.u, anchors.v, depth, np.where(wrong, 2.0, 1.0)).spread(count, relative)
    assert 0.3 < (spread.sigma == 2).mean() < 0.5


@settings(max_examples=40, deadline=None)
@given(
    st.floats(0, 700),
    st.floats(0, 300),
    st.floats(1, 1e6),
    st.integers(0, 499),
    st.sampled_from([1.0, np.nan, np.inf]),
)
def test_spread_any_shape_of_crowd(wide, tall, deep, count, odd):
    rng = np.random.default_rng(0)
    relative = rng.random((240, 640), np.float32)
    relative[::3] *= odd
    depth = np.exp(rng.random(500) * np.log(deep))
    anchors = Anchors(rng.random(500) * wide, rng.random(500) * tall, depth, np.ones(500))
    assert len(anchors.spread(count, relative)) == count
    chosen = anchors.spread(count, relative).u
    np.testing.assert_array_equal(anchors.spread(count, relative).u, chosen)
