"""Scale from the height over the ground."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from briges_ros.alignment import FitFailure, ScaleState, ScaleTracker
from briges_ros.alignment.ground import ground_prior
from briges_ros.alignment.tracker import ScalePrior
from briges_ros.camera import CameraModel

CAMERA = CameraModel.from_fov(320, 240, math.radians(70))


def down(pitch_deg, roll_deg=0.0):
    """Direction of gravity for a camera that looks down by that much."""
    pitch, roll = math.radians(pitch_deg), math.radians(roll_deg)
    y, z = math.cos(pitch), math.sin(pitch)
    return np.array([math.sin(roll) * y, math.cos(roll) * y, z])


def room(height, gravity, wall=6.0):
    """Inverse depth of a floor with a wall across and a box on it."""
    rays = CAMERA.rays()
    inverse = np.maximum((rays @ gravity[:2] + gravity[2]) / height, 1 / wall)
    inverse[100:160, 120:200] = np.maximum(inverse[100:160, 120:200], 0.5)
    return inverse.astype(np.float32)


@settings(deadline=None, max_examples=30)
@given(
    height=st.floats(0.3, 2.0),
    pitch=st.floats(5, 35),  # that of a camera that sees enough of it beside the wall
    roll=st.floats(-10, 10),
    scale=st.floats(1e-4, 10),
    shift=st.floats(-0.05, 0.3),
)
def test_the_scale_is_found_from_the_floor(height, pitch, roll, scale, shift):
    gravity = down(pitch, roll)
    inverse = room(height, gravity, wall=4 * height)
    relative = (inverse - np.float32(shift)) / np.float32(scale)
    prior = ground_prior(relative, CAMERA, height, 3 * gravity)
    assert isinstance(prior, ScalePrior)
    ours = prior.scale * relative + prior.shift
    np.testing.assert_allclose(ours, inverse, rtol=0.02, atol=0.005 / height)
    assert f'{height:.2f} m below' in prior.reason


def test_the_covariance_covers_what_is_not_known():
    rng = np.random.default_rng(0)
    errors, sigmas = [], []
    for _ in range(100):
        inverse = room(1.0, down(15 + math.degrees(0.02 * rng.normal())))
        relative = inverse * np.exp(0.05 * rng.normal(size=inverse.shape)).astype(np.float32)
        prior = ground_prior(relative, CAMERA, 1 + 0.05 * rng.normal(), down(15))
        far = 0.2
        row = np.array([far, 1.0])
        errors.append(row @ [prior.scale, prior.shift] - far)
        sigmas.append(math.sqrt(row @ prior.covariance @ row))
    assert np.std(errors) < np.mean(sigmas) < 3 * np.std(errors)


def test_a_wall_is_no_floor():
    rng = np.random.default_rng(0)
    wall = np.exp(0.03 * rng.normal(size=(240, 320))).astype(np.float32)
    failure = ground_prior(wall, CAMERA, 1.0, down(10))
    assert isinstance(failure, FitFailure)
    assert 'no floor' in failure.reason


def test_a_step_with_the_floor_below_it_is_no_floor():
    # Two thirds of the view show a platform half as deep as the floor.
    gravity = down(30)
    inverse = room(1.0, gravity)
    inverse[:, 100:] = room(0.5, gravity)[:, 100:]
    failure = ground_prior(inverse, CAMERA, 1.0, gravity)
    assert isinstance(failure, FitFailure)
    assert 'no floor in view' in failure.reason


def test_a_camera_that_looks_up_sees_no_ground():
    failure = ground_prior(room(1.0, down(10)), CAMERA, 1.0, down(-40))
    assert isinstance(failure, FitFailure)
    assert 'does not look at the ground' in failure.reason


def test_it_is_a_prior():
    prior = ground_prior(room(1.0, down(10)), CAMERA, 1.0, down(10))
    estimate = ScaleTracker().update(None, 0.0, 'no anchors', prior)
    assert estimate.state is ScaleState.PRIOR
    assert estimate.scale == pytest.approx(1.0, rel=0.02)
    assert 'the floor' in estimate.reason


@pytest.mark.parametrize(
    ('height', 'gravity', 'named'),
    [(0.0, (0, 1, 0), 'height'), (math.nan, (0, 1, 0), 'height'), (1.0, (0, 0, 0), 'down')],
)
def test_senseless_arguments_are_refused(height, gravity, named):
    with pytest.raises(ValueError, match=named):
        ground_prior(room(1.0, down(10)), CAMERA, height, gravity)
