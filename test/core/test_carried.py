"""Depth of the last frame as anchors of this one."""

import math

import cv2
import numpy as np
import pytest

from briges_ros.alignment import AffineFit, ScaleState, ScaleTracker, sample
from briges_ros.alignment.carried import CarriedDepth, same_scale
from briges_ros.camera import CameraModel

WIDTH, HEIGHT = 320, 240


def picture(seed=0):
    """Something to follow: blobs of all sizes."""
    rng = np.random.default_rng(seed)
    image = np.zeros((HEIGHT, WIDTH), np.float32)
    for reach in (3, 8, 20):
        noise = rng.normal(size=image.shape).astype(np.float32)
        blurred = cv2.GaussianBlur(noise, (0, 0), reach)
        image += blurred / blurred.std()
    grey = np.clip(128 + 30 * image, 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def slope():
    column = np.linspace(2.0, 4.0, HEIGHT, dtype=np.float32)
    return np.repeat(column[:, None], WIDTH, axis=1)


def shifted(image, right, down):
    return cv2.warpAffine(image, np.float32([[1, 0, right], [0, 1, down]]), (WIDTH, HEIGHT))


def remembered(image, depth, camera=None, stamp=1.0):
    memory = CarriedDepth()
    memory.remember(image, depth, 0.05 * depth, camera, stamp)
    return memory


@pytest.mark.parametrize('move', [(0, 0), (7, -4), (-25, 12)])
def test_depth_moves_with_the_image(move):
    memory = remembered(picture(), slope())
    carried = memory.recall(shifted(picture(), *move), None, 1.1)
    assert len(carried) > 150
    expected = sample(shifted(slope(), *move), carried.u, carried.v)
    assert np.median(np.abs(carried.depth / expected - 1)) < 0.01
    assert carried.size == (WIDTH, HEIGHT)
    # 5 % as it was, and 10 % sqrt(0.1 s) since.
    sigma = math.hypot(0.05, 0.1 * math.sqrt(0.1))
    np.testing.assert_allclose(carried.sigma / carried.depth, sigma, rtol=1e-3)


def test_with_a_camera_that_turns_points_keep_their_distance():
    camera = CameraModel.from_fov(WIDTH, HEIGHT, math.radians(90))
    angle = math.radians(8)
    turn = np.array(
        [[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]]
    )
    turned = cv2.warpPerspective(picture(), camera.K @ turn @ np.linalg.inv(camera.K), (320, 240))
    distance = 3.0
    depth = distance / np.sqrt(np.square(camera.rays()).sum(axis=2) + 1)
    carried = remembered(picture(), depth, camera).recall(turned, camera, 1.1)
    expected = sample(depth, carried.u, carried.v)
    assert np.quantile(np.abs(carried.depth / expected - 1), 0.9) < 0.01


def test_another_scene_carries_nothing():
    memory = remembered(picture(), slope())
    carried = memory.recall(picture(seed=1), None, 1.1)
    assert carried is None or len(carried) < 30


def test_edges_and_holes_are_not_carried():
    depth = slope()
    depth[:, 160:] = 10.0
    depth[:60] = np.nan
    depth[200:] = np.inf
    carried = remembered(picture(), depth).recall(picture(), None, 1.1)
    assert np.abs(carried.u - 159.5).min() > 3
    assert carried.v.min() > 60
    assert carried.v.max() < 200


def test_what_cannot_be_the_next_frame_is_not():
    memory = remembered(picture(), slope())
    assert memory.recall(picture(), None, 1.1) is not None
    assert memory.recall(picture(), None, None) is None
    assert memory.recall(picture(), None, 0.9) is None
    assert memory.recall(picture(), None, 2.5) is None
    assert memory.recall(picture()[:200], None, 1.1) is None
    memory.remember(picture(), np.full_like(slope(), np.nan), slope(), None, None)  # a still
    assert memory.recall(picture(), None, 1.1) is not None
    memory.remember(picture(), np.full_like(slope(), np.nan), slope(), None, 1.2)
    assert memory.recall(picture(), None, 1.3) is None
    memory = remembered(picture(), slope())
    memory.forget()
    assert memory.recall(picture(), None, 1.1) is None


def fit(scale=1.0, relief=0.02):
    covariance = np.diag([relief**2, 1e-6])
    return AffineFit(scale, 0.0, covariance, 40, 0, 0.02, np.ones(40, np.bool_), quality=1.0)


def test_carried_depth_of_another_scale_is_told():
    carried = remembered(picture(), slope()).recall(picture(), None, 1.1)
    relative = 1 / sample(slope(), carried.u, carried.v)
    relative *= np.exp(0.1 * np.random.default_rng(0).normal(size=len(relative)))
    assert same_scale(carried, relative, fit(1.0))
    assert same_scale(carried, relative, fit(1.1))
    assert not same_scale(carried, relative, fit(1.3))
    assert not same_scale(carried, relative, fit(0.7))
    assert same_scale(carried, relative, fit(0.7, relief=0.2))  # who knows
    assert not same_scale(carried, np.full_like(relative, np.nan), fit())


def test_a_network_that_changes_its_mind_is_followed_while_held():
    tracker = ScaleTracker()
    tracker.update(fit(0.3), 0.0)
    held = tracker.update(None, 0.1, 'no anchors', carried=fit(0.6))
    assert held.state is ScaleState.HELD
    assert held.scale == pytest.approx(0.6)
    assert held.age == pytest.approx(0.1)
    assert held.covariance[0, 0] > fit().covariance[0, 0]
    # However long it is carried on, it stays held, and ends.
    states = [
        tracker.update(None, 0.1 * k, carried=fit(0.3 * 2 ** (k % 2))).state for k in range(2, 60)
    ]
    assert ScaleState.METRIC not in states
    assert states[-1] is ScaleState.RELATIVE


def test_carried_depth_is_no_start():
    assert ScaleTracker().update(None, 0.0, carried=fit()).state is ScaleState.RELATIVE
