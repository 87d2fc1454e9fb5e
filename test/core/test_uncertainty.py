"""The standard deviation of depth: as great as the errors are, where they are."""

import dataclasses
import math

import cv2
import numpy as np
import pytest

from briges_ros.alignment import ScaleEstimate, ScaleState, sample
from briges_ros.alignment.uncertainty import depth_sigma, local_error
from briges_ros.depth_image import depth_from_inverse

WIDTH, HEIGHT = 320, 240
SCALE, SHIFT = 0.5, 0.02
NO_COVARIANCE = np.zeros((2, 2))


def estimate(covariance=NO_COVARIANCE, inliers=40, model_error=math.nan):
    return ScaleEstimate(
        ScaleState.METRIC, SCALE, SHIFT, covariance, inliers, 0, 0.05, 0.0, 'fitted',
        model_error=model_error,
    )  # fmt: skip


def floor():
    """Inverse depth of a floor, 0.05 to 1 per metre."""
    column = np.linspace(0.05, 1.0, HEIGHT, dtype=np.float32)
    return np.repeat(column[:, None], WIDTH, axis=1)


def smooth_noise(rng, size, reach):
    field = cv2.GaussianBlur(rng.normal(size=(HEIGHT, WIDTH)).astype(np.float32), (0, 0), reach)
    return size * field / field.std()


def anchors(rng, depth, count, noise=0.0):
    u = rng.uniform(0, WIDTH - 1, count).astype(np.float32)
    v = rng.uniform(0, HEIGHT - 1, count).astype(np.float32)
    z = sample(depth, u, v) * np.exp(noise * rng.normal(size=count)).astype(np.float32)
    return u, v, z, (noise * z + 1e-4).astype(np.float32)


def test_the_covariance_of_the_fit_is_propagated_to_metres():
    rng = np.random.default_rng(0)
    covariance = np.array([[4e-4, -1e-4], [-1e-4, 4e-5]])
    relative = (floor() - SHIFT) / SCALE
    depth = 1 / floor()
    sigma = depth_sigma(depth, relative, estimate(covariance, model_error=0.0))
    s, t = rng.multivariate_normal((SCALE, SHIFT), covariance, 2000).T
    for row in (100, 170, 230):
        sampled = 1 / (s * relative[row, 0] + t)
        assert sigma[row, 0] == pytest.approx(sampled.std(), rel=0.15)


def test_sigma_is_unknown_where_the_depth_is_and_infinite_beyond_range():
    relative = (floor() - SHIFT) / SCALE
    relative[5:9, 5:9] = np.nan
    depth = depth_from_inverse(relative, SCALE, SHIFT, 0.1, 15.0)
    sigma = depth_sigma(depth, relative, estimate(np.eye(2) * 1e-6))
    assert sigma.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(sigma), np.isnan(depth))
    np.testing.assert_array_equal(np.isposinf(sigma), np.isposinf(depth))
    finite = np.isfinite(depth)
    assert finite.any()
    assert np.isposinf(depth).any()
    assert (sigma[finite] > 0).all()


def test_no_scale_no_sigma():
    unknown = dataclasses.replace(
        estimate(np.full((2, 2), np.nan)), state=ScaleState.RELATIVE, scale=math.nan, shift=math.nan
    )
    depth = np.full((HEIGHT, WIDTH), np.nan, np.float32)
    assert np.isnan(depth_sigma(depth, floor(), unknown)).all()


def test_without_anchors_the_last_fit_says_how_well_the_network_does():
    relative, depth = (floor() - SHIFT) / SCALE, 1 / floor()
    sigma = depth_sigma(depth, relative, estimate(model_error=0.07))
    np.testing.assert_allclose(sigma[20:-20] / depth[20:-20], 0.07, rtol=0.02)


def test_a_steep_plane_is_no_edge_but_an_edge_is():
    inverse = floor()
    inverse[60:120, 100:200] = 2.0
    sigma = (
        depth_sigma(1 / inverse, (inverse - SHIFT) / SCALE, estimate(model_error=0.05)) * inverse
    )
    np.testing.assert_allclose(sigma[20:40], 0.05, rtol=0.03)
    assert sigma[90, 97] > 0.15
    assert sigma[90, 150] == pytest.approx(0.05, rel=0.03)


def test_the_error_is_found_where_it_is():
    rng = np.random.default_rng(1)
    inverse = floor()
    wrong = inverse.copy()
    wrong[:, 160:] *= 1.3
    relative = (wrong - SHIFT) / SCALE
    u, v, z, noise = anchors(rng, 1 / inverse, 300)

    def relative_sigma(refined):
        at = sample(wrong, u, v)
        field = local_error(u, v, z, noise, at, (WIDTH, HEIGHT), refined=refined)
        return depth_sigma(1 / wrong, relative, estimate(), field) * wrong

    sigma = relative_sigma(refined=False)
    assert np.median(sigma[:, :120]) < 0.03
    assert np.median(sigma[:, 200:]) == pytest.approx(math.log(1.3), rel=0.15)
    # A refinement knows about it.
    assert np.median(relative_sigma(refined=True)[:, 200:]) < 0.05


@pytest.mark.parametrize('count', [200, 1000, 5000])
@pytest.mark.parametrize('noise', [0.0, 0.03])
@pytest.mark.parametrize('wrong', [0.0, 0.3])
def test_two_thirds_of_the_errors_are_within_one_sigma(count, noise, wrong):
    shares = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        truth = 1 / floor()
        error = smooth_noise(rng, 0.08, 8) + smooth_noise(rng, 0.05, 2)
        inverse = (floor() * np.exp(error)).astype(np.float32)
        u, v, z, sigma = anchors(rng, truth, count, noise)
        bad = rng.random(count) < wrong
        z[bad] = rng.choice(truth.ravel(), int(bad.sum()))
        size = (WIDTH, HEIGHT)
        field = local_error(u, v, z, sigma, sample(inverse, u, v), size, refined=False)
        depth = 1 / inverse
        scale = estimate(np.eye(2) * 1e-8, inliers=count)
        one_sigma = depth_sigma(depth, (inverse - SHIFT) / SCALE, scale, field)
        shares.append(np.mean(np.abs(depth - truth) < one_sigma))
    assert 0.6 < np.mean(shares) < (0.9 if wrong else 0.8)


def test_far_from_all_anchors_a_refinement_errs_more():
    rng = np.random.default_rng(2)
    inverse = (floor() * np.exp(smooth_noise(rng, 0.1, 10))).astype(np.float32)
    u, v, z, sigma = anchors(rng, 1 / floor(), 400)
    left = u < 100
    u, v, z, sigma = u[left], v[left], z[left], sigma[left]
    field = local_error(u, v, z, sigma, sample(inverse, u, v), (WIDTH, HEIGHT), refined=True)
    near, far = (np.median(f) for f in (field[:, :4], field[:, 10:]))
    assert far > 1.3 * near


@pytest.mark.parametrize('refined', [False, True])
@pytest.mark.parametrize('count', [0, 1, 2, 13])
def test_few_and_senseless_anchors(count, refined):
    rng = np.random.default_rng(3)
    u, v, z, sigma = anchors(rng, 1 / floor(), count)
    inverse = sample(floor(), u, v)
    inverse[::2] = np.nan
    field = local_error(u, v, z, sigma, inverse, (WIDTH, HEIGHT), refined=refined)
    if count < 4:
        assert field is None
    else:
        assert (field > 0).all()
        assert np.isfinite(field).all()
