"""Confidence intervals: do they hold the truth as often as they say, and when do they not?"""

import math

import numpy as np
import pytest

from briges_ros.evaluation.bootstrap import mean_interval, paired_difference


def test_the_mean_and_the_normal_interval():
    values = np.random.default_rng(0).normal(5.0, 1.0, 400)
    got = mean_interval(values)
    error = values.std() / math.sqrt(400)
    assert got.mean == values.mean() and got.frames == 400
    assert got.low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert got.high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(1).normal(size=50)
    assert mean_interval(values, 6) == mean_interval(values, 6)
    assert mean_interval(values, 6).low != mean_interval(values, 6, seed=1).low


def test_frames_without_a_value_are_left_out():
    values = np.array([1.0, np.nan, 3.0, np.nan, 2.0, 2.0])
    got = mean_interval(values)
    assert got.mean == 2.0 and got.frames == 4 and 1.0 <= got.low < 2.0 < got.high <= 3.0
    nothing, single = mean_interval(np.array([np.nan])), mean_interval(np.array([4.0, np.nan]))
    assert nothing.frames == 0 and math.isnan(nothing.mean)
    assert single.mean == 4.0 and math.isnan(single.low)


def scenes(rng, count=30, length=6):
    """Frames of one scene are nearly alike."""
    return np.repeat(rng.normal(size=count), length) + 0.2 * rng.normal(size=count * length)


def test_related_frames_need_blocks():
    """Of 95 % intervals about 95 % should hold the true mean, 0."""
    held = {1: 0, 6: 0, 12: 0}
    runs = 60
    for run in range(runs):
        values = scenes(np.random.default_rng(run))
        for block in held:
            interval = mean_interval(values, block)
            held[block] += interval.low <= 0.0 <= interval.high
    assert held[1] < 0.75 * runs
    assert held[6] > 0.8 * runs
    assert held[12] >= held[6] - 3


def test_independent_frames_lose_little_by_blocks():
    values = np.random.default_rng(3).normal(size=180)
    single, blocks = mean_interval(values), mean_interval(values, 6)
    assert 0.7 < (blocks.high - blocks.low) / (single.high - single.low) < 1.3


def test_a_block_longer_than_half_the_frames_is_cut():
    values = np.arange(4.0)
    got = mean_interval(values, 100)
    assert got.low < got.mean < got.high


def test_a_paired_difference_is_sharper_than_the_means():
    rng = np.random.default_rng(4)
    hard = rng.normal(0.1, 0.03, 180)  # some frames are hard for both
    ours, theirs = hard + rng.normal(0, 0.002, 180), hard + 0.002 + rng.normal(0, 0.002, 180)
    got = paired_difference(ours, theirs, 6)
    assert got.high < 0 and got.mean == pytest.approx((ours - theirs).mean())
    means = mean_interval(ours, 6), mean_interval(theirs, 6)
    assert means[0].high > means[1].low  # the means alone would not tell
    nobody = paired_difference(ours, rng.permutation(ours), 6)
    assert nobody.low < 0 < nobody.high
    with pytest.raises(ValueError, match='180'):
        paired_difference(ours, theirs[:10])
