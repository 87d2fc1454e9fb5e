"""Border metrics: against the formula written out, and on edges that are moved and blurred."""

import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from briges_ros.evaluation.borders import (
    RATIOS,
    band_radius,
    border_metrics,
    boundary_score,
    depth_borders,
    label_borders,
    near,
)

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def box(left=40, near_m=2.0, far_m=4.0, shape=(90, 120)):
    """A near box before a far wall."""
    depth = np.full(shape, far_m)
    depth[20:70, left : left + 40] = near_m
    return depth


def written_out(depth, truth):
    """The formula of Depth Pro, pair by pair."""
    height, width = truth.shape
    weighted = np.zeros(3)
    for ratio in RATIOS:
        ours = theirs = both = 0
        for v in range(height):
            for u in range(width):
                for dv, du in ((0, 1), (0, -1), (1, 0), (-1, 0)):
                    a, b = v + dv, u + du
                    if not (0 <= a < height and 0 <= b < width):
                        continue
                    if not np.isfinite([depth[v, u], depth[a, b], truth[v, u], truth[a, b]]).all():
                        continue
                    c = depth[a, b] / depth[v, u] > ratio
                    c_true = truth[a, b] / truth[v, u] > ratio
                    ours, theirs, both = ours + c, theirs + c_true, both + (c and c_true)
        precision, recall = both / max(ours, 1), both / max(theirs, 1)
        f1 = 2 * precision * recall / (precision + recall) if both else 0.0
        weighted += ratio * np.array([precision, recall, f1])
    return weighted / sum(RATIOS)


@few
@given(seeds)
def test_the_published_formula(seed):
    rng = np.random.default_rng(seed)
    truth = rng.choice([1.0, 1.07, 1.12, 1.3, 2.0], (6, 7))
    depth = truth * rng.choice([1.0, 1.0, 1.0, 1.1], truth.shape)
    depth[rng.random(truth.shape) < 0.1] = np.nan
    np.testing.assert_allclose(boundary_score(depth, truth), written_out(depth, truth), atol=1e-12)


@few
@given(seeds, st.floats(0.01, 100.0))
def test_scale_does_not_matter_and_the_roles_swap(seed, factor):
    rng = np.random.default_rng(seed)
    truth, depth = rng.uniform(1, 3, (12, 14)), rng.uniform(1, 3, (12, 14))
    precision, recall, f1 = boundary_score(depth, truth)
    assert boundary_score(factor * depth, truth) == pytest.approx((precision, recall, f1))
    assert boundary_score(truth, depth) == pytest.approx((recall, precision, f1))


def test_perfect_flat_and_reversed():
    truth = box()
    assert boundary_score(truth, truth) == pytest.approx((1.0, 1.0, 1.0))
    assert boundary_score(np.full_like(truth, 3.0), truth) == (0.0, 0.0, 0.0)
    reversed_depth = box(near_m=4.0, far_m=2.0)  # the box is a hole
    assert boundary_score(reversed_depth, truth) == (0.0, 0.0, 0.0)
    assert all(math.isnan(v) for v in boundary_score(truth, np.full_like(truth, 3.0)))


def test_an_edge_that_is_off_counts_only_in_the_wide_measure():
    truth, moved = box(40), box(42)
    narrow = boundary_score(moved, truth)
    wide = boundary_score(moved, truth, distance=10)
    # Of the four sides two moved; their corners too.
    assert narrow[2] < 0.6
    assert wide[2] > 0.8
    assert boundary_score(box(70), truth, distance=10)[2] < 0.6


def test_a_soft_edge_counts_only_in_the_wide_measure():
    truth = box()
    soft = cv2.GaussianBlur(truth, (0, 0), 4.0)
    assert boundary_score(soft, truth)[1] < 0.6
    # It does come to a step, though a smaller one.
    assert boundary_score(soft, truth, distance=10)[1] > 0.9


def test_labels_tell_which_borders_count():
    truth = box()
    truth[:, 100:] = 8.0  # an edge that no label names
    labels = np.zeros(truth.shape, np.uint8)
    labels[20:70, 40:80] = 1
    depth = box()  # does not have that edge
    with_labels, without = border_metrics(depth, truth, labels), border_metrics(depth, truth)
    assert with_labels.f1 == pytest.approx(1.0) and with_labels.abs_rel == 0.0
    assert without.precision == pytest.approx(1.0) and without.recall < 0.8
    assert without.abs_rel > 0.05 and without.pixels > with_labels.pixels


def test_the_band():
    truth = box()
    radius = band_radius(*truth.shape)
    assert radius == 1 and band_radius(357, 480) == 5 and band_radius(375, 1242) == 10
    labels = (truth < 3).astype(np.uint8)
    depth = truth.copy()
    depth[30, 38:42] *= 1.5  # across the left side: the band is 40 - 2 to 40 + 1
    got = border_metrics(depth, truth, labels)
    band = near(label_borders(labels), radius)
    assert got.pixels == band.sum()
    assert got.abs_rel == pytest.approx(0.5 * 4 / band.sum())
    # A change beyond the band does not touch it.
    depth[30, 30] = 100.0
    assert border_metrics(depth, truth, labels).abs_rel == got.abs_rel


def test_borders_lie_on_both_sides():
    expected = np.zeros((90, 120), bool)
    expected[19:71, 39:81] = True
    expected[21:69, 41:79] = False
    for corner in ((19, 39), (19, 80), (70, 39), (70, 80)):
        expected[corner] = False
    np.testing.assert_array_equal(depth_borders(box(), 1.1), expected)
    np.testing.assert_array_equal(label_borders(box().astype(int)), expected)
    assert not depth_borders(box(near_m=3.8), 1.1).any()
    assert not near(np.zeros((5, 5), bool), 2).any()


def test_unknown_pixels_make_no_borders():
    truth = box()
    truth[:, 60] = np.nan
    assert boundary_score(box(), truth) == pytest.approx((1.0, 1.0, 1.0))
    assert not depth_borders(truth, 1.1)[30, 55:66].any()


def test_the_points_of_a_lidar_have_no_borders():
    truth = box()
    truth[np.random.default_rng(0).random(truth.shape) < 0.8] = np.nan
    got = border_metrics(box(), truth)
    assert got.pixels == 0 and math.isnan(got.abs_rel) and math.isnan(got.wide_f1)


def test_steps_of_eight_bits_blur_the_smallest_ratio_only_up_close():
    """What docs/evaluation.md says about depth in steps of 10 m / 255."""

    def quantised(depth):
        return (np.floor(depth * 25.5) + 0.5) / 25.5

    rng = np.random.default_rng(0)
    wall = np.linspace(1.0, 1.1, 120) * np.ones((90, 1)) + rng.normal(0, 1e-3, (90, 120))
    assert not depth_borders(quantised(wall), 1.05).any()
    assert depth_borders(quantised(wall * 0.6), 1.05).any()
    assert not depth_borders(quantised(wall * 0.6), 1.1).any()
