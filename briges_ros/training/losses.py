"""Affine-invariant losses in inverse depth.

Sources: Ranftl et al., MiDaS (arXiv 1907.01341): closed-form scale and shift, and multi-scale
gradient matching. Yang et al., Depth Anything (arXiv 2401.10891): median and mean absolute
deviation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

NEAREST_M = 1e-3  # targets are 1 / (z + 1 mm)
SMALLEST_SPREAD = 1e-6  # of a prediction or a target; anything flatter counts as constant


def align(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Scale and shift each prediction to its target by closed-form least squares.

    Args:
        prediction, target: (B, H, W) inverse depth; target anything where not valid.
        valid: (B, H, W) bool.

    Returns:
        (B, H, W) aligned prediction; gradients flow through the fit.
    """
    mask = valid.to(prediction.dtype)
    n = mask.sum((1, 2)).clamp(min=1.0)
    t = torch.where(valid, target, torch.zeros_like(target))
    mean_p = (mask * prediction).sum((1, 2)) / n
    mean_t = t.sum((1, 2)) / n
    p = prediction - mean_p[:, None, None]
    covariance = (mask * p * (t - mean_t[:, None, None])).sum((1, 2)) / n
    variance = (mask * p * p).sum((1, 2)) / n
    # A prediction that runs the wrong way must not be mended by a negative scale.
    scale = covariance.clamp(min=0.0) / (variance + 1e-6)
    return scale[:, None, None] * p + mean_t[:, None, None]


def depth_loss(
    prediction: Tensor, inverse: Tensor, gradient_weight: float, ratio_weight: float
) -> Tensor:
    """The loss of a batch of one data set.

    Three terms, each on the aligned prediction: mean absolute error relative to the frame's mean
    inverse depth; gradient matching at four scales (dense labels only); and the mean of
    ``|log(z / z_prediction)|``, which is what AbsRel and delta1 judge.

    Args:
        prediction: (B, H, W) inverse depth up to scale and shift.
        inverse: (B, H, W) true 1/z in 1/m, 0 = infinitely far, NaN = unknown.
        gradient_weight, ratio_weight: of the second and third term.
    """
    valid = torch.isfinite(inverse)
    target = torch.where(valid, inverse, torch.zeros_like(inverse))
    aligned = align(prediction, target, valid)
    mean = target.sum((1, 2)) / valid.sum((1, 2)).clamp(min=1)
    error = (aligned - target) / mean[:, None, None].clamp(min=1e-3)
    error = torch.where(valid, error, torch.zeros_like(error))
    loss = error.abs().sum() / valid.sum().clamp(min=1)
    if gradient_weight:
        loss = loss + gradient_weight * gradient_matching(error, valid)
    if ratio_weight:
        ratio, near = _log_ratio(aligned, target, valid, mean)
        loss = loss + ratio_weight * (ratio * near).sum() / near.sum().clamp(min=1)
    return loss


def _log_ratio(
    aligned: Tensor, target: Tensor, valid: Tensor, mean: Tensor
) -> tuple[Tensor, Tensor]:
    """``|log(z / z_prediction)|`` (B, H, W), and where it is defined: not at infinity."""
    near = valid & (target > 0)
    floor = 0.1 * mean[:, None, None].clamp(min=1e-3).expand_as(aligned)
    # Below the floor the logarithm goes on as its tangent, so that it stays finite.
    low = aligned < floor
    safe = torch.where(low, floor, aligned)
    log = safe.log() + torch.where(low, (aligned - floor) / floor, torch.zeros_like(aligned))
    return (log - target.clamp(min=1e-4).log()).abs(), near


def gradient_matching(error: Tensor, valid: Tensor, scales: int = 4) -> Tensor:
    """Mean absolute gradient of the error map, in both directions, averaged over scales."""
    total = error.new_zeros(())
    for difference, both in _differences(error, valid, scales):
        total = total + (difference.abs() * both).sum() / both.sum().clamp(min=1)
    return total / scales


