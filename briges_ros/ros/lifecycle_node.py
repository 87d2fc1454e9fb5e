"""The managed node `depth`: life cycle and wiring. What it does with a frame is in its neighbours.

    unconfigured -- configure --> inactive      model loaded, publishers there
    inactive     -- activate  --> active        subscriptions and worker there

and back by deactivate and cleanup. A configure that fails leaves nothing loaded and can be tried
again. A backend that fails while the node is active takes it through error processing to
unconfigured, and from there the node comes back by itself: see `recovery`.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.utilities import get_rmw_implementation_identifier
from std_srvs.srv import Trigger

from briges_ros.errors import BrigesError
from briges_ros.inference.engine_pool import EnginePool
from briges_ros.pipeline import DepthPipeline
from briges_ros.ros.camera_input import CameraInput, ImageMessage
from briges_ros.ros.camera_mount import CameraMount
from briges_ros.ros.compat import ClockType
from briges_ros.ros.frame_processor import FrameProcessor
from briges_ros.ros.frame_worker import FrameWorker
from briges_ros.ros.health import Counters, Health, diagnostics
from briges_ros.ros.log_bridge import forward_library_log
from briges_ros.ros.outputs import Outputs
from briges_ros.ros.parameters import BY_NAME, NodeParameters, Settings
from briges_ros.ros.services import answer_always
from briges_ros.ros.sparse_inputs import SparseInputs
from briges_ros.ros.throttle import ThrottledLog
from briges_ros.ros.transforms import Transforms

_PATIENCE = 3.0  # s without an image before the node says so
_DIAGNOSTICS_PERIOD = 1.0  # s
_PROFILE_VARIABLES = ('FASTRTPS_DEFAULT_PROFILES_FILE', 'FASTDDS_DEFAULT_PROFILES_FILE')

_SUCCESS = TransitionCallbackReturn.SUCCESS
_FAILURE = TransitionCallbackReturn.FAILURE
_ERROR = TransitionCallbackReturn.ERROR


class _StoppedError(BrigesError):
    """The node is to stop. No `EngineError`: that would have the next engine tried."""


class DepthNode(LifecycleNode):
    """Publishes metric depth for a camera.

    Callbacks run in the executor's thread and only store; `FrameWorker` computes in its own.

    Args:
        engines: of all nodes of the process that are to share what they load.
        namespace: of the node; default: that of the command line.

    Raises:
        ParameterError: a parameter given at start cannot be had.
    """

    def __init__(self, engines: EnginePool | None = None, namespace: str | None = None) -> None:
        super().__init__('depth', namespace=namespace)
        self._engines = engines
        forward_library_log(self.get_logger())
        self._log = ThrottledLog(self.get_logger())
        self._node_parameters = NodeParameters(self)
        self._warn_of_unknown_parameters()
        self._health = Health(Counters())
        self._recovery = self._health.recovery
        self._pipeline: DepthPipeline | None = None
        self._outputs: Outputs | None = None
        self._inputs: _Inputs | None = None
        self._interrupted = False
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        self.create_service(Trigger, '~/reset_scale', self._reset_scale)
        self._leave_recovery_to_others()
        answer_always(self, self._log)
        # Steady: with simulated time a paused clock must not silence the node.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(_DIAGNOSTICS_PERIOD, self._tick, clock=steady)

    def autostart(self) -> None:
        """Configure and activate if the parameter says so."""
        if self._node_parameters.settings().autostart and self.trigger_configure() == _SUCCESS:
            self.trigger_activate()

    def interrupt(self) -> None:
        """Stop building an engine, so that the node can be closed; callable from any thread."""
        self._interrupted = True

    def close(self) -> None:
        """Free everything, whatever the state."""
        try:
            self.trigger_shutdown()
        except Exception:  # finalized already
            self._release()

    # ---- life cycle ------------------------------------------------------------------------------

    def on_configure(self, _: LifecycleState) -> TransitionCallbackReturn:
        """Load the model and create the publishers."""
        self._health.state, self._health.fault = 'configuring', ''
        with self._diagnostics_meanwhile():
            return self._attempt('configure', self._configure, self._release)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe and start the worker."""

        def activate() -> None:
            super(DepthNode, self).on_activate(state)
            self._activate()

        def undo() -> None:
            self._deactivate()
            super(DepthNode, self).on_deactivate(state)

        return self._attempt('activate', activate, undo)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Drop the subscriptions and stop the worker."""
        self._deactivate()
        self._health.state = 'inactive'
        super().on_deactivate(state)
        return _ERROR if self._recovery.pending else _SUCCESS

    def on_cleanup(self, _: LifecycleState) -> TransitionCallbackReturn:
        """Free the model and the publishers."""
        self._release()
        return _SUCCESS

    def on_shutdown(self, _: LifecycleState) -> TransitionCallbackReturn:
        """Free everything."""
        self._recovery.stop()
        self._release()
        self._health.state = 'finalized'
        return _SUCCESS

    def on_error(self, _: LifecycleState) -> TransitionCallbackReturn:
        """Free everything; the node can be configured again."""
        self._release()
        return _SUCCESS

    def _attempt(
        self, name: str, action: Callable[[], None], undo: Callable[[], None]
    ) -> TransitionCallbackReturn:
        """Do a transition; undo it, say why and return FAILURE if it does not work.

        rclpy would swallow the exception.
        """
        try:
            action()
        except BrigesError as error:
            why = f'{name} failed: {error}'
        except Exception as error:
            why = f'{name} failed on an internal error: {type(error).__name__}: {error}'
            self.get_logger().error(traceback.format_exc())
        else:
            self._health.fault = ''
            return _SUCCESS
        undo()
        self.get_logger().error(why)
        self._health.fault = why
        return _FAILURE

    def _configure(self) -> None:
        settings = self._node_parameters.settings()
        self._pipeline = DepthPipeline.load(
            settings.model,
            settings.backend,
            precision=settings.precision,
            token_budget=settings.token_budget or None,
            threads=settings.threads,
            min_range=settings.depth_min_range,
            max_range=settings.depth_max_range,
            hold_duration=settings.hold_duration,
            prior=settings.prior,
            refinement=settings.refinement,
            image_size=settings.image_size,
            progress=self._tell_build,
            engines=self._engines,
        )
        self._outputs = Outputs(self, settings.output_qos == 'reliable', self._log)
        self._node_parameters.configured = True
        self._health.state = 'inactive'
        self._health.model = self._pipeline.bundle.name
        self._health.engine = self._pipeline.engine.name
        self._health.precision = self._pipeline.engine.precision
        if self._pipeline.selfcheck is not None:
            self._health.selfcheck = self._pipeline.selfcheck.relative_error
        self._warn_of_missing_profile()

    def _activate(self) -> None:
        assert self._pipeline is not None and self._outputs is not None
        self._health.begin()
        self._inputs = _Inputs(
            self,
            self._pipeline,
            self._outputs,
            self._node_parameters.settings,
            self._health,
            self._log,
        )
        self._health.state = 'active'
        topics = self._inputs.camera.topics
        self.get_logger().info(f"active: waiting for '{topics.image}' and '{topics.camera_info}'")

    def _deactivate(self) -> None:
        if self._inputs is not None:
            self._inputs.close()
            self._inputs = None
        self._health.silence = ''

    def _release(self) -> None:
        self._deactivate()
        if self._outputs is not None:
            self._outputs.close()
            self._outputs = None
        self._pipeline = None
        self._node_parameters.configured = False
        self._health.state = 'unconfigured'
        self._health.warnings = ()

    # ---- a backend that fails --------------------------------------------------------------------

    def _fail(self, why: str) -> None:
        """Go through error processing to unconfigured, and plan the return.

        A state machine of ROS takes an error from a transition only, so deactivate reports it.
        """
        self._recovery.failed(why)
        self.get_logger().error(str(self._recovery))
        self._health.fault = f'the backend failed: {why}'
        self.trigger_deactivate()

    def _try_again(self) -> None:
        """Configure and activate, or plan the next try."""
        self.get_logger().info('the backend failed: trying again')
        if self.trigger_configure() == _SUCCESS:
            if self.trigger_activate() == _SUCCESS:
                self._recovery.succeeded()
                return
            self.trigger_cleanup()
        self._recovery.failed(self._health.fault or 'the log says why')
        self.get_logger().error(str(self._recovery))

    def _leave_recovery_to_others(self) -> None:
        """Do not return by ourselves once somebody asks for a transition, whichever it is."""
        service = self._service_change_state
        change_state = service.callback

        def asked(request: Any, response: Any) -> Any:
            if self._recovery.pending:
                self._recovery.stop()
                self.get_logger().info('a transition was asked for: no more tries of our own')
            return change_state(request, response)

        service.callback = asked

    # ---- the rest --------------------------------------------------------------------------------

    def _reset_scale(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._pipeline is None:
            response.success = False
            response.message = 'there is no scale: the node is not configured'
            return response
        if self._inputs is not None:
            self._inputs.process.reset_scale()
        else:
            self._pipeline.reset_scale()
        response.success = True
        response.message = 'the next image needs fresh sparse measurements, or has no metres'
        return response

    def _tick(self) -> None:
        if self._inputs is not None and self._inputs.process.dead:
            self._fail(self._inputs.process.dead)
        elif self._recovery.due:
            self._try_again()
        self._look_around()
        self._publish_diagnostics()

    def _look_around(self) -> None:
        """See whether the others send what we want, and want what we send."""
        warnings: list[str] = []
        if self._outputs is not None:
            warnings += self._outputs.deaf_subscribers()
        if self._inputs is not None:
            warnings += self._inputs.sparse.strangers()
            self._health.silence = self._inputs.camera.silence(_PATIENCE)
        if self.get_clock().now().nanoseconds == 0:
            warnings.append("'use_sim_time' is set, and nothing came on '/clock' yet")
        self._health.warnings = tuple(warnings)
        for text in filter(None, (*warnings, self._health.silence)):
            self._log.warning(text)

    def _publish_diagnostics(self) -> None:
        self._diagnostics.publish(
            diagnostics(
                self._health, self.get_fully_qualified_name(), self.get_clock().now().to_msg()
            )
        )

    @contextlib.contextmanager
    def _diagnostics_meanwhile(self) -> Iterator[None]:
        """Go on publishing diagnostics while the executor's thread is busy, or does not spin yet.

        Only this, and only on configure: all other callbacks keep to one thread.
        """
        over = threading.Event()

        def publish() -> None:
            while not over.wait(_DIAGNOSTICS_PERIOD):
                self._publish_diagnostics()

        thread = threading.Thread(target=publish, name='diagnostics', daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _tell_build(self, graph: str, done: float) -> None:
        """Take in how far a build is; see `briges_ros.inference.engine.Progress`."""
        self._health.build = f'{100 * done:.0f} % of {graph}' if done < 1 else ''
        if self._interrupted:
            raise _StoppedError(f'the node is being stopped, while it builds {graph}')

    def _warn_of_unknown_parameters(self) -> None:
        """Name overrides that no parameter takes: ROS ignores a misspelt one silently."""
        for name in getattr(self, '_parameter_overrides', {}):
            if not self.has_parameter(name) and not name.startswith('qos_overrides.'):
                near = difflib.get_close_matches(name, BY_NAME, 1)
                hint = f"; did you mean '{near[0]}'?" if near else ''
                self.get_logger().warning(f"parameter '{name}' is unknown and ignored{hint}")

    def _warn_of_missing_profile(self) -> None:
        if get_rmw_implementation_identifier().startswith('rmw_fastrtps') and not any(
            os.environ.get(name) for name in _PROFILE_VARIABLES
        ):
            self.get_logger().warning(
                'Fast DDS runs with its default profile, which loses most messages over 512 KB '
                f'between processes: set {_PROFILE_VARIABLES[0]} and {_PROFILE_VARIABLES[1]} to '
                'config/fastdds_large_messages.xml of this package (the launch file does)'
            )


class _Inputs:
    """What exists only while the node is active."""

    def __init__(
        self,
        node: LifecycleNode,
        pipeline: DepthPipeline,
        outputs: Outputs,
        settings: Callable[[], Settings],
        health: Health,
        log: ThrottledLog,
    ) -> None:
        self._health = health
        self.transforms = Transforms(node)
        self.sparse = SparseInputs(node, self.transforms, log)
        self.camera = CameraInput(node, settings, self._receive)
        self.process = FrameProcessor(
            pipeline,
            self.camera,
            self.sparse,
            CameraMount(self.transforms, log),
            self.transforms,
            outputs,
            settings,
            health,
            log,
        )
        self.worker: FrameWorker[ImageMessage] = FrameWorker(self.process)

    def close(self) -> None:
        """Take no more images, wait for the frame in flight, then drop what it may need."""
        self.camera.close()
        self.worker.stop()
        self.sparse.close()
        self.transforms.close()

    def _receive(self, message: ImageMessage) -> None:
        self._health.counters.received += 1
        if self.worker.put(message):
            self._health.counters.superseded += 1
