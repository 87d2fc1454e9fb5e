"""Relative inverse depth to metres, frame after frame: fit, track, carry along, refine.

The steps are in the modules beside this one; here is their order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from briges_ros.alignment.anchors import Anchors
from briges_ros.alignment.carried import CARRIED_WEIGHT, CarriedDepth, same_scale
from briges_ros.alignment.edges import edge_weight
from briges_ros.alignment.fit import (
    AffineFit,
    FitFailure,
    fit_inverse_depth,
    one_reading,
    sample,
)
from briges_ros.alignment.ground import ground_prior
from briges_ros.alignment.neighbours import fit_by_neighbours
from briges_ros.alignment.refinement import refine
from briges_ros.alignment.tracker import ScaleEstimate, ScalePrior, ScaleState, ScaleTracker
from briges_ros.alignment.uncertainty import depth_sigma, local_error
from briges_ros.camera import CameraModel
from briges_ros.obstacles import Ground

Image32 = npt.NDArray[np.float32]

MAX_FIT_ANCHORS = 2000  # more do not sharpen two parameters, they only cost time
MAX_REFINEMENT_ANCHORS = 20_000


@dataclass(frozen=True, eq=False)
class Alignment:
    """How the relative inverse depth of one frame becomes metres.

    Attributes:
        scale: 1/z = scale * relative + shift.
        relative: (H, W) float32, refined by the anchors if there are any: what they say of each
            place is put into it, so that the line holds for all of it.
        refined: whether it is.
        error: what the anchors say of its error, see `local_error`; None without fresh ones.
    """

    scale: ScaleEstimate
    relative: Image32
    refined: bool
    error: Image32 | None


class Aligner:
    """Keeps what is known of the scale from frame to frame.

    Args:
        hold_duration: seconds that the last fit may serve without fresh anchors.
        prior: (scale, shift) to fall back on; None if nothing is known beforehand.
        refinement: correct the depth around anchors, and carry that to the next frame.

    Raises:
        ValueError: see `ScaleTracker`.
    """

    def __init__(
        self,
        *,
        hold_duration: float = 5.0,
        prior: tuple[float, float] | None = None,
        refinement: bool = True,
    ) -> None:
        self.refinement = refinement
        self._tracker = ScaleTracker(hold_duration=hold_duration, prior=prior)
        self._memory = CarriedDepth()

    def reset(self) -> None:
        """Forget all frames."""
        self._tracker.reset()
        self._memory.forget()

    def align(
        self,
        image: npt.NDArray[np.uint8],
        relative: Image32,
        camera: CameraModel | None,
        anchors: Anchors | None,
        stamp: float | None,
        ground: Ground | None = None,
    ) -> Alignment:
        """Find the scale of a frame.

        Args:
            image: (H, W, 3) uint8 RGB.
            relative: (H, W) float32, what the network says of it.
            camera: of the image, or None.
            anchors: in the image; None if there is no sensor.
            stamp: seconds; None for a picture on its own.
            ground: where it is, to take the scale from where the anchors give none; needs the
                camera. None if it is not known, or not to be relied on.
        """
        carried = self._memory.recall(image, camera, stamp) if self.refinement else None
        fit = moved = None
        if anchors is not None:
            anchors = anchors.settled(relative)
            few = anchors.spread(MAX_FIT_ANCHORS, relative)
            fit = _fit(relative, few, self._tracker.expected(stamp))
            if self.refinement and isinstance(fit, FitFailure):
                p = sample(relative, few.u, few.v)
                width = relative.shape[1]
                alone = fit_by_neighbours(p, few.u, few.v, few.depth, few.sigma, width)
                fit = fit if isinstance(alone, FitFailure) else alone
        if carried is not None:
            moved = _fit(relative, carried)
        prior: ScalePrior | None = None
        why_not = ''
        if not isinstance(fit, AffineFit) and ground is not None and camera is not None:
            floor = ground_prior(relative, camera, ground.height, ground.down)
            if isinstance(floor, FitFailure):
                why_not = f'no anchors, and {floor.reason}'
            else:
                prior = floor
        scale = self._tracker.update(fit, stamp, why_not, prior, moved)
        if scale.state not in (ScaleState.METRIC, ScaleState.HELD):
            return Alignment(scale, relative, False, None)

        error = None
        sources: list[Anchors] = []
        if isinstance(fit, AffineFit) and scale.state is ScaleState.METRIC:
            assert anchors is not None
            fresh = anchors.thinned(MAX_REFINEMENT_ANCHORS)
            believed = np.ones(len(fresh), np.bool_)
            believed[one_reading(sample(relative, fresh.u, fresh.v), fresh.depth)] = False
            fresh = fresh.take(believed)
            sources.append(fresh)
            # At fresh anchors only: carried ones agree with the errors that they bring along.
            inverse = scale.scale * sample(relative, fresh.u, fresh.v) + scale.shift
            height, width = relative.shape
            error = local_error(
                *(fresh.u, fresh.v, fresh.depth, fresh.sigma),
                inverse.astype(np.float32),
                (width, height),
                refined=self.refinement,
            )
            if carried is not None and not same_scale(
                carried, sample(relative, carried.u, carried.v), fit
            ):
                carried = None
        if carried is not None:
            sources.append(carried.weighted(CARRIED_WEIGHT))
        if not (self.refinement and sources):
            return Alignment(scale, relative, False, error)
        return Alignment(scale, _refined(relative, scale, Anchors.joined(sources)), True, error)

    def remember(
        self,
        image: npt.NDArray[np.uint8],
        depth: Image32,
        alignment: Alignment,
        camera: CameraModel | None,
        stamp: float | None,
    ) -> Image32:
        """Keep the metres of a frame for the next one, and say how far they can be off.

        Args:
            image, camera, stamp: of the frame, as given to `align`.
            depth: (H, W) float32 metres, before flying pixels are settled.
            alignment: what `align` returned.

        Returns:
            (H, W) float32 standard deviation of `depth`, metres; see `depth_sigma`.
        """
        if alignment.scale.state is ScaleState.RELATIVE:
            self._memory.forget()
            return np.full(depth.shape, np.nan, np.float32)
        sigma = depth_sigma(depth, alignment.relative, alignment.scale, alignment.error)
        if self.refinement:
            self._memory.remember(image, depth, sigma, camera, stamp)
        return sigma


def _fit(
    relative: Image32, anchors: Anchors, previous: AffineFit | None = None
) -> AffineFit | FitFailure:
    predicted = sample(relative, anchors.u, anchors.v)
    weight = anchors.weight * edge_weight(relative, anchors.u, anchors.v)
    return fit_inverse_depth(
        predicted, anchors.depth, anchors.sigma, weight=weight, previous=previous
    )


def _refined(relative: Image32, scale: ScaleEstimate, anchors: Anchors) -> Image32:
    """Put what the anchors say of each place into the relative inverse depth."""
    refined = refine(
        *(relative, scale.scale, scale.shift, scale.model_error),
        *(anchors.u, anchors.v, anchors.depth, anchors.sigma, anchors.weight),
    ).inverse_depth
    refined -= np.float32(scale.shift)
    refined /= np.float32(scale.scale)
    return refined
