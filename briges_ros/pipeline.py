"""Image, camera and sparse anchors in; depth in metres out. No ROS, no torch."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from briges_ros.alignment.aligner import Aligner, Alignment
from briges_ros.alignment.anchors import Anchors
from briges_ros.alignment.tracker import ScaleEstimate, ScaleState
from briges_ros.camera import CameraModel
from briges_ros.depth_image import (
    depth_from_inverse,
    resize_inverse_depth,
    settle_flying_pixels,
)
from briges_ros.inference.bundle import ModelBundle
from briges_ros.inference.engine import Engine, ImageEngine, Progress
from briges_ros.inference.engine_pool import EnginePool
from briges_ros.inference.preprocess import prepare, to_inverse_depth
from briges_ros.inference.selfcheck import SelfCheck, check_engine, open_checked_engine
from briges_ros.obstacles import ground_of_base
from briges_ros.point_cloud import organised_points

log = logging.getLogger('briges_ros')

# Between two frames, seconds. After a longer gap the segmentation is of another scene.
_SAME_SCENE = 1.0

AnchorSource = Anchors | Callable[[], Anchors | None] | None


@dataclass(frozen=True, eq=False)
class DepthFrame:
    """What the pipeline makes of one image.

    Attributes:
        image: (H, W, 3) uint8 RGB, the input itself.
        relative: (H, W) float32 inverse depth, larger is nearer, up to scale and shift (1/m, as the
            network sees it, if that is a metric one). Refined by the anchors, if there were any.
        depth: (H, W) float32 metres along optical Z; NaN = unknown, +inf = beyond range (REP 118);
            all NaN while the scale is unknown.
        sigma: (H, W) float32 standard deviation of `depth`, metres; NaN where that is unknown, +inf
            where it is beyond range.
        scale: how relative became metres: ``1/z = scale * relative + shift``.
        camera: the camera, or None if none was given.
        timing: milliseconds by stage: preprocess, inference, align, postprocess, total.
    """

    image: NDArray[np.uint8]
    relative: NDArray[np.float32]
    depth: NDArray[np.float32]
    sigma: NDArray[np.float32]
    scale: ScaleEstimate
    camera: CameraModel | None
    timing: dict[str, float]

    def points(self, stride: int = 1) -> NDArray[np.float32]:
        """The organised cloud: (ceil(H/stride), ceil(W/stride), 3) float32 metres.

        In the camera's optical frame (REP 103: x right, y down, z forward); NaN where the depth
        is not finite.

        Raises:
            ValueError: the frame was made without a camera, so the rays are unknown.
        """
        if self.camera is None:
            raise ValueError(
                'points need a camera: pass camera=CameraModel(...) or '
                'CameraModel.from_fov(...) to the pipeline'
            )
        return organised_points(self.depth, self.camera, stride)


class DepthPipeline:
    """Turns images into depth with one loaded model; keeps the scale from frame to frame.

    Use `load`. Not safe for several threads at once.

    Attributes:
        bundle: the model.
        engine: what runs it, checked by `load`.
        selfcheck: how it compared with the bundle's reference the last time; None if nobody has.
    """

    def __init__(
        self,
        bundle: ModelBundle,
        engine: Engine,
        *,
        token_budget: int | None = None,
        min_range: float = 0.1,
        max_range: float = 100.0,
        hold_duration: float = 5.0,
        prior: tuple[float, float] | None = None,
        refinement: bool = True,
        segmentation_every_n_frames: int = 1,
        image_size: tuple[int, int] | None = None,
    ) -> None:
        if not 0.0 < min_range < max_range:
            raise ValueError(f'need 0 < min_range < max_range, got {min_range} and {max_range} m')
        if token_budget is not None and token_budget < 0:
            raise ValueError(f'token_budget must be positive, got {token_budget}')
        if segmentation_every_n_frames < 1:
            raise ValueError(
                f'segmentation_every_n_frames must be 1 or more, got {segmentation_every_n_frames}'
            )
        self.bundle = bundle
        self.engine = engine
        self.selfcheck: SelfCheck | None = None
        self._image_size = image_size
        self.segmentation_every_n_frames = segmentation_every_n_frames
        self._key_frame = _NO_KEY_FRAME
        self.token_budget = token_budget or bundle.token_budget
        self.min_range = min_range
        self.max_range = max_range
        if bundle.output == 'metric_depth' and prior is None:
            prior = (1.0, 0.0)  # the network's own metres, until anchors say better
        self._aligner = Aligner(
            hold_duration=hold_duration,
            prior=prior,
            refinement=refinement,
        )

    @classmethod
    def load(
        cls,
        name_or_path: str | Path,
        backend: str = 'auto',
        *,
        precision: str = 'auto',
        token_budget: int | None = None,
        threads: int = 0,
        min_range: float = 0.1,
        max_range: float = 100.0,
        hold_duration: float = 5.0,
        prior: tuple[float, float] | None = None,
        refinement: bool = True,
        segmentation_every_n_frames: int = 1,
        image_size: tuple[int, int] | None = None,
        progress: Progress | None = None,
        engines: EnginePool | None = None,
    ) -> DepthPipeline:
        """Load a model bundle on a backend and check that it computes what it should.

        Args:
            name_or_path: a bundle's name, e.g. 'compact', or its folder.
            backend: 'auto' for the fastest that computes right, or a name that `briges bench`
                lists.
            precision: 'auto' for the backend's fastest that computes right, or 'int8', 'fp16',
                'bf16' or 'fp32'.
            token_budget: most patches the encoder sees; more is finer and slower. Default: the
                bundle's.
            threads: CPU threads; 0 lets the backend choose.
            min_range: nearer depth is NaN, metres.
            max_range: farther depth is +inf, metres.
            hold_duration: seconds that the last fit may serve without fresh anchors.
            prior: (scale, shift) to fall back on, if the user knows them. Default: none, or
                (1, 0) for a metric network, whose inverse depth is in 1/m.
            refinement: correct the depth around anchors by what they say, and carry that to the
                next frame.
            segmentation_every_n_frames: of a network with a gate: how often the segmentation is
                computed anew; between, that of the last key frame serves.
            image_size: (width, height) of the images, if known: what the backend builds for a size,
                which takes TensorRT minutes, is then built here and not with the first image.
            progress: told how that goes on, here or later.
            engines: of all pipelines of this process that are to share what they load, one for
                each camera. They may then run in a thread each.

        Raises:
            BrigesError: the bundle or the backend does not load, or fails its self-check.
            ValueError: a setting is out of range.
        """
        if image_size is not None and min(image_size) < 1:
            raise ValueError(f'image_size must be (width, height) in pixels, got {image_size}')
        bundle = ModelBundle.load(name_or_path)
        opened = open_checked_engine if engines is None else engines.open
        engine, selfcheck = opened(
            bundle, backend, precision, threads, image_size, token_budget, progress
        )
        pipeline = cls(
            bundle,
            engine,
            token_budget=token_budget,
            min_range=min_range,
            max_range=max_range,
            hold_duration=hold_duration,
            prior=prior,
            refinement=refinement,
            segmentation_every_n_frames=segmentation_every_n_frames,
            image_size=image_size,
        )
        pipeline.selfcheck = selfcheck
        log.info(
            '%s on %s (%s): self-check error %.2g',
            bundle.name,
            engine.name,
            engine.precision,
            selfcheck.relative_error,
        )
        return pipeline

    def __call__(
        self,
        image: NDArray[np.uint8],
        camera: CameraModel | None = None,
        anchors: AnchorSource = None,
        stamp: float | None = None,
        T_base_camera: NDArray[np.float64] | None = None,
    ) -> DepthFrame:
        """Depth of one image.

        Args:
            image: (H, W, 3) uint8 RGB.
            camera: of the image's size. `DepthFrame.points` and `T_base_camera` need it, and
                refinement is better with it while the camera turns.
            anchors: pixels with known depth; or a function that returns them, which is called
                after inference, so that a sensor has had the longest time to deliver.
            stamp: seconds; lets the last fit be held for a while. None = a picture on its own,
                which neither uses nor leaves a held fit.
            T_base_camera: (4, 4), takes points of the optical frame to a base frame whose z = 0 is
                a level floor: for a camera on a vehicle that looks ahead, the scale is taken from
                that floor where the anchors give none (PRIOR). See
                `briges_ros.obstacles.level_camera_pose`.

        Raises:
            BrigesError: the camera is not above the floor.
            ValueError: the image, the camera or the anchors are of another size or type, or the
                stamp is not finite.
        """
        height, width = _checked_size(image, camera)
        if stamp is not None and not math.isfinite(stamp):
            raise ValueError(f'stamp must be seconds or None, got {stamp}')
        self._tell_other_size(width, height)
        ground = None if T_base_camera is None else ground_of_base(T_base_camera)
        clock = _Clock()
        key_frame = self._next_key_frame(image, stamp)
        self._key_frame = _NO_KEY_FRAME  # should the engine fail
        relative = self._relative(image, key_frame.served > 1, clock)
        self._key_frame = key_frame
        found = _checked_anchors(anchors() if callable(anchors) else anchors, width, height)
        alignment = self._aligner.align(image, relative, camera, found, stamp, ground)
        clock.lap('align')
        depth = self._metres(relative, alignment)
        clock.lap('postprocess')
        sigma = self._aligner.remember(image, depth, alignment, camera, stamp)
        clock.lap('align')
        self._settle(alignment, depth, sigma, found)
        clock.lap('postprocess')
        return DepthFrame(
            image, alignment.relative, depth, sigma, alignment.scale, camera, clock.total()
        )

    def _relative(
        self, image: NDArray[np.uint8], reuse_segmentation: bool, clock: _Clock
    ) -> NDArray[np.float32]:
        if isinstance(self.engine, ImageEngine):
            clock.lap('preprocess')  # nothing: it is all on the device, and counted as inference
            relative = self.engine.infer_image(image, self.token_budget, reuse_segmentation)
            clock.lap('inference')
            return relative
        segment = not reuse_segmentation
        inputs = prepare(image, self.bundle, self.token_budget, segmentation=segment)
        clock.lap('preprocess')
        output = self.engine.infer(*inputs)
        clock.lap('inference')
        inverse = to_inverse_depth(output, self.bundle)
        relative = resize_inverse_depth(inverse, image.shape[1], image.shape[0])
        clock.lap('postprocess')
        return relative

    def _settle(
        self,
        alignment: Alignment,
        depth: NDArray[np.float32],
        sigma: NDArray[np.float32],
        anchors: Anchors | None,
    ) -> None:
        """Move what flies between surfaces to one of them; where that is far, it is unknown."""
        scale = alignment.scale
        if scale.state is ScaleState.RELATIVE:
            return
        line = scale.scale, scale.shift
        measured = None if anchors is None else (anchors.u, anchors.v)
        moved, far_off = settle_flying_pixels(alignment.relative, *line, measured)
        before, values = depth.ravel()[moved], alignment.relative.ravel()[moved]
        after = depth_from_inverse(values, *line, self.min_range, self.max_range)
        low, high = scale.relative_range
        if np.isfinite(low):
            far_off |= (values < low) | (values > high)
        after[far_off] = np.nan
        depth.ravel()[moved] = after
        with np.errstate(invalid='ignore'):
            spread = np.hypot(sigma.ravel()[moved], after - before)
        sigma.ravel()[moved] = np.where(np.isinf(after), after, spread)

    def _metres(self, relative: NDArray[np.float32], alignment: Alignment) -> NDArray[np.float32]:
        """Metres of an alignment of what the network says."""
        scale = alignment.scale
        if scale.state is ScaleState.RELATIVE:
            return np.full(relative.shape, np.nan, np.float32)
        line = scale.scale, scale.shift, self.min_range, self.max_range
        if isinstance(self.engine, ImageEngine) and not alignment.refined:
            return self.engine.depth(*line, scale.relative_range)
        depth = depth_from_inverse(alignment.relative, *line)
        low, high = scale.relative_range
        if np.isfinite(low):
            depth[(relative < low) | (relative > high)] = np.nan
        return depth

    def _next_key_frame(self, image: NDArray[np.uint8], stamp: float | None) -> _KeyFrame:
        """The frame whose segmentation is to serve this one: itself, or the last key frame."""
        # A picture on its own has nothing to do with the last.
        if self.bundle.segmentation_input is None or stamp is None:
            return _NO_KEY_FRAME
        key = self._key_frame
        size = image.shape[1], image.shape[0]
        reuse = (
            size == key.size
            and self.token_budget == key.token_budget
            and 0 < key.served < self.segmentation_every_n_frames
            and 0 <= stamp - key.stamp <= _SAME_SCENE
        )
        return _KeyFrame(key.served + 1 if reuse else 1, size, self.token_budget, stamp)

    def _tell_other_size(self, width: int, height: int) -> None:
        """Warn, once, that the images are not of the size that the engine is ready for."""
        expected = self._image_size
        if expected is not None and expected != (width, height):
            log.warning(
                'images are %dx%d, not %dx%d as image_size (of the node: image_width and '
                'image_height) says: the first one takes longer, until you correct it',
                width,
                height,
                *expected,
            )
            self._image_size = None

    def reset_scale(self) -> None:
        """Forget the held fit; the next frame needs fresh anchors."""
        self._aligner.reset()

    def check_engine(self) -> None:
        """Run the self-check of `load` again: does the engine still compute what it should?

        Raises:
            EngineError: it does not.
        """
        self._key_frame = _NO_KEY_FRAME  # the engine's segmentation is the reference's from here on
        self.selfcheck = check_engine(self.engine, self.bundle)


def _checked_anchors(anchors: Anchors | None, width: int, height: int) -> Anchors | None:
    if anchors is None:
        return None
    if anchors.size not in (None, (width, height)):
        raise ValueError(
            f'the anchors belong to an image of {anchors.size[0]}x{anchors.size[1]}, this one '
            f'is {width}x{height}; a depth map of another size is points: Anchors.from_points'
        )
    # Those out of the image must not take the place of those in it.
    return anchors.within(width, height)


def _checked_size(image: NDArray[np.uint8], camera: CameraModel | None) -> tuple[int, int]:
    if not isinstance(image, np.ndarray):
        raise ValueError(f'image must be a NumPy array, got {type(image).__name__}')
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ValueError(
            f'image must be (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}; convert it first'
        )
    height, width = image.shape[:2]
    if camera is not None and (camera.width, camera.height) != (width, height):
        raise ValueError(
            f'camera is {camera.width}x{camera.height}, the image {width}x{height}; '
            'pass the camera of this image, or camera.scaled(width, height)'
        )
    return height, width


@dataclass(frozen=True)
class _KeyFrame:
    """The frame whose segmentation is in use.

    Attributes:
        served: how many frames it served, itself included.
        size: (width, height), pixels.
        token_budget: as it was.
        stamp: of the last frame that it served, seconds.
    """

    served: int
    size: tuple[int, int]
    token_budget: int
    stamp: float


_NO_KEY_FRAME = _KeyFrame(0, (0, 0), 0, -math.inf)


class _Clock:
    """Milliseconds by stage, summed when a stage comes twice."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._laps: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self._laps[stage] = self._laps.get(stage, 0.0) + (now - self._last) * 1e3
        self._last = now

    def total(self) -> dict[str, float]:
        return {**self._laps, 'total': (time.perf_counter() - self._start) * 1e3}
