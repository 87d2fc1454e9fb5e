"""Augmentation of a training frame: crop, flip, light and colour."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from briges_ros.training.datasets import Sample

OUTPUT_STEP = 8  # output pixels per 14 input pixels: see the decoder


def random_view(
    sample: Sample, width: int, height: int, smallest_crop: float, rng: np.random.Generator | None
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """One view of a frame at network size.

    Args:
        sample: the frame.
        width, height: network input, multiples of 14.
        smallest_crop: side of the smallest random crop, relative to the largest that fits.
        rng: None gives the whole frame, unchanged but for its size (for scoring).

    Returns:
        image (height, width, 3) uint8 RGB and inverse depth (height * 8 / 14, width * 8 / 14)
        float32 in 1/m, NaN unknown.
    """
    rows, cols = sample.inverse.shape
    out_w, out_h = width // 14 * OUTPUT_STEP, height // 14 * OUTPUT_STEP
    if rng is None:
        image, inverse = sample.image, sample.inverse
    else:
        aspect = width / height * np.exp(rng.uniform(-0.08, 0.08))
        side = rng.uniform(smallest_crop, 1.0)
        crop_w = int(min(cols, rows * aspect) * side)
        crop_h = int(min(rows, crop_w / aspect))
        x, y = rng.integers(0, cols - crop_w + 1), rng.integers(0, rows - crop_h + 1)
        image = sample.image[y : y + crop_h, x : x + crop_w]
        inverse = sample.inverse[y : y + crop_h, x : x + crop_w]
        if rng.random() < 0.5:
            image, inverse = image[:, ::-1], inverse[:, ::-1]
    image = cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=cv2.INTER_AREA)
    if rng is not None:
        image = random_light(image, rng)
    return image, shrink_inverse(np.ascontiguousarray(inverse), out_w, out_h)


def shrink_inverse(inverse: NDArray[np.float32], width: int, height: int) -> NDArray[np.float32]:
    """Resize inverse depth without inventing values: of the pixels in a cell, the nearest wins.

    Works alike for dense depth and for scattered LiDAR points; NaN stays NaN.
    """
    rows, cols = inverse.shape
    y, x = np.nonzero(np.isfinite(inverse))
    out = np.full(height * width, -1.0, np.float32)
    cell = (y * height // rows) * width + x * width // cols
    np.maximum.at(out, cell, inverse[y, x])
    out[out < 0] = np.nan
    return out.reshape(height, width)


def random_light(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Brightness, contrast, gamma, colour cast, grey, blur and noise, as cameras vary."""
    x = image.astype(np.float32) / 255.0
    x = x ** np.exp(rng.uniform(-0.35, 0.35))
    x = x * rng.uniform(0.75, 1.25) * rng.uniform(0.92, 1.08, 3).astype(np.float32)
    mean = x.mean()
    x = (x - mean) * rng.uniform(0.75, 1.25) + mean
    grey = x.mean(axis=2, keepdims=True)
    x = grey + (x - grey) * (0.0 if rng.random() < 0.07 else rng.uniform(0.6, 1.4))
    if rng.random() < 0.2:
        x = cv2.GaussianBlur(x, (0, 0), rng.uniform(0.4, 1.3))
    if rng.random() < 0.3:
        x = x + rng.normal(0.0, rng.uniform(0.005, 0.03), x.shape).astype(np.float32)
    return (np.clip(x, 0.0, 1.0) * 255.0).astype(np.uint8)