def _differences(error: Tensor, valid: Tensor, scales: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Differences between neighbours, and where both are valid: by scale, along x and along y."""
    for level in range(scales):
        step = 2**level
        e, v = error[:, ::step, ::step], valid[:, ::step, ::step]
        yield e[:, :, 1:] - e[:, :, :-1], v[:, :, 1:] & v[:, :, :-1]
        yield e[:, 1:] - e[:, :-1], v[:, 1:] & v[:, :-1]


@dataclass(frozen=True, kw_only=True)
class GateLoss:
    """The affine-invariant loss that gates are trained with.

    ``affine_weight * L_ssi + gradient_weight * L_gm + ratio_weight * L_ratio``, by image:

    - L_ssi: mean absolute error on the valid pixels. ``least_squares``: after the closed-form scale
      and shift that bring the prediction to the target, which runs from 0 to 1 in each image.
      ``median``: after both were brought to median 0 and mean absolute deviation 1.
    - L_gm: gradient matching of the same error at four scales and in both directions, summed over
      scales. Only where labels are sharp ("selective").
    - L_ratio: mean ``|log(z / z_prediction)|``, which is what AbsRel and delta1 judge. Ours; 0 in
      the paper.

    The paper's line for V2 networks is (1, 2, 0), that for V1 (0.85, 0.001, 0).

    The error is affine in the target, so min-max normalisation is nothing but a weight of each
    image, one over its range of inverse depth; in the median form it cancels altogether.

    Attributes:
        form: of L_ssi.
        affine_weight, gradient_weight, ratio_weight: see above; none is negative.
    """

    form: Literal['least_squares', 'median'] = 'least_squares'
    affine_weight: float = 1.0
    gradient_weight: float = 2.0
    ratio_weight: float = 0.0

    def __post_init__(self) -> None:
        if min(self.affine_weight, self.gradient_weight, self.ratio_weight) < 0:
            raise ValueError('no weight may be negative')

    def by_image(self, prediction: Tensor, inverse: Tensor, sharp: bool) -> Tensor:
        """The loss of each image; one without a valid pixel gives 0 and no gradient.

        It is by image, so that its mean over a batch does not depend on how the batch is split
        over processes.

        Args:
            prediction: (B, H, W) inverse depth up to scale and shift.
            inverse: (B, H, W) true 1/z in 1/m, 0 = infinitely far, NaN = unknown.
            sharp: labels are dense, with edges where the image has them.

        Returns:
            (B,).
        """
        valid = torch.isfinite(inverse)
        truth = torch.where(valid, inverse, torch.zeros_like(inverse))
        target = truth / (1.0 + NEAREST_M * truth)  # = 1 / (z + 1 mm)
        if self.form == 'least_squares':
            error = (align(prediction, target, valid) - target) / _range(target, valid)
        else:
            error = centred(prediction, valid) - centred(target, valid)
        error = torch.where(valid, error, torch.zeros_like(error))
        loss = self.affine_weight * _mean(error.abs(), valid)
        if self.gradient_weight and sharp:
            for difference, both in _differences(error, valid, scales=4):
                loss = loss + self.gradient_weight * _mean(difference.abs(), both)
        if self.ratio_weight:
            mean = _mean(truth, valid)
            ratio, near = _log_ratio(align(prediction, truth, valid), truth, valid, mean)
            loss = loss + self.ratio_weight * _mean(ratio, near)
        return loss


def centred(x: Tensor, valid: Tensor) -> Tensor:
    """Each map less its median, over its mean absolute deviation from it.

    Args:
        x: (B, H, W); anything where not valid.
        valid: (B, H, W) bool.

    Returns:
        (B, H, W); gradients flow through median and deviation. 0 where a map is constant.
    """
    known = valid.flatten(1).any(1)[:, None]
    values = torch.where(known, x.flatten(1).masked_fill(~valid.flatten(1), torch.nan), 0.0)
    x = x - values.nanmedian(dim=1).values[:, None, None]
    deviation = _mean(torch.where(valid, x, torch.zeros_like(x)).abs(), valid)
    return x / deviation.clamp(min=SMALLEST_SPREAD)[:, None, None]


def _range(target: Tensor, valid: Tensor) -> Tensor:
    """Largest less smallest valid value of each map, (B, 1, 1)."""
    largest = target.masked_fill(~valid, -torch.inf).amax((1, 2), keepdim=True)
    smallest = target.masked_fill(~valid, torch.inf).amin((1, 2), keepdim=True)
    return (largest - smallest).clamp(min=SMALLEST_SPREAD)


def _mean(x: Tensor, where: Tensor) -> Tensor:
    """Mean of each map over its pixels that count, (B, H, W) -> (B,)."""
    return (x * where).sum((1, 2)) / where.sum((1, 2)).clamp(min=1)
