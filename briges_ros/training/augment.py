"""Augmentation of a training frame: crop, flip, light and colour, and objects put before it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from briges_ros.training.datasets import Sample

OUTPUT_STEP = 8  # output pixels per 14 input pixels: see the decoder

MOST_PASTED = 3  # objects a frame
SMALLEST_OBJECT, LARGEST_OBJECT = 0.004, 0.12  # share of the frame's pixels
RING = 4  # pixels around an object that say whether it stands out
OPEN_RIM = 0.4  # share of the ring that must lie farther; an object stands on something
MOST_NEARER = 2.5  # larger factors make toys right before the lens


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
    out_w, out_h = width // 14 * OUTPUT_STEP, height // 14 * OUTPUT_STEP
    if rng is None:
        image, inverse = sample.image, sample.inverse
    else:
        image, inverse = random_crop(sample, width / height, smallest_crop, rng)
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    if rng is not None:
        image = random_light(image, rng)
    return image, shrink_inverse(inverse, out_w, out_h)


def random_crop(
    sample: Sample, aspect: float, smallest: float, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """A random part of a frame, mirrored half of the time.

    Args:
        sample: the frame.
        aspect: width over height of the part, which varies by 8 %.
        smallest: side of the smallest part, relative to the largest that fits.
        rng: of everything random.

    Returns:
        image (h, w, 3) uint8 and inverse depth (h, w), both at the frame's resolution.
    """
    rows, cols = sample.inverse.shape
    aspect = aspect * float(np.exp(rng.uniform(-0.08, 0.08)))
    side = rng.uniform(smallest, 1.0)
    width = int(min(cols, rows * aspect) * side)
    height = int(min(rows, width / aspect))
    x, y = int(rng.integers(0, cols - width + 1)), int(rng.integers(0, rows - height + 1))
    image = sample.image[y : y + height, x : x + width]
    inverse = sample.inverse[y : y + height, x : x + width]
    if rng.random() < 0.5:
        image, inverse = image[:, ::-1], inverse[:, ::-1]
    return np.ascontiguousarray(image), np.ascontiguousarray(inverse)


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


@dataclass(frozen=True, eq=False)
class Cutout:
    """An object cut from a frame, in its bounding box (h, w).

    Attributes:
        mask: (h, w) bool, the object.
        image, inverse, labels: of the box, as in `Sample`; inverse is known inside the mask.
    """

    mask: NDArray[np.bool_]
    image: NDArray[np.uint8]
    inverse: NDArray[np.float32]
    labels: NDArray[np.uint8] | None


def paste_objects(sample: Sample, donor: Sample, rng: np.random.Generator) -> Sample:
    """Put up to three objects of another frame before a frame: new occlusions, exact labels.

    An object keeps its size in pixels while its depth is divided by one factor, which is what a
    smaller copy of it nearer to the camera looks like; the factor makes it nearer than everything
    that it covers. No pixel gets farther, and pixels outside the objects stay as they are, bit
    for bit. Objects over pixels of unknown depth simply cover them.

    Source: after Dwibedi et al., Cut, Paste and Learn (ICCV 2017).

    Args:
        sample: the frame.
        donor: where the objects come from, in pixels of about the same field of view. If both have
            labels, they should mean the same.
        rng: of everything random.

    Returns:
        The new frame; `sample` itself where nothing of the donor fits.
    """
    cutouts = cut_objects(donor)
    image, inverse = sample.image.copy(), sample.inverse.copy()
    labels = None if sample.labels is None else sample.labels.copy()
    pasted = 0
    for number in rng.permutation(len(cutouts))[: rng.integers(1, MOST_PASTED + 1)]:
        cutout = _flipped(cutouts[number]) if rng.random() < 0.5 else cutouts[number]
        place = _find_place(cutout, inverse, rng)
        if place is None:
            continue
        box, factor = place
        mask = cutout.mask
        # The rim is mixed with what lies behind, as a lens does; depth is not.
        inside = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 3)
        alpha = np.clip(inside[1:-1, 1:-1, None] / 2.0, 0.0, 1.0)
        mixed = np.rint(alpha * cutout.image + (1.0 - alpha) * image[box]).astype(np.uint8)
        image[box][mask] = mixed[mask]
        inverse[box][mask] = factor * cutout.inverse[mask]
        if labels is not None:
            labels[box][mask] = 0 if cutout.labels is None else cutout.labels[mask]
        pasted += 1
    if not pasted:
        return sample
    return Sample(f'{sample.name}+{donor.name}', image, inverse, labels)


def cut_objects(frame: Sample) -> list[Cutout]:
    """The whole objects of a frame that stand out before what surrounds them.

    Candidates are connected pixels of one class or, without labels, bounded by edges of depth.
    """
    objects = []
    size = frame.inverse.size
    for stats, region in _regions(frame):
        x, y, w, h, area = (int(value) for value in stats)
        touches_border = x == 0 or y == 0 or x + w == region.shape[1] or y + h == region.shape[0]
        if touches_border or not SMALLEST_OBJECT <= area / size <= LARGEST_OBJECT:
            continue
        around = np.s_[max(0, y - RING) : y + h + RING, max(0, x - RING) : x + w + RING]
        mask, inverse = region[around], frame.inverse[around]
        known = mask & np.isfinite(inverse)
        if known.sum() < 0.9 * area:
            continue
        typical = np.median(inverse[known])
        ring = cv2.dilate(mask.astype(np.uint8), np.ones((2 * RING + 1,) * 2, np.uint8)) > 0
        ring &= ~mask & np.isfinite(inverse)
        if not ring.any() or np.mean(inverse[ring] < 0.9 * typical) < OPEN_RIM:
            continue
        # Along its rim an outline holds pixels of the background, and depth measured of it.
        body = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        body &= known & (inverse > 0.85 * typical)
        if body.sum() < 0.75 * area:
            continue
        objects.append(
            Cutout(
                body,
                frame.image[around],
                inverse,
                None if frame.labels is None else frame.labels[around],
            )
        )
    return objects


def _regions(frame: Sample) -> Iterator[tuple[NDArray[np.int32], NDArray[np.bool_]]]:
    """OpenCV's (x, y, w, h, area) and (H, W) mask of each candidate."""
    if frame.labels is not None:
        groups = [frame.labels == value for value in np.unique(frame.labels) if value]
    else:
        z = np.where(np.isfinite(frame.inverse), frame.inverse, 0.0)
        near = cv2.dilate(z, np.ones((3, 3), np.uint8))
        far = cv2.erode(z, np.ones((3, 3), np.uint8))
        groups = [(far > 0) & (near < 1.1 * far)]
    for group in groups:
        count, numbers, stats, _ = cv2.connectedComponentsWithStats(group.astype(np.uint8))
        for number in range(1, count):
            yield stats[number], numbers == number


def _find_place(
    cutout: Cutout, inverse: NDArray[np.float32], rng: np.random.Generator
) -> tuple[tuple[slice, slice], np.float32] | None:
    """Where the object goes, and the factor on its inverse depth; None where it cannot go."""
    (rows, cols), (h, w) = inverse.shape, cutout.mask.shape
    if h > rows or w > cols:
        return None
    for _ in range(10):
        y, x = int(rng.integers(0, rows - h + 1)), int(rng.integers(0, cols - w + 1))
        box = np.s_[y : y + h, x : x + w]
        behind = inverse[box][cutout.mask]
        behind = np.where(np.isfinite(behind), behind, 0.0)
        needed = float((behind / cutout.inverse[cutout.mask]).max()) * rng.uniform(1.05, 1.3)
        if needed <= MOST_NEARER:
            return box, np.float32(max(1.0, needed))
    return None


def _flipped(cutout: Cutout) -> Cutout:
    labels = None if cutout.labels is None else cutout.labels[:, ::-1]
    return Cutout(cutout.mask[:, ::-1], cutout.image[:, ::-1], cutout.inverse[:, ::-1], labels)
