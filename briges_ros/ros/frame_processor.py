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
from briges_ros.ros.transforms import Transforms

_SUSPICIOUS = 3  # frames that fail in a row, before the engine is asked whether it still works
_BETWEEN_CHECKS = 10.0  # s
_ZOOM = 0.01  # relative change of the focal length that makes another camera
_SAME_PLACE = 1.0  # s between frames; after more, the ground may be another
_LOOP = 1.0  # s; stamps that go back by more mean that time began again


class FrameProcessor:
    """Takes an image through conversion, the pipeline and publication.

    Args:
        pipeline: the loaded pipeline.
        camera_input, sparse_inputs, mount, transforms, outputs: of the node.
        settings: returns the parameters in force; asked once per frame.
        health: counted into.
        log: for what is wrong with the messages.

    Attributes:
        dead: why the backend is taken for dead; '' as long as it is not. After that, images are
            dropped.
    """

    def __init__(
        self,
        pipeline: DepthPipeline,
        camera_input: CameraInput,
        sparse_inputs: SparseInputs,
        mount: CameraMount,
        transforms: Transforms,
        outputs: Outputs,
        settings: Callable[[], Settings],
        health: Health,
        log: ThrottledLog,
    ) -> None:
        self.dead = ''
        self._pipeline = pipeline
        self._camera_input = camera_input
        self._sparse_inputs = sparse_inputs
        self._mount = mount
        self._transforms = transforms
        self._outputs = outputs
        self._settings = settings
        self._health = health
        self._log = log
        self._reset = False
        self._failed_in_a_row = 0
        self._next_check = -math.inf
        # In use: frame_id, width and height, or nothing yet; focal length.
        self._camera: tuple[tuple[str, int, int] | None, float] = None, 0.0
        self._last_stamp = -math.inf

    def reset_scale(self) -> None:
        """Forget the held scale before the next frame; callable from any thread."""
        self._reset = True

    def __call__(self, message: ImageMessage) -> None:
        """Process one image message."""
        health = self._health
        if self.dead:
            health.counters.failed += 1
            return
        health.busy_since = time.monotonic()
        try:
            self._process(message)
        except EngineError as error:
            self._drop(str(error))
            self._suspect()
        except BrigesError as error:
            health.counters.malformed += 1
            self._drop(str(error))
        except Exception as error:  # the node outlives any frame
            self._drop(
                f'an internal error, please report it: {type(error).__name__}: {error}',
                traceback.format_exc(),
            )
            self._suspect()
        finally:
            health.busy_since = None

    def _drop(self, why: str, trace: str = '') -> None:
        """Report that the image is dropped."""
        text = f"image of '{self._camera_input.topics.image}' dropped: {why}"
        self._health.error = text
        self._health.dropped_in_a_row += 1
        self._log.error(f'{text}\n{trace}' if trace else text)

    def _suspect(self) -> None:
        """Count a frame that failed; after some in a row ask the engine whether it still works.

        What the images have to do with it (too large for the memory, say) no text tells for every
        backend. The reference of the self-check, which the engine did run, does.
        """
        self._health.counters.failed += 1
        self._failed_in_a_row += 1
        now = time.monotonic()
        if self._failed_in_a_row < _SUSPICIOUS or now < self._next_check:
            return
        self._next_check = now + _BETWEEN_CHECKS
        try:
            self._pipeline.check_engine()
        except Exception as error:
            self.dead = ' '.join(str(error).split()) or type(error).__name__
        else:
            self._log.warning(
                f'{self._failed_in_a_row} images in a row failed, and the engine passes its '
                'self-check: it is these images that it does not run'
            )

    def _process(self, message: ImageMessage) -> None:
        started = time.monotonic()
        counters = self._health.counters
        if self._reset:
            self._reset = False
            self._pipeline.reset_scale()
        wanted = self._outputs.wanted()
        self._health.idle = not wanted
        if not wanted:
            counters.unwanted += 1
            self._health.error, self._health.dropped_in_a_row = '', 0
            return
        settings = self._settings()
        image, view = self._camera_input.look(message, settings)
        self._tell_camera(view.note)
        context = FrameContext(
            header=message.header,
            taken_up=started,
            camera=view.camera,
            settings=settings,
            undistortion=view.undistortion,
        )
        apply_settings(self._pipeline, settings)
        self._forget_what_is_over(context)
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
        decode_ms = (decoded - started) * 1e3
        computed = time.monotonic()
        self._outputs.publish(
            frame,
            Source(
                header=message.header,
                info=view.info,
                started=started,
                decode_ms=decode_ms,
                T_base_camera=pose,
            ),
            settings,
            wanted,
            self._health,
        )
        published = time.monotonic()
        self._health.latency = {
            **frame.timing,
            'preprocess': decode_ms + frame.timing['preprocess'],
            'publish': (published - computed) * 1e3,
            'total': (published - started) * 1e3,
        }
        self._health.error, self._health.dropped_in_a_row = '', 0
        self._failed_in_a_row = 0

    def _forget_what_is_over(self, context: FrameContext) -> None:
        """Drop what was learned from another camera, or in a time that is over.

        Of another camera nothing holds, however its images look. In a time that began again (a bag
        that is played in a loop) TF would refuse all that is older than what it has.
        """
        plain = context.header.frame_id, context.camera.width, context.camera.height
        focal_length = self._camera_input.focal_length
        known, before = self._camera
        # One that calibrates itself as it goes is still the same.
        if plain != known or not math.isclose(focal_length, before, rel_tol=_ZOOM):
            if known is not None:
                self._pipeline.reset_scale()
                self._outputs.forget()
                self._log.info('another camera: the scale starts anew')
            self._camera = plain, focal_length
        since = context.stamp - self._last_stamp
        if not 0 <= since <= _SAME_PLACE:
            self._outputs.forget()
        if since < -_LOOP:
            self._transforms.forget()
            self._log.info('the stamps of the images went back: time begins again')
        self._last_stamp = context.stamp

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
