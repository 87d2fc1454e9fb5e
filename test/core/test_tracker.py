"""The scale over time."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from briges_ros.alignment import AffineFit, FitFailure, ScaleState, ScaleTracker

METRIC, HELD = ScaleState.METRIC, ScaleState.HELD
PRIOR, RELATIVE = ScaleState.PRIOR, ScaleState.RELATIVE


def fit(scale=0.3, shift=0.02):
    covariance = np.array([[4e-6, -1e-7], [-1e-7, 1e-8]])
    return AffineFit(scale, shift, covariance, 80, 20, 0.05, np.arange(100) < 80)


def test_a_fit_is_metric():
    estimate = ScaleTracker().update(fit(), 10.0)
    assert estimate.state is METRIC
    assert (estimate.scale, estimate.shift, estimate.age) == (0.3, 0.02, 0.0)
    assert (estimate.inliers, estimate.outliers, estimate.residual) == (80, 20, 0.05)
    np.testing.assert_array_equal(estimate.covariance, fit().covariance)
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
    assert np.isnan(first.covariance).all()
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
    tracker.update(fit(), 0.0)
    before = fit().covariance
    for age in sorted(ages):
        covariance = tracker.update(None, age).covariance
        np.testing.assert_array_equal(covariance, covariance.T)
        assert np.linalg.eigvalsh(covariance).min() >= 0
        assert (np.linalg.eigvalsh(covariance - before) >= -1e-12).all()
        before = covariance
    # Relative uncertainty of the depth: 5 % after a second, 11 % after five.
    if sorted(ages)[-1] > 0:
        age = sorted(ages)[-1]
        p = 0.5
        inverse = 0.3 * p + 0.02
        row = np.array([p, 1.0])
        drift = row @ (before - fit().covariance) @ row
        assert math.sqrt(drift) / inverse == pytest.approx(0.05 * math.sqrt(age), rel=1e-3)


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
