"""One image message in, one set of outputs out. Runs in the worker's thread and never raises."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable

import numpy as np

from briges_ros.alignment.anchors import Anchors
from briges_ros.alignment.tracker import ScaleEstimate, ScaleState
from briges_ros.errors import BrigesError
from briges_ros.inference.engine import EngineError
from briges_ros.pipeline import DepthPipeline
from briges_ros.ros.camera_input import CameraInput, ImageMessage
from briges_ros.ros.camera_mount import CameraMount
from briges_ros.ros.health import Health
from briges_ros.ros.outputs import OVER_GROUND, Outputs, Source
from briges_ros.ros.parameters import Settings
from briges_ros.ros.sparse_inputs import FrameContext, SparseInputs
from briges_ros.ros.throttle import ThrottledLog


class FrameProcessor:
    """Takes an image through conversion, the pipeline and publication.

    Args:
        pipeline: the loaded pipeline.
        camera_input, sparse_inputs, mount, outputs: of the node.
        settings: returns the parameters in force; asked once per frame.
        health: counted into.
        log: for what is wrong with the messages.
    """

    def __init__(
        self,
        pipeline: DepthPipeline,
        camera_input: CameraInput,
        sparse_inputs: SparseInputs,
        mount: CameraMount,
        outputs: Outputs,
        settings: Callable[[], Settings],
        health: Health,
        log: ThrottledLog,
    ) -> None:
        self._pipeline = pipeline
        self._camera_input = camera_input
        self._sparse_inputs = sparse_inputs
        self._mount = mount
        self._outputs = outputs
        self._settings = settings
        self._health = health
        self._log = log
        self._reset = False

    def reset_scale(self) -> None:
        """Forget the held scale before the next frame; callable from any thread."""
        self._reset = True

    def __call__(self, message: ImageMessage) -> None:
        """Process one image message."""
        try:
            self._process(message)
        except BrigesError as error:
            if isinstance(error, EngineError):
                self._health.counters.failed += 1
            else:
                self._health.counters.malformed += 1
            self._log.error(f"image of '{self._camera_input.topics.image}' dropped: {error}")
        except Exception as error:  # the node outlives any frame
            self._health.counters.failed += 1
            self._log.error(
                f"image of '{self._camera_input.topics.image}' dropped after an internal error, "
                f'{type(error).__name__}; please report this:\n{traceback.format_exc()}'
            )

    def _process(self, message: ImageMessage) -> None:
        started = time.monotonic()
        counters = self._health.counters
        if self._reset:
            self._reset = False
            self._pipeline.reset_scale()
        wanted = self._outputs.wanted()
        if not wanted:
            counters.unwanted += 1
            return
        settings = self._settings()
        image, view = self._camera_input.look(message, settings)
        self._tell_camera(view.note)
        context = FrameContext(
            header=message.header,
            camera=view.camera,
            settings=settings,
            undistortion=view.undistortion,
        )
        apply_settings(self._pipeline, settings)
        pose = None
        if wanted & OVER_GROUND or settings.prior_ground:
            pose = self._mount.pose(settings, message.header.frame_id, message.header.stamp)
        decoded = time.monotonic()
        frame = self._pipeline(
            image,
            camera=view.camera,
            anchors=lambda: visible(self._sparse_inputs.anchors(context), view.blind),
            stamp=context.stamp,
            T_base_camera=pose if settings.prior_ground else None,
        )
        if view.blind is not None:
            for values in (frame.relative, frame.depth, frame.sigma):
                np.copyto(values, np.float32(math.nan), where=view.blind)
        counters.processed += 1
        self._health.scale = frame.scale
        self._health.sparse = self._sparse_inputs.note
        self._health.sources = self._sparse_inputs.reports
        self._tell_state(frame.scale)
        self._outputs.publish(
            frame,
            Source(
                header=message.header,
                info=view.info,
                started=started,
                decode_ms=(decoded - started) * 1e3,
                T_base_camera=pose,
            ),
            settings,
            wanted,
            self._health,
        )

    def _tell_camera(self, note: str) -> None:
        """Log what is assumed of the camera, once."""
        if note and note != self._health.camera:
            self._log.warning(note)
        self._health.camera = note

    def _tell_state(self, scale: ScaleEstimate) -> None:
        """Log when the scale becomes known, and when it is lost."""
        if not scale.changed:
            return
        if scale.state is ScaleState.METRIC:
            self._log.info(f'scale METRIC, depth is in metres: {scale.reason}')
        else:
            self._log.warning(f'scale {scale.state.name}: {self._health.scale_reason()}')


def visible(anchors: Anchors | None, blind: np.ndarray | None) -> Anchors | None:
    """Return the anchors without those of blind pixels, whose relative depth is of nothing."""
    if anchors is None or blind is None:
        return anchors
    columns = np.rint(anchors.u).astype(np.intp).clip(0, blind.shape[1] - 1)
    rows = np.rint(anchors.v).astype(np.intp).clip(0, blind.shape[0] - 1)
    return anchors.take(~blind[rows, columns])


def apply_settings(pipeline: DepthPipeline, settings: Settings) -> None:
    """Hand the parameters that may change at any time to the pipeline."""
    pipeline.min_range = settings.depth_min_range
    pipeline.max_range = settings.depth_max_range
    pipeline.segmentation_every_n_frames = settings.segmentation_every_n_frames
    pipeline.token_budget = settings.token_budget or pipeline.bundle.token_budget
