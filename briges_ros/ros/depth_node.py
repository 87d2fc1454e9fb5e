"""The executable `depth_node`: start, spin, and end with code 0 when asked to stop.

Several cameras are several nodes in one process, which share what they load.
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rclpy.executors import Executor

    from briges_ros.ros.lifecycle_node import DepthNode

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def main(args: Sequence[str] | None = None) -> int:
    """Run a node for each camera until SIGINT or SIGTERM.

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
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.signals import SignalHandlerOptions
        from rclpy.utilities import remove_ros_args, try_shutdown

        from briges_ros.inference.engine_pool import EnginePool
        from briges_ros.ros.lifecycle_node import DepthNode
    except ImportError as error:
        return _refuse(
            f'{error}: ROS 2 is not in the environment; source its setup.bash, or run: make node'
        )

    arguments = list(sys.argv if args is None else args)
    try:
        init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
        cameras = _parser().parse_args(remove_ros_args(arguments)[1:]).cameras
        engines = EnginePool()
        nodes = [DepthNode(engines, namespace) for namespace in cameras or [None]]
        names = {node.get_fully_qualified_name() for node in nodes}
        if len(names) < len(nodes):  # also where __ns is remapped, for that is for all nodes
            raise ValueError(
                f'two cameras are both {min(names)}: give each of --cameras another namespace, '
                'and do not remap __ns'
            )
    except Exception as error:  # whatever rcl makes of a bad command line or parameter file
        try_shutdown()
        return _refuse(error)

    stop = threading.Event()
    # One for each node: while a camera loads its model, the others go on.
    executors = [SingleThreadedExecutor() for _ in nodes]
    for executor, node in zip(executors, nodes, strict=True):
        executor.add_node(node)

    def take_signals() -> None:
        signal.sigwait(_STOP_SIGNALS)
        stop.set()
        for executor, node in zip(executors, nodes, strict=True):
            node.interrupt()
            executor.create_task(lambda: None)  # wakes spin_once
        while True:
            signal.sigwait(_STOP_SIGNALS)  # already stopping

    threading.Thread(target=take_signals, name='signals', daemon=True).start()
    lives = [
        threading.Thread(target=_live, args=(node, executor, stop), name=node.get_namespace())
        for executor, node in zip(executors, nodes, strict=True)
    ]
    for life in lives:
        life.start()
    for life in lives:
        life.join()
    for executor, node in zip(executors, nodes, strict=True):
        node.close()
        executor.shutdown()
        node.destroy_node()
    try_shutdown()
    return 0


def _live(node: DepthNode, executor: Executor, stop: threading.Event) -> None:
    """Spin a node until all are to stop."""
    from rclpy.executors import ExternalShutdownException

    from briges_ros.ros.throttle import ThrottledLog

    log = ThrottledLog(node.get_logger())
    node.autostart()
    # Not spin_until_future_complete: it leaves a callback in the future each time round.
    while not stop.is_set():
        try:
            executor.spin_once()
        except ExternalShutdownException:
            break
        except Exception:  # a callback of ours failed: the node outlives it
            log.error(f'internal error:\n{traceback.format_exc()}')


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='depth_node',
        description='Metric depth for a camera, or for several in one process.',
        epilog='Parameters, remappings and the like come after --ros-args; see docs/parameters.md. '
        'Without --cameras there is one node, /depth.',
        allow_abbrev=False,
    )
    parser.add_argument(
        '--cameras',
        nargs='+',
        metavar='NAMESPACE',
        type=_namespace,
        help='a node in each of these namespaces, e.g. front rear: /front/depth takes /front/image '
        'and publishes /front/depth/image. The model is loaded once for all',
    )
    return parser


def _namespace(text: str) -> str:
    if not re.fullmatch(r'/?[A-Za-z_]\w*(/[A-Za-z_]\w*)*', text, re.ASCII):
        raise argparse.ArgumentTypeError(
            f'{text!r} is no namespace: it takes letters, digits, _ and /, e.g. front'
        )
    return text


def _refuse(error: Exception | str) -> int:
    sys.stderr.write(f'depth_node: {str(error).splitlines()[0]}\n')
    return 2


if __name__ == '__main__':
    sys.exit(main())
