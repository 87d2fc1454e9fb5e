"""From a camera image to the network's inputs, and from its output to inverse depth."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from briges_ros.inference.bundle import ModelBundle

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
NEAREST_M = 1e-3  # a metric network's zero metres become this many


def prepare(
    image: NDArray[np.uint8],
    bundle: ModelBundle,
    token_budget: int | None = None,
    segmentation: bool = True,
) -> tuple[NDArray[np.float32], ...]:
    """An image as the network takes it: what `Engine.infer` wants, in its order.

    Args:
        image: (H, W, 3) uint8 RGB.
        bundle: the model.
        token_budget: most patches that the depth encoder may see; default: the bundle's.
        segmentation: False leaves the segmentation encoder's input out, so that the engine takes
            the last segmentation again.

    Returns:
        The depth encoder's input (1, 3, h, w) float32 and, if the bundle has a gate, the
        segmentation encoder's (1, 3, hs, ws); each resized from the image itself.
    """
    width, height = input_size(
        image.shape[1], image.shape[0], token_budget or bundle.token_budget, bundle.patch
    )
    depth = network_input(image, width, height, bundle.mean, bundle.std)
    wanted = bundle.segmentation_input
    if wanted is None or not segmentation:
        return (depth,)
    size = wanted.pixels(width // bundle.patch, height // bundle.patch)
    return depth, network_input(image, *size, wanted.mean, wanted.std)


def to_inverse_depth(output: NDArray[np.float32], bundle: ModelBundle) -> NDArray[np.float32]:
    """A network's output as inverse depth: up to scale and shift, or 1/m of a metric network."""
    if bundle.output == 'metric_depth':
        return np.reciprocal(np.maximum(output, np.float32(NEAREST_M)))
    return output


def input_size(width: int, height: int, token_budget: int, patch: int = 14) -> tuple[int, int]:
    """The network size for a camera: its aspect ratio, at most ``token_budget`` patches.

    Args:
        width, height: camera image, pixels.
        token_budget: most patches (tokens) that the encoder may see.
        patch: pixels along a patch's side.

    Returns:
        (width, height) in pixels, multiples of ``patch``. Of the sizes around the ideal one, the
        one whose aspect ratio and number of tokens come nearest.

    Raises:
        ValueError: a size or the budget is not positive.
    """
    if width < 1 or height < 1 or token_budget < 1:
        raise ValueError(f'cannot fit {width}x{height} into {token_budget} tokens')
    aspect = width / height
    rows, cols = math.sqrt(token_budget / aspect), math.sqrt(token_budget * aspect)
    candidates = [
        (max(1, r), max(1, c))
        for r in (math.floor(rows), math.ceil(rows))
        for c in (math.floor(cols), math.ceil(cols))
    ]
    fitting = [(r, c) for r, c in candidates if r * c <= token_budget]
    if not fitting:  # an extreme panorama: one row of patches
        fitting = [(1, token_budget)] if aspect > 1 else [(token_budget, 1)]
    best = min(
        fitting,
        key=lambda rc: abs(math.log(rc[1] / rc[0] / aspect)) + 1.0 - rc[0] * rc[1] / token_budget,
    )
    return best[1] * patch, best[0] * patch


def normalise(
    image: NDArray[np.uint8],
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> NDArray[np.float32]:
    """(h, w, 3) uint8 RGB -> (1, 3, h, w) float32, zero mean and unit variance by channel."""
    gain = np.array([1.0 / (255.0 * s) for s in std], np.float32)
    offset = np.array([-m / s for m, s in zip(mean, std, strict=True)], np.float32)
    out = np.empty((1, 3, *image.shape[:2]), np.float32)
    for channel in range(3):
        np.multiply(image[:, :, channel], gain[channel], out=out[0, channel])
        out[0, channel] += offset[channel]
    return out


def network_input(
    image: NDArray[np.uint8],
    width: int,
    height: int,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> NDArray[np.float32]:
    """Resize (area along sides that shrink, cubic along those that grow) and normalise.

    Args:
        image: (H, W, 3) uint8 RGB.
        width, height: network size, pixels.

    Returns:
        (1, 3, height, width) float32.
    """
    smaller = min(image.shape[1], width), min(image.shape[0], height)
    if smaller != (image.shape[1], image.shape[0]):
        image = cv2.resize(image, smaller, interpolation=cv2.INTER_AREA)
    if smaller != (width, height):
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
    return normalise(image, mean, std)
