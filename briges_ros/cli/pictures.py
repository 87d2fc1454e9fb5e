"""Pictures for people: the image beside its depth, with a legend."""

from __future__ import annotations

import errno
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from briges_ros.alignment.anchors import Anchors
from briges_ros.depth_image import colorize

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_INK = (235, 235, 235)
_PAPER = (24, 24, 24)
_LEAST_WIDTH = 320  # room for the legend


def preview(
    image: NDArray[np.uint8],
    relative: NDArray[np.float32],
    depth: NDArray[np.float32],
    caption: str,
) -> NDArray[np.uint8]:
    """Image and depth side by side (one above the other for wide images), legend below.

    Args:
        image: (H, W, 3) uint8 RGB.
        relative: (H, W) inverse depth, shown where no metres are known.
        depth: (H, W) metres.
        caption: one line, e.g. the scale's state.

    Returns:
        (h, w, 3) uint8 RGB, wide enough for the legend however small the image.
    """
    known = bool((depth > 0).any())
    with np.errstate(divide='ignore'):
        shown = 1.0 / depth if known else relative
    panels = [image, colorize(shown.astype(np.float32))]
    wide = image.shape[1] > 2 * image.shape[0]
    body = np.vstack(panels) if wide else np.hstack(panels)
    if body.shape[1] < _LEAST_WIDTH:
        margin = np.full((body.shape[0], _LEAST_WIDTH - body.shape[1], 3), _PAPER, np.uint8)
        body = np.hstack([body, margin])
    return np.vstack([body, _legend(body.shape[1], shown if known else None, caption)])


def _legend(width: int, inverse: NDArray[np.floating] | None, caption: str) -> NDArray[np.uint8]:
    """A strip with the colour scale, labelled in metres when they are known."""
    text_scale = max(0.4, min(0.7, width / 1600))
    height = int(90 * text_scale)
    strip = np.full((height, width, 3), _PAPER, np.uint8)
    baseline = int(height * 0.82)
    cv2.putText(strip, caption, (10, baseline), _FONT, text_scale, _INK, 1, cv2.LINE_AA)
    bar_width, bar_height = width // 3, height // 3
    left, top = width - bar_width - 20, height // 8
    ramp = np.linspace(1.0, 0.0, bar_width, dtype=np.float32)
    strip[top : top + bar_height, left : left + bar_width] = colorize(
        np.tile(ramp + 0.01, (bar_height, 1))
    )
    labels = ['near', '', 'far']
    finite = inverse[np.isfinite(inverse) & (inverse > 0)] if inverse is not None else np.empty(0)
    if finite.size:
        far, near = np.percentile(finite, [2, 98])
        labels = [_metres(1 / x) for x in (near, (near + far) / 2, far)]
    for label, at in zip(labels, (0.0, 0.5, 1.0), strict=True):
        (text_width, _), _ = cv2.getTextSize(label, _FONT, text_scale, 1)
        x = int(left + at * bar_width - at * text_width)
        cv2.putText(strip, label, (x, baseline), _FONT, text_scale, _INK, 1, cv2.LINE_AA)
    return strip


def _metres(depth: float) -> str:
    return f'{depth:.2f} m' if depth < 3 else f'{depth:.1f} m'


def draw_anchors(image: NDArray[np.uint8], anchors: Anchors) -> NDArray[np.uint8]:
    """Mark where the sparse sensor measured: at most 3000 dots, near warm and far cool."""
    shown = image.copy()
    anchors = anchors.thinned(3000)
    if len(anchors) == 0:
        return shown
    colours = colorize((1.0 / anchors.depth)[None].astype(np.float32))[0]
    radius = 3 if len(anchors) < 1000 else 1
    for u, v, colour in zip(anchors.u, anchors.v, colours, strict=True):
        centre = (round(float(u)), round(float(v)))
        cv2.circle(shown, centre, radius, tuple(int(c) for c in colour), -1, cv2.LINE_AA)
    return shown


def write_png(path: str, rgb: NDArray[np.uint8]) -> None:
    """Write an RGB picture."""
    write_image(path, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))


def write_image(path: str, pixels: NDArray[Any]) -> None:
    """Write pixels as OpenCV has them: BGR, or one channel of 8 or 16 bits.

    Raises:
        OSError: it cannot be written; OpenCV alone would return False and go on.
    """
    if not cv2.imwrite(path, pixels):
        raise OSError(errno.EIO, 'no room or no permission', path)
