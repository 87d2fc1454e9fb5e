"""Affine-invariant losses in inverse depth.

Source: Ranftl et al., MiDaS (arXiv 1907.01341): closed-form scale and shift, and multi-scale
gradient matching.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
        near = valid & (target > 0)
        floor = 0.1 * mean[:, None, None].clamp(min=1e-3).expand_as(aligned)
        # Below the floor the logarithm goes on as its tangent, so that it stays finite.
        low = aligned < floor
        safe = torch.where(low, floor, aligned)
        log = safe.log() + torch.where(low, (aligned - floor) / floor, torch.zeros_like(aligned))
        ratio = (log - target.clamp(min=1e-4).log()).abs()
        loss = loss + ratio_weight * (ratio * near).sum() / near.sum().clamp(min=1)
    return loss


def gradient_matching(error: Tensor, valid: Tensor, scales: int = 4) -> Tensor:
    """Mean absolute gradient of the error map, in both directions, summed over scales."""
    total = error.new_zeros(())
    for level in range(scales):
        step = 2**level
        e, v = error[:, ::step, ::step], valid[:, ::step, ::step]
        for a, b, both in (
            (e[:, :, 1:], e[:, :, :-1], v[:, :, 1:] & v[:, :, :-1]),
            (e[:, 1:], e[:, :-1], v[:, 1:] & v[:, :-1]),
        ):
            total = total + ((a - b).abs() * both).sum() / both.sum().clamp(min=1)
    return total / scales
