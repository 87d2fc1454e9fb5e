"""The scale over time: measured, held for a while, given beforehand, or unknown.

A Kalman filter on x = (scale, shift) of 1/z = scale * relative + shift (Bar-Shalom, Li and
Kirubarajan, "Estimation with Applications to Tracking and Navigation", 2001, chapters 5 and 11):

    predict   P <- P + Q
    gate      d^2 = v' (P + R)^-1 v, v = x_fit - x: chi-square with 2 degrees of freedom
    update    K = P (P + R)^-1,  x <- x + K v,  P <- (I - K) P (I - K)' + K R K'   (Joseph's form)

Scale and shift belong to one image: a depth network chooses them anew for each. What moves is taken
as two random walks, in units that mean the same for every network and scene. All depth wanders by a
factor, x' = x (1 + a); and the relief about the inverse depth that the anchors know best, at the
relative inverse depth p0 whose s p + t has the least variance, wanders by a factor too,
x' = x + b s (1, -p0):

    Q = dt w (a^2 x x' + b^2 s^2 (1, -p0) (1, -p0)')

The factor w follows the innovations (it averages w d^2 / 2, whose expectation is w in a consistent
filter), since the walk is slow on a road and wild in a hand-held camera that turns.

R is the covariance of the fit, which takes the errors of the anchors as independent, with no more
anchors than the errors of a network have independent patches in an image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
import numpy.typing as npt

from briges_ros.alignment.fit import AffineFit, FitFailure

FloatArray = npt.NDArray[np.float64]

# Standard deviation of the walk of the depth, and of its relief, after one second. Measured from
# frame to frame at 10 Hz on a drive: 1 % and 2 %, so 3 % and 6 % after a second if steps were
# independent; they add up faster.
_LEVEL_PER_SQRT_SECOND = 0.05
_RELIEF_PER_SQRT_SECOND = 0.1
# Bounds to w: in a hand-held camera that turns by 60 degrees a second, the depth of a held scale is
# off by 13 % after 0.17 s, six times the above.
_WANDER_RANGE = (1.0, 100.0)
_WANDER_GAIN = 0.3
# Errors of a network are alike over a part of the image. Fits to one half of an image, in squares,
# differ from those to the other half as if there were 20 to 60 independent anchors in each.
INDEPENDENT_ANCHORS = 40
_GATE = 13.8  # 99.9 % of chi-square with two degrees of freedom
# A fit of this quality is believed on its own; one below, when a second one agrees.
_TRUSTED_QUALITY = 0.4
# A relief that is not known better than this says nothing of the next frame's.
_RELIEF_UNKNOWN = 0.2
# How well a scale that a user gives, or a metric network has, holds for an image: published metric
# networks are off by 10 to 30 % on data that they were not trained on.
_PRIOR_RELATIVE_SIGMA = 0.3


class ScaleState(str, Enum):
    """Where the scale comes from, best first."""

    METRIC = 'METRIC'
    """Fitted to anchors of this frame."""
    HELD = 'HELD'
    """From fits to earlier frames, the last one not older than the hold duration."""
    PRIOR = 'PRIOR'
    """A scale given beforehand: by the user, a metric network, or the height over the ground."""
    RELATIVE = 'RELATIVE'
    """Unknown: there are no metres."""


@dataclass(frozen=True, eq=False)
class ScalePrior:
    """A scale that no anchor has confirmed.

    Attributes:
        scale: 1/m per unit of relative inverse depth, positive.
        shift: 1/m.
        covariance: (2, 2) float64 of (scale, shift).
        reason: Where it comes from, a few words for people.
        relative_range: See `ScaleEstimate`.
    """

    scale: float
    shift: float
    covariance: FloatArray
    reason: str = 'a scale given beforehand'
    relative_range: tuple[float, float] = (-math.inf, math.inf)

    @classmethod
    def fixed(cls, scale: float, shift: float) -> ScalePrior:
        """Take a scale that the user gives or a metric network has: right within 30 %.

        Raises:
            ValueError: The scale is not positive, or a value is not finite.
        """
        if not (math.isfinite(scale) and scale > 0 and math.isfinite(shift)):
            raise ValueError(f'prior must be (scale > 0, shift), both finite, got {(scale, shift)}')
        x = _PRIOR_RELATIVE_SIGMA * np.array([scale, shift])
        return cls(scale, shift, np.outer(x, x))


@dataclass(frozen=True, eq=False)
class ScaleEstimate:
    """The scale of one frame: 1/z = scale * relative + shift.

    Attributes:
        state: Where the scale comes from.
        scale: 1/m per unit of relative inverse depth; NaN if RELATIVE.
        shift: 1/m; NaN if RELATIVE.
        covariance: (2, 2) float64 of (scale, shift); NaN if RELATIVE. Grows while HELD.
        inliers: Anchors that agree with the last fit in use (METRIC, HELD), else 0.
        outliers: Anchors that do not, else 0.
        residual: Median relative depth error of the inliers of the last fit in use, else NaN.
        age: Seconds since the last fit in use: 0 if it is of this frame, inf if there never was
            one.
        reason: Why this state, a short sentence for people.
        relative_range: Relative inverse depth, least and greatest, for which it holds; beyond,
            the depth is unknown. See `AffineFit.relative_range`.
        changed: Whether the state is another one than that of the frame before (always False for a
            still picture on its own).
        model_error: Relative standard deviation of the network about the last fit in use, else NaN.
        quality: Of the last fit in use, 0 to 1, see `AffineFit.quality`; else 0.
    """

    state: ScaleState
    scale: float
    shift: float
    covariance: FloatArray
    inliers: int
    outliers: int
    residual: float
    age: float
    reason: str
    relative_range: tuple[float, float] = (-math.inf, math.inf)
    changed: bool = False
    model_error: float = math.nan
    quality: float = 0.0


@dataclass(frozen=True, eq=False)
class _Track:
    """What is known of (scale, shift) at a time."""

    x: FloatArray
    covariance: FloatArray
    stamp: float
    wander: float
    fit: AffineFit  # the last one in use
    last_fit: float  # its stamp
    last_full: float  # stamp of the last one that told scale from shift; -inf if none did

    @classmethod
    def from_fit(cls, fit: AffineFit, stamp: float, wander: float = 1.0) -> _Track:
        alike = max(1.0, fit.inliers / INDEPENDENT_ANCHORS)
        full = math.isinf(fit.relative_range[0]) and not fit.scale_only
        x = np.array([fit.scale, fit.shift])
        last_full = stamp if full else -math.inf
        track = cls(x, fit.covariance * alike, stamp, wander, fit, stamp, last_full)
        if fit.scale_only:
            # Its relief was ours: it must not count as measured once more.
            relief = x[0] * np.array([1.0, -track.pivot])
            track = replace(track, covariance=track.covariance + np.outer(relief, relief))
        return track

    def predicted(self, stamp: float) -> _Track:
        s, p0 = self.x[0], self.pivot
        level = _LEVEL_PER_SQRT_SECOND * self.x
        relief = _RELIEF_PER_SQRT_SECOND * s * np.array([1.0, -p0])
        walk = np.outer(level, level) + np.outer(relief, relief)
        covariance = self.covariance + (stamp - self.stamp) * self.wander * walk
        return replace(self, covariance=covariance, stamp=stamp)

    @property
    def pivot(self) -> float:
        """Relative inverse depth at which the inverse depth is known best."""
        variance = float(self.covariance[0, 0])
        return -float(self.covariance[0, 1]) / variance if variance > 0 else 0.0

    @property
    def relative_sigma(self) -> float:
        """Standard deviation of the depth, as a part of it, where that is least.

        The minimum of J P J' / (J x)^2 over all J is 1 / (x' P^-1 x) (Cauchy and Schwarz).
        """
        information = float(self.x @ _inverse(self.covariance) @ self.x)
        return 1 / math.sqrt(information) if information > 0 else 0.0

    def distance(self, measured: _Track) -> float:
        """Squared Mahalanobis distance d^2 of another one at the same time."""
        v = measured.x - self.x
        return float(v @ _inverse(self.covariance + measured.covariance) @ v)

    def updated(self, measured: _Track, distance: float) -> _Track:
        """Take in a measurement; the measurement itself, if the sum would not be a scale."""
        P, R = self.covariance, measured.covariance
        K = P @ _inverse(P + R)
        x = self.x + K @ (measured.x - self.x)
        if not x[0] > 0:
            return measured
        rest = np.eye(2) - K
        covariance = rest @ P @ rest.T + K @ R @ K.T
        return replace(
            measured,
            x=x,
            covariance=(covariance + covariance.T) / 2,
            wander=self.wander_after(distance),
            last_full=max(self.last_full, measured.last_full),
        )

    def wander_after(self, distance: float) -> float:
        """Give w after an innovation d^2."""
        seen = self.wander * min(distance, _GATE) / 2  # a scene cut is no walk
        wander = (1 - _WANDER_GAIN) * self.wander + _WANDER_GAIN * seen
        return min(max(wander, _WANDER_RANGE[0]), _WANDER_RANGE[1])


class ScaleTracker:
    """Turns a fit, or its absence, for each frame into the scale to use.

    A fit that agrees with the track is filtered. One that does not is a scene cut or a mistake: if
    its quality is high, or the next one agrees with it, the track starts anew from it; until then
    the track is held. A poor fit alone claims nothing: METRIC is entered by a fit of high quality,
    or by two in a row that agree; it is kept by any that agrees with the track.

    Args:
        hold_duration: Seconds for which the last fit may stand in for a missing one.
        prior: What to fall back on, (scale, shift) or with its covariance; None if nothing is known
            beforehand.

    Raises:
        ValueError: A negative duration, or a prior whose scale is not positive.
    """

    def __init__(
        self, hold_duration: float = 5.0, prior: ScalePrior | tuple[float, float] | None = None
    ) -> None:
        if not hold_duration >= 0:
            raise ValueError(f'hold_duration must be 0 s or more, got {hold_duration}')
        self._hold_duration = hold_duration
        self._prior = ScalePrior.fixed(*prior) if isinstance(prior, tuple) else prior
        self.reset()

    def reset(self) -> None:
        """Forget all fits."""
        self._track: _Track | None = None
        self._candidate: _Track | None = None  # a poor or contradicting fit, until one confirms it
        self._state: ScaleState | None = None
        self._last_stamp = -math.inf

    def expected(self, stamp: float | None) -> AffineFit | None:
        """Give what is known of a frame's fit beforehand: `previous` of `fit_inverse_depth`.

        Args:
            stamp: Time of the frame in seconds; None for a still picture on its own.

        Returns:
            The track as predicted, if fits of lately told scale from shift, and frames are so much
            alike that they still do; else None.
        """
        if stamp is None or stamp < self._last_stamp:
            return None
        track = self._alive(stamp)
        if track is None or stamp - track.last_full > self._hold_duration:
            return None
        scale, shift = (float(value) for value in track.x)
        if math.sqrt(track.covariance[0, 0]) > _RELIEF_UNKNOWN * scale:
            return None
        return replace(
            track.fit,
            scale=scale,
            shift=shift,
            covariance=track.covariance,
            relative_range=(-math.inf, math.inf),
        )

    def update(
        self,
        fit: AffineFit | FitFailure | None,
        stamp: float | None,
        why_not: str = '',
        prior: ScalePrior | None = None,
        carried: AffineFit | FitFailure | None = None,
    ) -> ScaleEstimate:
        """Take the fit of a frame and say which scale to use for it.

        Args:
            fit: The fit to the frame's anchors; None or a failure if there is none.
            stamp: Time of the frame in seconds. None for a still picture on its own: it neither
                uses nor leaves a track, and its fit is taken as it is. A stamp before the last one
                (a bag that starts again) means another time line, and the track is forgotten.
            why_not: Why there is no fit, for the reason; a failure brings its own.
            prior: What this frame itself says of its scale without anchors (the height over its
                ground), before the prior of the tracker.
            carried: A fit to the depth of the last frame (`CarriedDepth`). It is what the filter
                predicts then, and keeps up with a network that changes its mind. Without fresh
                anchors the state is HELD none the less.

        Returns:
            The scale of this frame.
        """
        prior = prior or self._prior
        if isinstance(fit, FitFailure):
            why_not = fit.reason
        why_not = why_not or 'no anchors'
        if stamp is None:
            if isinstance(fit, AffineFit):
                alone = _Track.from_fit(fit, 0.0)
                return _estimate(ScaleState.METRIC, alone, fit.relative_range, 0.0, _fitted(fit))
            return _fallback(prior, math.inf, why_not)

        if stamp < self._last_stamp:
            self.reset()
        self._last_stamp = stamp
        if isinstance(carried, AffineFit) and math.isinf(carried.relative_range[0]):
            self._carry(carried, stamp)
        if isinstance(fit, AffineFit):
            estimate = self._measured(fit, stamp, prior)
        else:
            if isinstance(fit, FitFailure):
                self._candidate = None
            estimate = self._coasted(stamp, why_not, prior)
        changed = self._state is not estimate.state
        self._state = estimate.state
        return replace(estimate, changed=changed)

    def _measured(self, fit: AffineFit, stamp: float, prior: ScalePrior | None) -> ScaleEstimate:
        measured = _Track.from_fit(fit, stamp)
        candidate, self._candidate = self._candidate, measured
        believed = fit.quality >= _TRUSTED_QUALITY
        confirmed = (
            candidate is not None
            and stamp - candidate.stamp <= self._hold_duration
            and candidate.predicted(stamp).distance(measured) <= _GATE
        )
        track = self._alive(stamp)
        if track is not None:
            distance = track.distance(measured)
            if distance <= _GATE:
                self._track = track.updated(measured, distance)
                if believed or confirmed or self._state is ScaleState.METRIC:
                    return self._held(ScaleState.METRIC, self._track, _fitted(fit))
                reason = f'{_fitted(fit)}, poorly (quality {fit.quality:.2f}): one more must agree'
                return self._held(ScaleState.HELD, self._track, reason)
            measured = replace(measured, wander=track.wander_after(distance))
        if believed or confirmed:
            reason = _fitted(fit)
            if track is not None:
                reason += ', not as before: started anew'
            self._track = measured
            return self._held(ScaleState.METRIC, measured, reason)
        reason = (
            f'a poor fit (quality {fit.quality:.2f})'
            if track is None
            else f'a fit that contradicts those before (chi-square {distance:.0f})'
        )
        return self._coasted(stamp, f'{reason}: one more must agree', prior)

    def _carry(self, carried: AffineFit, stamp: float) -> None:
        """Move the track to where the depth of the last frame is in this one."""
        track = self._alive(stamp)
        if track is None:
            return
        moved = _Track.from_fit(carried, stamp)
        # The depth of the last frame was as wrong as the track; that does not average out.
        level = track.relative_sigma * moved.x
        self._track = replace(
            track, x=moved.x, covariance=moved.covariance + np.outer(level, level)
        )

    def _coasted(self, stamp: float, why_not: str, prior: ScalePrior | None) -> ScaleEstimate:
        track = self._alive(stamp)
        if track is not None:
            reason = f'held from {stamp - track.last_fit:.1f} s ago: {why_not}'
            return self._held(ScaleState.HELD, track, reason)
        age = math.inf
        if self._track is not None:
            age = stamp - self._track.last_fit
            why_not = f'{why_not}; the last fit is {age:.1f} s old'
        return _fallback(prior, age, why_not)

    def _alive(self, stamp: float) -> _Track | None:
        """Give the track as predicted, while it may stand in."""
        if self._track is None or stamp - self._track.last_fit > self._hold_duration:
            return None
        return self._track.predicted(stamp)

    def _held(self, state: ScaleState, track: _Track, reason: str) -> ScaleEstimate:
        """Make the estimate; fits of lately may know the relief that the last one does not."""
        known = track.stamp - track.last_full <= self._hold_duration
        relative_range = (-math.inf, math.inf) if known else track.fit.relative_range
        return _estimate(state, track, relative_range, track.stamp - track.last_fit, reason)


def _inverse(covariance: FloatArray) -> FloatArray:
    """Invert, or pseudo-invert one that is singular, whatever the network's unit."""
    unit = np.sqrt(covariance.diagonal())
    unit = np.outer(unit, unit)
    unit[unit == 0] = 1.0
    inverse: FloatArray = np.linalg.pinv(covariance / unit) / unit
    return inverse


def _fitted(fit: AffineFit) -> str:
    reason = f'fitted to {fit.inliers} of {fit.inliers + fit.outliers} anchors'
    return f'{reason}, {fit.note}' if fit.note else reason


def _estimate(
    state: ScaleState, track: _Track, relative_range: tuple[float, float], age: float, reason: str
) -> ScaleEstimate:
    fit = track.fit
    return ScaleEstimate(
        state,
        float(track.x[0]),
        float(track.x[1]),
        track.covariance,
        fit.inliers,
        fit.outliers,
        fit.residual,
        age,
        reason,
        relative_range,
        model_error=fit.model_error,
        quality=fit.quality,
    )


def _fallback(prior: ScalePrior | None, age: float, why_not: str) -> ScaleEstimate:
    if prior is None:
        unknown = np.full((2, 2), np.nan)
        state = ScaleState.RELATIVE
        return ScaleEstimate(state, math.nan, math.nan, unknown, 0, 0, math.nan, age, why_not)
    return ScaleEstimate(
        ScaleState.PRIOR,
        prior.scale,
        prior.shift,
        prior.covariance,
        0,
        0,
        math.nan,
        age,
        f'{why_not}; {prior.reason}',
        prior.relative_range,
    )
