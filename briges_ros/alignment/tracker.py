"""The scale over time: measured, held for a while, given beforehand, or unknown."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from briges_ros.alignment.fit import AffineFit, FitFailure

# How fast a held scale goes stale. The scale of a depth network wanders from frame to frame as the
# view changes; taken as a random walk of the depth by 5 % (standard deviation) in the first second,
# and sqrt(5) times that in five.
_DRIFT_PER_SQRT_SECOND = 0.05


class ScaleState(str, Enum):
    """Where the scale comes from, best first."""

    METRIC = 'METRIC'
    """Fitted to anchors of this frame."""
    HELD = 'HELD'
    """The last fit, not older than the hold duration."""
    PRIOR = 'PRIOR'
    """A scale given beforehand, by the user or a metric network."""
    RELATIVE = 'RELATIVE'
    """Unknown: there are no metres."""


@dataclass(frozen=True, eq=False)
class ScaleEstimate:
    """The scale of one frame: 1/z = scale * relative + shift.

    Attributes:
        state: Where the scale comes from.
        scale: 1/m per unit of relative inverse depth; NaN if RELATIVE.
        shift: 1/m; NaN if RELATIVE.
        covariance: (2, 2) float64 of (scale, shift); NaN if RELATIVE or PRIOR. Grows while HELD.
        inliers: Anchors that agree with the fit in use (METRIC, HELD), else 0.
        outliers: Anchors that do not, else 0.
        residual: Median relative depth error of the inliers of the fit in use, else NaN.
        age: Seconds since the last fit: 0 if METRIC, inf if there never was one.
        reason: Why this state, a short sentence for people.
        relative_range: Relative inverse depth, least and greatest, for which it holds; beyond,
            the depth is unknown. See `AffineFit.relative_range`.
    """

    state: ScaleState
    scale: float
    shift: float
    covariance: npt.NDArray[np.float64]
    inliers: int
    outliers: int
    residual: float
    age: float
    reason: str
    relative_range: tuple[float, float] = (-math.inf, math.inf)


class ScaleTracker:
    """Turns a fit, or its absence, for each frame into the scale to use.

    Args:
        hold_duration: Seconds for which the last fit may stand in for a missing one.
        prior: (scale, shift) to fall back on, or None if nothing is known beforehand.

    Raises:
        ValueError: A negative duration, or a prior whose scale is not positive.
    """

    def __init__(
        self, hold_duration: float = 5.0, prior: tuple[float, float] | None = None
    ) -> None:
        if not hold_duration >= 0:
            raise ValueError(f'hold_duration must be 0 s or more, got {hold_duration}')
        if prior is not None and not (
            math.isfinite(prior[0]) and prior[0] > 0 and math.isfinite(prior[1])
        ):
            raise ValueError(f'prior must be (scale > 0, shift), both finite, got {prior}')
        self._hold_duration = hold_duration
        self._prior = prior
        self._held: tuple[AffineFit, float] | None = None
        self._last_stamp = -math.inf

    def reset(self) -> None:
        """Forget the held fit."""
        self._held = None
        self._last_stamp = -math.inf

    def update(
        self, fit: AffineFit | FitFailure | None, stamp: float | None, why_not: str = ''
    ) -> ScaleEstimate:
        """Take the fit of a frame and say which scale to use for it.

        Args:
            fit: The fit to the frame's anchors; None or a failure if there is none.
            stamp: Time of the frame in seconds. None for a still picture on its own: it neither
                uses nor leaves a held fit. A stamp before the last one (a bag that starts again)
                means another time line, and the held fit is forgotten.
            why_not: Why there is no fit, for the reason; a failure brings its own.

        Returns:
            The scale of this frame.
        """
        if stamp is not None:
            if stamp < self._last_stamp:
                self._held = None
            self._last_stamp = stamp
        if isinstance(fit, AffineFit):
            if stamp is not None:
                self._held = (fit, stamp)
            reason = f'fitted to {fit.inliers} of {fit.inliers + fit.outliers} anchors'
            if math.isfinite(fit.relative_range[0]):
                reason += ', all at about one depth'
            return _from_fit(ScaleState.METRIC, fit, 0.0, reason)
        if isinstance(fit, FitFailure):
            why_not = fit.reason
        why_not = why_not or 'no anchors'
        age = math.inf
        if self._held is not None and stamp is not None:
            held, since = self._held
            age = stamp - since
            if age <= self._hold_duration:
                reason = f'held from {age:.1f} s ago: {why_not}'
                return _from_fit(ScaleState.HELD, held, age, reason)
            why_not = f'{why_not}; the last fit is {age:.1f} s old'
        state, (scale, shift) = ScaleState.RELATIVE, (math.nan, math.nan)
        if self._prior is not None:
            state, (scale, shift) = ScaleState.PRIOR, self._prior
        unknown = np.full((2, 2), np.nan)
        return ScaleEstimate(state, scale, shift, unknown, 0, 0, math.nan, age, why_not)


def _from_fit(state: ScaleState, fit: AffineFit, age: float, reason: str) -> ScaleEstimate:
    # A drift of the depth by a factor moves scale and shift together.
    direction = _DRIFT_PER_SQRT_SECOND * np.array([fit.scale, fit.shift])
    covariance = fit.covariance + age * np.outer(direction, direction)
    return ScaleEstimate(
        state,
        fit.scale,
        fit.shift,
        covariance,
        fit.inliers,
        fit.outliers,
        fit.residual,
        age,
        reason,
        fit.relative_range,
    )
