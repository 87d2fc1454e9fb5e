"""One picture of a frame for people: image, truth, prediction and error, with their scales.

Truth and prediction have the same colours: near is warm, far is cool, evenly in the logarithm of
depth. The error has the same colours in all pictures: too near is orange, too far is purple.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

Colours = Callable[[NDArray[np.floating]], NDArray[np.uint8]]
Tick = tuple[float, str]  # where along a scale, 0..1, and what is written there

ERROR_RANGE = 0.3

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_TEXT = 0.5
_INK = (235, 235, 235)
_PAPER = (24, 24, 24)
_UNKNOWN = (80, 80, 80)
_LINE = 26  # height of a line of text, pixels
_GAP = 6
_PANEL_WIDTH = 480  # at least
_TICKS_M = (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 4, 5, 7, 10, 15, 20, 30, 40, 60, 80)
_TICK_ROOM = 52  # pixels from one tick to the next

# Points of the colour scale of the error, RGB: from the most too near to the most too far.
_ERROR_COLOURS = ((230, 97, 1), (253, 184, 99), (247, 247, 247), (178, 171, 210), (94, 60, 153))


def comparison(
    image: NDArray[np.uint8],
    truth: NDArray[np.floating],
    depth: NDArray[np.floating],
    title: str,
) -> NDArray[np.uint8]:
    """Four panels, two by two (one above the other for wide images), and their scales below.

    Args:
        image: (H, W, 3) uint8 RGB.
        truth: (h, w) metres, NaN where it does not count.
        depth: (h, w) metres, aligned; NaN = unknown.
        title: one line above all.

    Returns:
        (H', W', 3) uint8 RGB.
    """
    near, far = _depth_range(truth)
    depth_colours = _depth_colours(near, far)
    error = (depth - truth) / truth
    size = _panel_size(image.shape[1], image.shape[0])
    wide = size[0] > 2 * size[1]
    panels = [
        _panel(image, size, 'image'),
        _panel(depth_colours(_visible(truth)), size, 'truth'),
        _panel(depth_colours(depth), size, 'prediction'),
        _panel(_error_colours(_visible(error)), size, 'error of the prediction'),
    ]
    if wide:
        body = _stacked(panels)
        half = (body.shape[1] - _GAP) // 2
    else:
        body = _stacked([_beside(panels[:2]), _beside(panels[2:])])
        half = size[0]
    ramp, ticks = _depth_ramp(near, far), _depth_ticks(near, far)
    rest = body.shape[1] - half - _GAP
    scales = _beside(
        [
            _scale(half, 'depth, m', ramp, depth_colours, ticks),
            _scale(rest, 'error, % of the depth', _error_ramp, _error_colours, _error_ticks()),
        ]
    )
    page = _stacked([_text_line(title, body.shape[1]), body, scales])
    return cv2.copyMakeBorder(
        page, _GAP, _GAP, _GAP, _GAP, cv2.BORDER_CONSTANT, value=_PAPER
    ).astype(np.uint8, copy=False)


def _depth_range(truth: NDArray[np.floating]) -> tuple[float, float]:
    known = truth[np.isfinite(truth)]
    if not known.size:
        return 1.0, 10.0
    near, far = (float(q) for q in np.percentile(known, (1, 99)))
    return near, max(far, 1.05 * near)


def _depth_ramp(near: float, far: float) -> Callable[[NDArray[np.floating]], NDArray[np.floating]]:
    return lambda at: near * (far / near) ** at


def _depth_ticks(near: float, far: float) -> list[Tick]:
    return [
        (float(np.log(metres / near) / np.log(far / near)), f'{metres:g}')
        for metres in _TICKS_M
        if near <= metres <= far
    ]


def _error_ramp(at: NDArray[np.floating]) -> NDArray[np.floating]:
    return ERROR_RANGE * (2.0 * at - 1.0)


def _error_ticks() -> list[Tick]:
    percent = f'{100 * ERROR_RANGE:.0f}'
    return [(0.0, f'-{percent} too near'), (0.5, '0'), (1.0, f'too far +{percent}')]


def _depth_colours(near: float, far: float) -> Colours:
    def colours(depth: NDArray[np.floating]) -> NDArray[np.uint8]:
        known = np.isfinite(depth)
        level = np.log(np.where(known, np.maximum(depth, 1e-6), near) / near) / np.log(far / near)
        # The ends of the colour map are so dark that they look like black.
        steps = np.clip(240 - 225 * level, 15, 240).astype(np.uint8)
        rgb = cv2.cvtColor(cv2.applyColorMap(steps, cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)
        rgb[~known] = _UNKNOWN
        return np.asarray(rgb, np.uint8)

    return colours


def _error_colours(error: NDArray[np.floating]) -> NDArray[np.uint8]:
    known = np.isfinite(error)
    level = np.clip(np.where(known, error, 0.0), -ERROR_RANGE, ERROR_RANGE)
    points = np.linspace(-ERROR_RANGE, ERROR_RANGE, len(_ERROR_COLOURS))
    channels = [np.interp(level, points, values) for values in zip(*_ERROR_COLOURS, strict=True)]
    rgb = np.stack(channels, axis=-1).astype(np.uint8)
    rgb[~known] = _UNKNOWN
    return rgb


def _visible(values: NDArray[np.floating]) -> NDArray[np.floating]:
    """Make the points of a sparse map three pixels wide, so that they can be seen."""
    known = np.isfinite(values)
    if known.mean() > 0.5 or not known.any():
        return values
    distance, labels = cv2.distanceTransformWithLabels(
        (~known).astype(np.uint8), cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_PIXEL
    )
    by_label = np.zeros(labels.max() + 1, values.dtype)
    by_label[labels[known]] = values[known]
    return np.where(distance < 1.5, by_label[labels], np.nan)


def _panel_size(width: int, height: int) -> tuple[int, int]:
    enlarge = max(1.0, _PANEL_WIDTH / width)
    return round(width * enlarge), round(height * enlarge)


def _panel(pixels: NDArray[np.uint8], size: tuple[int, int], caption: str) -> NDArray[np.uint8]:
    resized = cv2.resize(pixels, size, interpolation=cv2.INTER_NEAREST)
    return np.vstack([_text_line(caption, size[0]), resized]).astype(np.uint8, copy=False)


def _text_line(text: str, width: int) -> NDArray[np.uint8]:
    line = np.full((_LINE, width, 3), _PAPER, np.uint8)
    cv2.putText(line, text, (4, _LINE - 9), _FONT, _TEXT, _INK, 1, cv2.LINE_AA)
    return line


def _scale(
    width: int,
    title: str,
    ramp: Callable[[NDArray[np.floating]], NDArray[np.floating]],
    colours: Colours,
    ticks: Sequence[Tick],
) -> NDArray[np.uint8]:
    """A bar of colours, its ticks and what they mean."""
    left, length = 10, width - 20
    strip = np.full((2 * _LINE + 20, width, 3), _PAPER, np.uint8)
    strip[:_LINE] = _text_line(title + '   (grey: unknown)', width)
    bar = colours(ramp(np.linspace(0.0, 1.0, length))[None])
    strip[_LINE : _LINE + 16, left : left + length] = bar
    last = -_TICK_ROOM
    for at, text in ticks:
        x = left + round(at * (length - 1))
        if x - last < _TICK_ROOM:
            continue
        last = x
        cv2.line(strip, (x, _LINE + 12), (x, _LINE + 20), _INK, 1)
        (text_width, _), _ = cv2.getTextSize(text, _FONT, _TEXT, 1)
        start = min(max(x - text_width // 2, left), width - text_width - left)
        cv2.putText(strip, text, (start, 2 * _LINE + 12), _FONT, _TEXT, _INK, 1, cv2.LINE_AA)
    return strip


def _beside(parts: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    gap = np.full((parts[0].shape[0], _GAP, 3), _PAPER, np.uint8)
    row = [piece for part in parts for piece in (gap, part)]
    return np.hstack(row[1:]).astype(np.uint8, copy=False)


def _stacked(parts: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    gap = np.full((_GAP, parts[0].shape[1], 3), _PAPER, np.uint8)
    rows = [piece for part in parts for piece in (gap, part)]
    return np.vstack(rows[1:]).astype(np.uint8, copy=False)
