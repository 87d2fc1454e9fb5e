"""The scale over time."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from briges_ros.alignment import AffineFit, FitFailure, ScaleState, ScaleTracker
from briges_ros.alignment.tracker import ScalePrior

METRIC, HELD = ScaleState.METRIC, ScaleState.HELD
PRIOR, RELATIVE = ScaleState.PRIOR, ScaleState.RELATIVE


def fit(
    scale=0.3,
    shift=0.02,
    quality=1.0,
    relative_range=(-math.inf, math.inf),
    sigma=1.0,
    relief=0.003,
    scale_only=False,
):
    """A fit to 80 of 100 anchors that knows the depth best, to 0.3 %, at a relative 0.5."""
    level, relief = 0.0005 * sigma, relief * sigma
    back = np.array([[1.0, 0.0], [-0.5, 1.0]])
    covariance = back @ np.diag([relief**2, level**2]) @ back.T
    inliers = np.arange(100) < 80
    return AffineFit(
        scale,
        shift,
        covariance,
        80,
        20,
        0.05,
        inliers,
        relative_range,
        model_error=0.07,
        quality=quality,
        scale_only=scale_only,
    )


def inverse_sigma(covariance, p):
    row = np.array([p, 1.0])
    return math.sqrt(row @ covariance @ row)


def test_a_fit_is_metric():
    estimate = ScaleTracker().update(fit(), 10.0)
    assert estimate.state is METRIC
    assert (estimate.scale, estimate.shift, estimate.age) == (0.3, 0.02, 0.0)
    assert (estimate.inliers, estimate.outliers, estimate.residual) == (80, 20, 0.05)
    assert estimate.model_error == 0.07
    assert estimate.reason == 'fitted to 80 of 100 anchors'


def test_a_missing_fit_is_held_and_then_forgotten():
    tracker = ScaleTracker(hold_duration=5.0)
    tracker.update(fit(), 10.0)
    held = tracker.update(None, 12.5, 'no anchors came')
    assert held.state is HELD
    assert (held.scale, held.shift, held.age) == (0.3, 0.02, 2.5)
    assert held.reason == 'held from 2.5 s ago: no anchors came'
    assert tracker.update(None, 15.0).state is HELD
    lost = tracker.update(None, 15.1)
    assert lost.state is RELATIVE
    assert np.isnan([lost.scale, lost.shift, lost.residual]).all()
    assert np.isnan(lost.covariance).all()
    assert (lost.inliers, lost.outliers) == (0, 0)
    assert lost.age == pytest.approx(5.1)
    assert '5.1 s old' in lost.reason
    assert tracker.update(fit(0.4), 16.0).state is METRIC


def test_nothing_known_is_relative():
    estimate = ScaleTracker().update(None, 1.0)
    assert estimate.state is RELATIVE
    assert estimate.age == math.inf
    assert estimate.reason == 'no anchors'


def test_a_failure_brings_its_reason():
    estimate = ScaleTracker().update(FitFailure('3 usable anchors'), 1.0)
    assert estimate.state is RELATIVE
    assert estimate.reason == '3 usable anchors'


def test_a_prior_steps_in_after_the_hold():
    tracker = ScaleTracker(hold_duration=1.0, prior=(0.5, 0.01))
    first = tracker.update(None, 0.0)
    assert first.state is PRIOR
    assert (first.scale, first.shift, first.age) == (0.5, 0.01, math.inf)
    # Right within 30 %, near and far.
    for p in (0.0, 1.0, 30.0):
        assert inverse_sigma(first.covariance, p) == pytest.approx(0.3 * (0.5 * p + 0.01))
    tracker.update(fit(), 1.0)
    assert tracker.update(None, 1.5).state is HELD
    assert tracker.update(None, 3.0).state is PRIOR


def test_time_that_goes_back_forgets_the_held_fit():
    tracker = ScaleTracker()
    tracker.update(fit(), 100.0)
    assert tracker.update(None, 99.0).state is RELATIVE
    assert tracker.update(None, 100.5).state is RELATIVE  # for good


def test_time_that_goes_back_is_noticed_between_missing_fits_too():
    tracker = ScaleTracker()
    tracker.update(fit(), 100.0)
    assert tracker.update(None, 103.0).state is HELD
    assert tracker.update(None, 101.0).state is RELATIVE


def test_a_fit_after_time_went_back_is_held_as_any():
    tracker = ScaleTracker()
    tracker.update(fit(), 100.0)
    tracker.update(fit(0.4), 1.0)
    assert tracker.update(None, 2.0).scale == 0.4


def test_a_picture_on_its_own_neither_uses_nor_leaves_a_held_fit():
    tracker = ScaleTracker()
    tracker.update(fit(), 10.0)
    assert tracker.update(None, None).state is RELATIVE
    assert tracker.update(fit(0.9), None).state is METRIC
    held = tracker.update(None, 11.0)
    assert held.state is HELD
    assert held.scale == 0.3


def test_reset_forgets():
    tracker = ScaleTracker()
    tracker.update(fit(), 10.0)
    tracker.reset()
    assert tracker.update(None, 10.1).state is RELATIVE
    assert tracker.update(None, 1.0).state is RELATIVE


def test_no_hold_at_all():
    tracker = ScaleTracker(hold_duration=0.0)
    tracker.update(fit(), 10.0)
    assert tracker.update(None, 10.1).state is RELATIVE


@given(ages=st.lists(st.floats(0, 5), min_size=2, max_size=20))
def test_covariance_grows_while_held(ages):
    tracker = ScaleTracker(hold_duration=5.0)
    before = start = tracker.update(fit(), 0.0).covariance
    for age in sorted(ages):
        covariance = tracker.update(None, age).covariance
        np.testing.assert_allclose(covariance, covariance.T, rtol=1e-12)
        assert np.linalg.eigvalsh(covariance).min() >= -1e-12
        assert np.linalg.eigvalsh(covariance - before).min() >= -1e-12
        before = covariance
    # Where the anchors know it best, the depth wanders by 5 % in a second, by 11 % in five.
    drift = inverse_sigma(before - start, 0.5) / (0.3 * 0.5 + 0.02)
    assert drift == pytest.approx(0.05 * math.sqrt(max(ages)), rel=1e-3, abs=1e-6)


def test_the_fit_of_many_anchors_is_no_surer_than_the_network_allows():
    # 80 inliers, of which the errors of the network leave 40 independent.
    covariance = ScaleTracker().update(fit(), None).covariance
    np.testing.assert_allclose(covariance, 2 * fit().covariance)


def test_noise_of_the_fits_is_filtered():
    rng = np.random.default_rng(0)
    tracker = ScaleTracker()
    noise = np.linalg.cholesky(2 * fit(sigma=20).covariance)
    fits, tracked = [], []
    for k in range(200):
        scale, shift = np.array([0.3, 0.02]) + noise @ rng.normal(size=2)
        measured = fit(scale, shift, sigma=20)
        estimate = tracker.update(measured, 0.1 * k)
        fits.append(measured.scale * 0.5 + measured.shift)
        tracked.append(estimate.scale * 0.5 + estimate.shift)
    fits_sigma = math.sqrt(2) * inverse_sigma(measured.covariance, 0.5)
    assert inverse_sigma(estimate.covariance, 0.5) < 0.8 * fits_sigma
    assert np.std(tracked[20:]) < 0.7 * np.std(fits[20:])


@pytest.mark.parametrize('quality', [1.0, 0.3])
@pytest.mark.parametrize('factor', [0.3, 0.8, 0.95, 1.05, 1.1, 1.3, 3.0])
def test_a_step_in_scale_is_followed_within_two_frames(factor, quality):
    tracker = ScaleTracker()
    for k in range(30):
        tracker.update(fit(), 0.1 * k)
    for k in (30, 31):
        after = tracker.update(fit(0.3 * factor, 0.02 * factor, quality), 0.1 * k)
    depth_ratio = (after.scale * 0.5 + after.shift) / (factor * (0.3 * 0.5 + 0.02))
    assert abs(depth_ratio - 1) < 0.1 * abs(factor - 1)
    assert after.state is METRIC


def test_one_bad_fit_is_not_followed():
    tracker = ScaleTracker()
    for k in range(10):
        tracker.update(fit(), 0.1 * k)
    bad = tracker.update(fit(0.6, 0.1, quality=0.3), 1.0)
    assert bad.state is HELD
    assert (bad.scale, bad.shift) == pytest.approx((0.3, 0.02))
    assert bad.changed
    assert 'contradicts' in bad.reason
    assert bad.age == pytest.approx(0.1)
    good = tracker.update(fit(), 1.1)
    assert good.state is METRIC
    assert good.scale == pytest.approx(0.3)


def test_a_good_fit_to_a_new_scene_wins_at_once():
    tracker = ScaleTracker()
    tracker.update(fit(), 0.0)
    cut = tracker.update(fit(0.6, 0.1), 0.1)
    assert cut.state is METRIC
    assert (cut.scale, cut.shift) == (0.6, 0.1)
    assert 'started anew' in cut.reason
    assert not cut.changed


def test_poor_fits_that_contradict_each_other_never_become_metres():
    tracker = ScaleTracker(prior=(0.5, 0.01))
    for k, scale in enumerate([0.3, 0.6, 0.2, 0.9, 0.3, 1.5]):
        estimate = tracker.update(fit(scale, quality=0.3), 0.1 * k)
        assert estimate.state is PRIOR
        assert 'poor fit (quality 0.30)' in estimate.reason


def test_after_a_long_silence_one_poor_fit_is_not_enough():
    tracker = ScaleTracker(hold_duration=1.0)
    tracker.update(fit(), 0.0)
    assert tracker.update(fit(quality=0.3), 10.0).state is RELATIVE
    assert tracker.update(fit(quality=0.3), 10.1).state is METRIC


def test_borderline_fits_do_not_flap():
    # Poor fits between failures: they keep the track alive, and the state is one and the same.
    tracker = ScaleTracker()
    tracker.update(fit(), 0.0)
    states = []
    for k in range(1, 80):
        measured = fit(quality=0.3) if k % 2 else FitFailure('too few agree')
        estimate = tracker.update(measured, 0.1 * k)
        states.append(estimate.state)
        assert estimate.age <= 0.1 + 1e-9
    assert set(states[1:]) == {HELD}
    # Poor ones in a row, of one opinion, are good enough.
    tracker.update(fit(quality=0.3), 8.1)
    assert tracker.update(fit(quality=0.3), 8.2).state is METRIC


def test_a_slow_sensor_needs_no_anchors_in_every_frame():
    tracker = ScaleTracker()
    tracker.update(fit(quality=0.3), 0.0)
    tracker.update(None, 0.1)
    assert tracker.update(fit(quality=0.3), 0.2).state is METRIC


def test_every_transition_is_told_once():
    tracker = ScaleTracker(hold_duration=0.15)
    fits = [None, None, fit(), fit(), None, None, None, fit()]
    changes = [tracker.update(f, 0.1 * k).changed for k, f in enumerate(fits)]
    assert changes == [True, False, True, False, True, True, False, True]
    assert not tracker.update(None, None).changed


def test_flat_fits_keep_the_relief_of_earlier_ones():
    flat = fit(0.2, 0.07, relative_range=(0.4, 0.6), relief=0.1)
    alone = ScaleTracker().update(flat, 0.0)
    assert alone.relative_range == (0.4, 0.6)
    tracker = ScaleTracker(hold_duration=1.0)
    tracker.update(fit(), 0.0)
    tracked = tracker.update(flat, 0.1)
    assert tracked.relative_range == (-math.inf, math.inf)
    assert tracked.scale == pytest.approx(0.3, rel=0.1)
    for k in range(2, 13):
        tracked = tracker.update(flat, 0.1 * k)
    assert tracked.relative_range == (0.4, 0.6)


def test_a_fit_that_borrowed_our_relief_does_not_confirm_it():
    tracker = ScaleTracker()
    # Known badly, so that two measurements could sharpen it.
    before = tracker.update(fit(relief=0.03), 0.0).covariance
    after = tracker.update(fit(relief=0.03, scale_only=True), 1e-6).covariance
    assert inverse_sigma(after, 0.5) < 0.8 * inverse_sigma(before, 0.5)
    np.testing.assert_allclose(after[0, 0], before[0, 0], rtol=0.05)


def test_what_is_expected_is_the_track():
    tracker = ScaleTracker(hold_duration=1.0)
    assert tracker.expected(0.0) is None
    tracker.update(fit(0.2, 0.07, relative_range=(0.4, 0.6), relief=0.1), 0.0)
    assert tracker.expected(0.1) is None  # nobody knows the relief
    tracker.update(fit(), 0.2)
    tracker.update(fit(), 0.3)
    expected = tracker.expected(0.5)
    held = tracker.update(None, 0.5)
    assert (expected.scale, expected.shift) == (held.scale, held.shift)
    np.testing.assert_allclose(expected.covariance, held.covariance)
    assert expected.model_error == 0.07
    assert tracker.expected(None) is None
    assert tracker.expected(0.4) is None  # another time line
    assert tracker.expected(1.4) is None  # too old
    for k in range(10):  # of which each has another relief
        tracker.update(fit(0.3 + 0.1 * (k % 2), 0.02 - 0.05 * (k % 2)), 0.5 + 0.1 * k)
    assert tracker.expected(1.5) is None


def test_a_track_that_wanders_is_held_as_long_but_says_what_it_is_worth():
    steady, wild = ScaleTracker(hold_duration=5.0), ScaleTracker(hold_duration=5.0)
    for k in range(30):
        factor = 1.3 ** (k % 2)
        steady.update(fit(), 0.1 * k)
        wild.update(fit(0.3 * factor, 0.02 * factor), 0.1 * k)
    for tracker, least, most in ((steady, 0.0, 0.3), (wild, 0.5, np.inf)):
        held = tracker.update(None, 7.5)
        assert held.state is HELD
        assert least < np.sqrt(held.covariance[0, 0]) / held.scale < most
        assert tracker.update(None, 8.0).state is RELATIVE


def test_a_prior_of_the_frame_comes_before_that_of_the_user():
    own = ScalePrior(0.7, 0.03, np.eye(2) * 1e-4, 'the ground, 0.5 m below')
    estimate = ScaleTracker(prior=(0.5, 0.01)).update(None, 0.0, 'no anchors', own)
    assert estimate.state is PRIOR
    assert (estimate.scale, estimate.shift) == (0.7, 0.03)
    assert estimate.reason == 'no anchors; the ground, 0.5 m below'


@given(
    events=st.lists(
        st.tuples(st.booleans(), st.floats(-1, 8), st.booleans()), min_size=1, max_size=40
    ),
    prior=st.sampled_from([None, (0.5, 0.0)]),
)
def test_metres_never_come_from_an_old_or_foreign_fit(events, prior):
    tracker = ScaleTracker(hold_duration=5.0, prior=prior)
    now, last = 0.0, None
    for fits, step, alone in events:
        if alone:
            state = tracker.update(fit() if fits else None, None).state
            assert state is (METRIC if fits else PRIOR if prior else RELATIVE)
            continue
        if now + step < now:
            last = None
        now += step
        estimate = tracker.update(fit() if fits else None, now)
        last = now if fits else last
        if fits:
            assert estimate.state is METRIC
        elif last is not None and now - last <= 5.0:
            assert estimate.state is HELD
            assert estimate.age == now - last
        else:
            assert estimate.state is (PRIOR if prior else RELATIVE)


@pytest.mark.parametrize('prior', [(0.0, 0.1), (-1.0, 0.1), (math.nan, 0.0), (1.0, math.inf)])
def test_senseless_priors_are_refused(prior):
    with pytest.raises(ValueError, match='prior'):
        ScaleTracker(prior=prior)


@pytest.mark.parametrize('duration', [-1.0, math.nan])
def test_senseless_durations_are_refused(duration):
    with pytest.raises(ValueError, match='hold_duration'):
        ScaleTracker(hold_duration=duration)


def test_states_are_their_names():
    assert [state.value for state in ScaleState] == ['METRIC', 'HELD', 'PRIOR', 'RELATIVE']
    assert ScaleState('HELD') is HELD
