"""Laser scans: in exact scenes every range is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scenes import pose, view

from briges_ros import CameraModel
from briges_ros.obstacles import ground_of_base, obstacle_mask
from briges_ros.scan import laser_scan

CAMERA = CameraModel.from_fov(160, 120, 1.2)
FAR = 8.0
HIGH = 2.0


def scan_of(T, boxes=(), depth=None, max_range=FAR, camera=CAMERA, ground=True):
    depth = view(camera, T, boxes, ground) if depth is None else depth
    mask = obstacle_mask(depth, camera, ground_of_base(T), 0.05, HIGH)
    return laser_scan(depth, camera, mask, T, 0.1, max_range, HIGH)


def angles(scan):
    return scan.angle_min + np.arange(len(scan.ranges)) * scan.angle_increment


def wall(x):
    return ((x, -50.0, 0.0), (x + 0.5, 50.0, 3.0))


def post(distance, angle, half=0.15):
    x, y = distance * np.cos(angle), distance * np.sin(angle)
    return ((x - half, y - half, 0.0), (x + half, y + half, 1.5))


@settings(max_examples=25, deadline=None)
@given(
    x=st.floats(-0.5, 0.5),
    y=st.floats(-0.5, 0.5),
    height=st.floats(0.2, 1.5),
    pitch=st.floats(-0.1, 0.35),
    roll=st.floats(-0.2, 0.2),
    distance=st.floats(2.0, 6.0),
)
def test_a_wall_is_where_it_is(x, y, height, pitch, roll, distance):
    """A wall across: range = x / cos(angle), wherever on the robot the camera is."""
    scan = scan_of(pose(x, y, height, 0.0, pitch, roll), [wall(distance)])
    hit = np.isfinite(scan.ranges)
    assert hit.sum() > 0.5 * 1.2 / scan.angle_increment  # half of the field of view
    beam = angles(scan)[hit]
    # A point lies within half a beam, and the wall is hit at a right angle in the middle only.
    slack = 0.6 * scan.angle_increment * scan.ranges[hit] * np.abs(np.tan(beam)) + 1e-3
    assert (np.abs(scan.ranges[hit] - distance / np.cos(beam)) < slack).all()


@pytest.mark.parametrize('side', [0.35, -0.35])
@pytest.mark.parametrize('yaw', [0.0, 1.2, np.pi, -2.5])
def test_left_is_positive(side, yaw):
    """Counter-clockwise from the x axis of the base, wherever the camera looks, also back."""
    scan = scan_of(pose(0.0, 0.0, 0.5, yaw), [post(3.0, yaw + side)])
    hit = np.isfinite(scan.ranges)
    assert 2 < hit.sum() < 20
    off = angles(scan)[hit] - (yaw + side)
    assert np.abs((off + np.pi) % (2 * np.pi) - np.pi).max() < 0.1
    assert scan.ranges[hit].min() == pytest.approx(2.85, abs=0.1)
    assert scan.angle_max > scan.angle_min


def test_free_unknown_and_too_far_are_told_apart():
    T = pose(height=0.5)
    clear = scan_of(T)
    assert np.isposinf(clear.ranges).all()
    assert np.isposinf(scan_of(T, [wall(FAR + 1)]).ranges[20:-20]).all()
    unknown = view(CAMERA, T)
    unknown[:, :80] = np.nan  # the left half of the image: positive angles
    ranges = scan_of(T, depth=unknown).ranges
    beam = angles(clear)
    assert np.isnan(ranges[beam > 0.05]).all()
    assert np.isposinf(ranges[beam < -0.05]).all()


def test_a_camera_that_sees_the_floor_only_says_nothing_of_what_is_farther():
    T = pose(height=0.5, pitch=1.0)
    assert not np.isinf(scan_of(T).ranges).any()
    scan = scan_of(T, [post(0.6, 0.0, 0.05)])
    assert np.nanmin(scan.ranges) == pytest.approx(0.55, abs=0.02)


def test_a_camera_that_sees_the_sky_only_says_nothing():
    assert np.isnan(scan_of(pose(height=0.5, pitch=-1.0)).ranges).all()


def test_a_wall_without_depth_is_not_free():
    """Over a wall that could not be measured the sky is seen, and the floor before it."""
    T = pose(height=0.5)
    depth = view(CAMERA, T, [wall(4.0)])
    depth[depth != view(CAMERA, T)] = np.nan
    assert not np.isinf(scan_of(T, depth=depth).ranges).any()


@given(
    depth=st.sampled_from([np.nan, np.inf, 0.2, 3.0, 30.0]),
    max_range=st.floats(1.0, 20.0),
)
@settings(max_examples=20, deadline=None)
def test_the_geometry_of_a_scan_never_changes(depth, max_range):
    """SLAM takes the number and the angles of the beams for fixed."""
    T = pose(0.2, 0.1, 0.5)
    reference = scan_of(T, max_range=max_range)
    image = np.full((CAMERA.height, CAMERA.width), depth, np.float32)
    scan = scan_of(T, depth=image, max_range=max_range)
    assert scan.angle_min == reference.angle_min
    assert scan.angle_increment == reference.angle_increment
    assert len(scan.ranges) == len(reference.ranges)
    finite = scan.ranges[np.isfinite(scan.ranges)]
    assert ((finite >= 0) & (finite <= max_range)).all()


def test_the_nearest_obstacle_of_a_direction_counts():
    T = pose(height=1.0)
    low = ((3.0, -0.3, 0.0), (3.3, 0.3, 0.3))  # the wall is seen over it
    scan = scan_of(T, [low, wall(6.0)])
    middle = np.abs(angles(scan)) < 0.08
    np.testing.assert_allclose(scan.ranges[middle], 3.0, rtol=0.02)


def test_beams_cover_the_view_without_gaps():
    scan = scan_of(pose(height=0.5), [wall(3.0)])
    assert np.isfinite(scan.ranges).all()
    assert scan.angle_max - scan.angle_min == pytest.approx(1.2, abs=0.05)
    assert scan.angle_increment == pytest.approx(2 / CAMERA.fx)


def test_a_distorted_camera():
    barrel = CameraModel(160, 120, CAMERA.K, [-0.2, 0.03, 0, 0])
    scan = scan_of(pose(height=0.5), [wall(3.0)], camera=barrel)
    hit = np.isfinite(scan.ranges)
    assert hit.mean() > 0.95
    np.testing.assert_allclose(scan.ranges[hit], 3.0 / np.cos(angles(scan)[hit]), rtol=0.02)


def test_sizes_must_agree():
    depth = np.ones((CAMERA.height, CAMERA.width), np.float32)
    with pytest.raises(ValueError, match='obstacles'):
        laser_scan(depth, CAMERA, np.ones((3, 4), bool), pose(), 0.1, FAR, HIGH)
    with pytest.raises(ValueError, match=r'camera\.scaled'):
        laser_scan(depth[1:], CAMERA, depth > 0, pose(), 0.1, FAR, HIGH)
