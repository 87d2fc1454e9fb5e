"""The ground, and what stands on it: exact scenes, noisy ones, and a street with LiDAR."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scenes import pose, view

from briges_ros import Anchors, CameraModel
from briges_ros.cli.inputs import read_camera
from briges_ros.errors import BrigesError
from briges_ros.obstacles import fit_ground, ground_of_base, level_camera_pose, obstacle_mask

CAMERA = CameraModel.from_fov(160, 120, 1.2)
BOX = ((3.0, -0.5, 0.0), (3.5, 0.5, 0.6))
KERB = ((2.5, -5.0, 0.0), (6.0, 5.0, 0.12))


def tilt(first, second):
    """Angle between the normals of two planes, degrees."""
    return np.degrees(np.arccos(np.clip(first.down @ second.down, -1, 1)))


def shown(depth, T):
    """The pixels that show something else than the bare ground."""
    return depth != view(CAMERA, T)


def test_a_level_camera_is_where_it_says():
    np.testing.assert_allclose(level_camera_pose(0.7, 0.3), pose(height=0.7, pitch=0.3), atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(
    height=st.floats(0.15, 2.0),
    pitch=st.floats(0.0, 0.5),
    pitch_error=st.floats(-0.1, 0.1),
    height_error=st.floats(-0.2, 0.2),
)
def test_the_ground_is_found_from_a_wrong_pose(height, pitch, pitch_error, height_error):
    T = pose(height=height, pitch=pitch)
    box = tuple(tuple(height * value for value in corner) for corner in BOX)
    depth = view(CAMERA, T, [box])
    expected = ground_of_base(pose(height=height * (1 + height_error), pitch=pitch + pitch_error))
    found = fit_ground(depth, CAMERA, expected)
    assert found.height == pytest.approx(height, rel=0.02)
    assert tilt(found, ground_of_base(T)) < 0.5
    mask = obstacle_mask(depth, CAMERA, found, 0.1 * height, 2.0 * height)
    on_box = shown(depth, T)
    near = depth < 10 * height
    foot = on_box & (view_height(depth, T) < 0.15 * height)
    np.testing.assert_array_equal(mask[near & ~foot], on_box[near & ~foot])


def view_height(depth, T):
    """The heights over the base's z = 0 that a depth image shows."""
    rays = CAMERA.rays()
    with np.errstate(invalid='ignore'):
        return (rays @ T[2, :2] + T[2, 2]) * depth + T[2, 3]


def test_a_wrong_scale_does_not_matter():
    T = pose(height=0.4, pitch=0.2)
    depth = view(CAMERA, T, [BOX])
    expected = ground_of_base(T)
    found = fit_ground(1.1 * depth, CAMERA, expected)
    assert found.height == pytest.approx(0.44, rel=0.01)
    right = obstacle_mask(depth, CAMERA, fit_ground(depth, CAMERA, expected), 0.1, 2.0)
    scaled = obstacle_mask(1.1 * depth, CAMERA, found, 0.11, 2.2)
    np.testing.assert_array_equal(scaled, right)


def test_a_kerb_stays_and_a_threshold_goes():
    T = pose(height=0.4, pitch=0.2)
    depth = view(CAMERA, T, [KERB])
    kerb = shown(depth, T)
    found = fit_ground(depth, CAMERA, ground_of_base(T))
    top = kerb & (view_height(depth, T) > 0.11)
    assert top.sum() > 100
    assert obstacle_mask(depth, CAMERA, found, 0.1, 2.0)[top].all()
    assert not obstacle_mask(depth, CAMERA, found, 0.15, 2.0).any()


def test_what_is_passed_under_is_no_obstacle():
    T = pose(height=0.4, pitch=0.0)
    bridge = ((3.0, -3.0, 1.0), (3.5, 3.0, 1.5))
    depth = view(CAMERA, T, [bridge])
    found = fit_ground(depth, CAMERA, ground_of_base(T))
    assert obstacle_mask(depth, CAMERA, found, 0.1, 2.0).any()
    assert not obstacle_mask(depth, CAMERA, found, 0.1, 0.9).any()


@pytest.mark.parametrize('growth', [0.0, 0.01])
def test_noise_is_measured_and_allowed_for(growth):
    """Depth that is good to 2 % of z, or to 2 % + 1 % per metre: ground never, boxes always."""
    T = pose(height=1.0, pitch=0.3)
    depth = view(CAMERA, T, [BOX])
    box = shown(depth, T)
    noise = np.random.default_rng(0).normal(size=depth.shape).astype(np.float32)
    noisy = depth * (1 + (0.02 + growth * np.where(np.isinf(depth), 0, depth)) * noise)
    found = fit_ground(noisy, CAMERA, ground_of_base(T))
    ground = ~box & (depth < 6)
    near = np.array([2.0, 6.0])
    np.testing.assert_allclose(
        found.noise[0] + found.noise[1] * near, 0.02 + growth * near, rtol=0.35
    )
    mask = obstacle_mask(noisy, CAMERA, found, 0.02, 2.0)
    assert mask[ground].mean() < 0.015
    high = box & (view_height(depth, T) > 0.3)
    assert high.sum() > 100
    assert mask[high].mean() > 0.99
    naive = obstacle_mask(noisy, CAMERA, ground_of_base(T), 0.02, 2.0)
    assert naive[ground].mean() > 10 * mask[ground].mean()


