"""Metres from anchors that agree among themselves, where the network does not explain them."""

import numpy as np
import pytest

from briges_ros.alignment import AffineFit, FitFailure, fit_inverse_depth, refine, sample
from briges_ros.alignment.neighbours import fit_by_neighbours

H, W = 120, 160


def desk():
    """Depth of a desk with things on it, and a network that sees a relief that is not there."""
    v, u = np.mgrid[0:H, 0:W].astype(np.float32)
    depth = 0.8 + 0.3 * np.sin(u / 40) + 0.004 * v
    relative = 1 + 0.5 * np.cos(u / 11) * np.sin(v / 17)
    return depth, relative.astype(np.float32)


def anchors(depth, count, seed=0):
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(depth.size)[:count]
    v, u = np.divmod(chosen, W)
    z = depth[v, u] * (1 + 0.01 * rng.normal(size=count))
    return u.astype(np.float32), v.astype(np.float32), z.astype(np.float32)


def by_neighbours(relative, u, v, z):
    return fit_by_neighbours(sample(relative, u, v), u, v, z, 0.01 * z, W)


@pytest.mark.parametrize('wrong', [0.0, 0.25])
def test_a_scene_that_the_network_does_not_explain(wrong):
    depth, relative = desk()
    u, v, z = anchors(depth, 400)
    rng = np.random.default_rng(1)
    dirty = rng.random(400) < wrong
    z[dirty] *= np.exp(rng.uniform(-1, 1, int(dirty.sum()))).astype(np.float32)
    assert isinstance(fit_inverse_depth(sample(relative, u, v), z, 0.01 * z), FitFailure)
    fit = by_neighbours(relative, u, v, z)
    assert isinstance(fit, AffineFit), fit
    assert 'neighbours' in fit.note and fit.quality < 0.5
    assert fit.inliers + fit.outliers == 400
    assert fit.inliers > 0.9 * (1 - wrong) * 400
    low, high = fit.relative_range
    said = (relative >= low) & (relative <= high)
    assert said.mean() > 0.9
    inverse = refine(
        relative, fit.scale, fit.shift, fit.model_error, u, v, z, 0.01 * z
    ).inverse_depth
    assert np.median(np.abs(1 / inverse / depth - 1)[said]) < 0.05


def test_anchors_that_do_not_agree_give_nothing():
    depth, relative = desk()
    u, v, z = anchors(depth, 400)
    shuffled = np.random.default_rng(1).permutation(z)
    assert isinstance(by_neighbours(relative, u, v, shuffled), FitFailure)


def test_one_depth_for_many_is_no_scene():
    depth, relative = desk()
    u, v, z = anchors(depth, 400)
    z[u < 0.4 * W] = 1.2
    failure = by_neighbours(relative, u, v, z)
    assert isinstance(failure, FitFailure) and 'one depth' in failure.reason


def test_few_anchors_give_nothing():
    depth, relative = desk()
    failure = by_neighbours(relative, *anchors(depth, 40))
    assert isinstance(failure, FitFailure) and 'too few' in failure.reason


def test_two_depths_far_apart_give_nothing():
    depth, relative = desk()
    u, v, z = anchors(depth, 400)
    z[np.hypot(u - 40, v - 60) < 50] *= 5
    assert isinstance(by_neighbours(relative, u, v, z), FitFailure)


def test_unknown_relative_depth_is_left_out():
    depth, relative = desk()
    relative[:, :20] = np.nan
    u, v, z = anchors(depth, 400)
    fit = by_neighbours(relative, u, v, z)
    assert isinstance(fit, AffineFit)
    assert not fit.inlier_mask[u < 19].any()
    same = by_neighbours(np.full_like(relative, 0.5), u, v, z)
    assert isinstance(same, FitFailure) and 'same' in same.reason
