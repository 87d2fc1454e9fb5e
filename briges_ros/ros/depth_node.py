"""The executable `depth_node`: start, spin, and end with code 0 when asked to stop."""

from __future__ import annotations

import signal
import sys
import threading
import traceback
from collections.abc import Sequence

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def main(args: Sequence[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM.

    Both signals are blocked in every thread and taken by one that waits for them, so that no
    number of them, at no moment, interrupts the clean-up: `ros2 launch` sends SIGINT a second
    time, and a KeyboardInterrupt would turn the exit code to -2.

    Args:
        args: command line with the program's name; default: sys.argv.

    Returns:
        0; 2 if ROS is missing, or the command line or a parameter cannot be had.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    # Not before: importing takes a second, in which Ctrl-C would end in a traceback.
    try:
        from rclpy import init
        from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
        from rclpy.signals import SignalHandlerOptions
        from rclpy.utilities import try_shutdown

        from briges_ros.errors import BrigesError
        from briges_ros.ros.lifecycle_node import DepthNode
    except ImportError as error:
        return _refuse(
            f'{error}: ROS 2 is not in the environment; source its setup.bash, or run: make node'
        )

    try:
        init(
            args=None if args is None else list(args),
            signal_handler_options=SignalHandlerOptions.NO,
        )
    except Exception as error:  # whatever rcl makes of a bad command line or parameter file
        return _refuse(error)
    try:
        node = DepthNode()
    except BrigesError as error:
        try_shutdown()
        return _refuse(error)

    executor = SingleThreadedExecutor()
    executor.add_node(node)
    stop = threading.Event()

    def take_signals() -> None:
        signal.sigwait(_STOP_SIGNALS)
        stop.set()
        node.interrupt()
        executor.create_task(lambda: None)  # wakes spin_once
        while True:
            signal.sigwait(_STOP_SIGNALS)  # already stopping

    threading.Thread(target=take_signals, name='signals', daemon=True).start()
    node.autostart()
    # Not spin_until_future_complete: it leaves a callback in the future each time round.
    while not stop.is_set():
        try:
            executor.spin_once()
        except ExternalShutdownException:
            break
        except Exception:  # a callback of ours failed: the node outlives it
            node.get_logger().error(f'internal error:\n{traceback.format_exc()}')
    node.close()
    executor.shutdown()
    node.destroy_node()
    try_shutdown()
    return 0


def _refuse(error: Exception | str) -> int:
    sys.stderr.write(f'depth_node: {str(error).splitlines()[0]}\n')
    return 2


if __name__ == '__main__':
    sys.exit(main())
