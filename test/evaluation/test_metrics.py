"""Metrics against values worked out by hand, and what must not change them."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from briges_ros.evaluation.metrics import affine_invariant_depth, depth_metrics

few = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**32 - 1)
factors = st.floats(0.01, 100.0)


def pair(seed, count=200):
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0.5, 9.0, count)
    return truth * np.exp(rng.normal(0.0, 0.3, count)), truth


def test_by_hand():
    got = depth_metrics(np.array([1.0, 2.0, 4.0]), np.array([2.0, 2.0, 2.0]))
    assert got.pixels == 3
    assert got.abs_rel == pytest.approx((0.5 + 0.0 + 1.0) / 3)
    assert got.delta1 == got.delta2 == got.delta3 == pytest.approx(1 / 3)
    assert got.rmse_m == pytest.approx(math.sqrt((1 + 0 + 4) / 3))
    assert got.log10 == pytest.approx(2 * 0.30102999566 / 3)
    # d = -ln 2, 0, ln 2: mean 0, mean square 2/3 (ln 2)^2.
    assert got.silog == pytest.approx(100 * math.sqrt(2 / 3) * math.log(2))


def test_the_thresholds_are_powers_of_1_25_and_do_not_count_themselves():
    truth = np.full(4, 4.0)
    got = depth_metrics(np.array([5.0, 6.25, 7.8125, 4.9]), truth)
    assert (got.delta1, got.delta2, got.delta3) == (0.25, 0.5, 0.75)
    below = depth_metrics(truth, np.array([5.0, 6.25, 7.8125, 4.9]))
    assert (below.delta1, below.delta2, below.delta3) == (0.25, 0.5, 0.75)


def test_only_what_is_known_in_both_counts():
    depth = np.array([1.0, np.nan, np.inf, 3.0, 3.0, 3.0, 2.0])
    truth = np.array([1.0, 1.0, 1.0, np.nan, 0.0, np.inf, 4.0])
    got = depth_metrics(depth, truth)
    assert got.pixels == 2
    assert got.abs_rel == pytest.approx(0.25)
    nothing = depth_metrics(np.array([np.nan]), np.array([1.0]))
    assert nothing.pixels == 0 and math.isnan(nothing.abs_rel) and math.isnan(nothing.silog)


def test_depth_that_is_not_positive_is_wrong_and_still_a_number():
    got = depth_metrics(np.array([0.0, -1.0]), np.array([1.0, 1.0]))
    assert got.delta3 == 0.0 and math.isfinite(got.log10) and math.isfinite(got.silog)


@few
@given(seeds, factors)
def test_scale(seed, factor):
    depth, truth = pair(seed)
    got, scaled = depth_metrics(depth, truth), depth_metrics(factor * depth, truth)
    assert scaled.silog == pytest.approx(got.silog, rel=1e-9)
    both = depth_metrics(factor * depth, factor * truth)
    assert both.abs_rel == pytest.approx(got.abs_rel, rel=1e-9)
    assert both.rmse_m == pytest.approx(factor * got.rmse_m, rel=1e-9)


@few
@given(seeds)
def test_order_and_roles(seed):
    depth, truth = pair(seed)
    got, swapped = depth_metrics(depth, truth), depth_metrics(truth, depth)
    assert got.delta1 <= got.delta2 <= got.delta3
    for name in ('delta1', 'delta2', 'delta3', 'log10', 'silog', 'rmse_m'):
        assert getattr(got, name) == pytest.approx(getattr(swapped, name), rel=1e-9)
    order = np.random.default_rng(seed).permutation(len(depth))
    shuffled = depth_metrics(depth[order], truth[order])
    assert shuffled.abs_rel == pytest.approx(got.abs_rel, rel=1e-12)


@few
@given(seeds, factors, st.floats(-5.0, 5.0))
def test_alignment_undoes_scale_and_shift(seed, factor, shift):
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0.5, 9.0, (12, 16))
    relative = (1.0 / truth - shift) / factor
    np.testing.assert_allclose(affine_invariant_depth(relative, truth, 1e-3, 10.0), truth, 1e-5)
    noisy = 1.0 / truth + rng.normal(0.0, 0.05, truth.shape)
    once = affine_invariant_depth(noisy, truth, 1e-3, 10.0)
    again = affine_invariant_depth((noisy - shift) / factor, truth, 1e-3, 10.0)
    np.testing.assert_allclose(again, once, 1e-4)