def test_noise_hides_no_more_than_a_quarter_of_the_cameras_height():
    T = pose(height=1.0, pitch=0.3)
    depth = view(CAMERA, T, [BOX])
    coarse = type(ground_of_base(T))(ground_of_base(T).inverse, (0.5, 0.1))
    high = shown(depth, T) & (view_height(depth, T) > 0.26)
    assert obstacle_mask(depth, CAMERA, coarse, 0.1, 2.0)[high].all()


def test_without_ground_in_view_the_last_one_counts():
    wall = np.full((CAMERA.height, CAMERA.width), 0.3, np.float32)  # right before the lens
    expected = ground_of_base(pose(height=1.0))
    last = ground_of_base(pose(height=1.05, pitch=0.02))
    assert fit_ground(wall, CAMERA, expected) is expected
    assert fit_ground(wall, CAMERA, expected, last) is last
    T = pose(height=1.0, pitch=0.3)  # a wall from 15 cm over the floor on: nearly where that is
    wall = view(CAMERA, T, [((1.0, -9.0, 0.0), (1.2, 9.0, 3.0))])
    assert not (wall == view(CAMERA, T)).any()
    assert fit_ground(wall, CAMERA, ground_of_base(T), last) is last
    unknown = np.full_like(wall, np.nan)
    assert fit_ground(unknown, CAMERA, expected, last) is last


@given(
    value=st.sampled_from([np.nan, np.inf, -np.inf]),
    height=st.floats(0.2, 2),
    pitch=st.floats(-1, 1),
)
@settings(max_examples=20, deadline=None)
def test_what_is_not_known_is_no_obstacle(value, height, pitch):
    depth = np.full((CAMERA.height, CAMERA.width), value, np.float32)
    assert not obstacle_mask(
        depth, CAMERA, ground_of_base(pose(height=height, pitch=pitch)), 0, 9
    ).any()


def test_the_same_input_gives_the_same_plane():
    depth = view(CAMERA, pose(height=0.4, pitch=0.2), [BOX])
    depth *= np.random.default_rng(0).normal(1, 0.02, depth.shape).astype(np.float32)
    expected = ground_of_base(pose(height=0.5))
    first, second = (fit_ground(depth, CAMERA, expected) for _ in range(2))
    np.testing.assert_array_equal(first.inverse, second.inverse)


def test_a_base_frame_above_the_camera_is_refused():
    with pytest.raises(BrigesError, match='base_footprint'):
        ground_of_base(pose(height=-0.1))


def test_depth_and_camera_must_agree_in_size():
    ground = ground_of_base(pose())
    other = np.ones((CAMERA.height, CAMERA.width + 1), np.float32)
    with pytest.raises(ValueError, match=r'camera\.scaled'):
        fit_ground(other, CAMERA, ground)
    with pytest.raises(ValueError, match=r'camera\.scaled'):
        obstacle_mask(other, CAMERA, ground, 0.1, 2.0)


@pytest.mark.parametrize('pitch_error', [-2.0, 0.0, 2.0])
def test_a_street_from_lidar(data, pitch_error):
    """KITTI: the camera is 1.65 m over the road and level within a degree."""
    drive = data / 'kitti_drive'
    calibration = read_camera(drive / 'calibration.json')
    camera = calibration.camera
    points = np.load(drive / 'lidar' / '000030.npy')[:, :3]
    anchors = Anchors.from_points(points, camera, calibration.T_camera_sensor)
    depth = np.full((camera.height, camera.width), np.nan, np.float32)
    at = np.rint(anchors.v).astype(int), np.rint(anchors.u).astype(int)
    depth[at] = anchors.depth
    expected = ground_of_base(pose(height=1.65, pitch=np.radians(pitch_error)))
    found = fit_ground(depth, camera, expected)
    assert 1.6 < found.height < 1.75
    assert tilt(found, ground_of_base(pose(height=1.65))) < 1.0
    mask = obstacle_mask(depth, camera, found, 0.2, 2.0)
    below = camera.rays()[..., 1] * depth  # y of the optical frame
    near = depth < 15
    assert mask[near & (below > 1.63)].mean() < 0.01
    assert mask[near & (below < 1.2) & (below > -0.2)].mean() > 0.99
