"""What the ROS side of the node costs, over real DDS between processes.

A driver process publishes a 640x480 rgb8 image, its camera_info and a few hundred sparse points, as
a camera driver would; the node makes metric depth of it; a consumer process subscribes to
depth/image (32FC1) and depth/points (xyzrgb, organised). In turns, in the same run, the
straightforward node beside this file does the same, with the same pipeline, and so does the bare
pipeline, called in a process without ROS.

CPU 'around' is all the CPU time of the node's process, whatever the thread, between the starts of
two frames, less what the thread of the pipeline spends in `DepthPipeline.__call__`; the time that
the sparse message takes to become anchors, which happens in there, counts as around. So it has the
taking of the messages, the executor, discovery, timers, the conversions, the cloud and the
publishing. Latency 'added' is the time from just before the driver publishes the image until the
consumer has the output, less the time of this very frame in the pipeline, anchors again apart. All
run on one thread, which is what OpenCV and the engine are told.

    source scripts/env.sh
    OMP_NUM_THREADS=1 python benchmarks/node.py [--frames 10000] [--output FILE.json]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import struct
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from briges_ros import Anchors, DepthPipeline
from briges_ros.cli.demo_data import load_picking_bin

OURS, ARRAY, LIST, BARE = 'briges_ros', 'create_cloud(array)', 'create_cloud(list)', 'bare pipeline'
SMALL = {'model': 'compact', 'token_budget': 50, 'threads': 1}  # a network that is soon done
SLOW = {**SMALL, 'token_budget': 900}
MEASURED = {
    'cpu_around': 'CPU around',
    'cpu_anchors': 'of which anchors',
    'cpu_pipeline': 'CPU in the pipeline',
    'pipeline': 'time in the pipeline',
    'image': 'added until depth/image',
    'before': 'of which before the pipeline',
    'cloud': 'added until depth/points',
}
FRAMES, GAP = 30, 0.03  # of a turn; s between an answer and the next frame
RATE_HZ, STREAM_SECONDS = 60, 20
WARM_FRAMES = 500  # until buffers and the shared memory of DDS have been touched
POINTS_AHEAD = 0.005  # s
PATIENCE = 3.0  # s; a frame that takes longer is lost
# Of a call of the pipeline, in seconds: when it begins and ends, how long it lasts, CPU time of the
# process as it begins, CPU time that its thread spends in it, and in making anchors of the sparse
# message. The last is no part of the others.
CALL = ('begun', 'ended', 'lasted', 'process', 'cpu', 'cpu_anchors')
CONTEXT = multiprocessing.get_context('spawn')


class Ledger:
    """What a process notes of each call of its pipeline, in memory that it shares with this one."""

    def __init__(self) -> None:
        self._count = CONTEXT.RawValue('q')
        self._rows = CONTEXT.RawArray('d', len(CALL) << 15)

    def __len__(self) -> int:
        return int(self._count.value)

    def since(self, first: int) -> np.ndarray:
        """(N,) records of the calls from `first` on."""
        rows = np.array(self._rows[len(CALL) * first : len(CALL) * len(self)])
        return rows.view([(name, float) for name in CALL])

    def meter(self) -> None:
        """Note every call of a pipeline in this process from now on."""
        plain = DepthPipeline.__call__

        def metered(
            pipeline: DepthPipeline,
            image: np.ndarray,
            camera: Any = None,
            anchors: Any = None,
            *rest: Any,
            **named: Any,
        ) -> Any:
            sparse = np.zeros(2)

            def timed() -> Any:
                begin = np.array(clocks())
                found = anchors()
                sparse[:] = clocks() - begin
                return found

            begun, process, begin = time.time(), time.process_time(), np.array(clocks())
            frame = plain(
                pipeline, image, camera, timed if callable(anchors) else anchors, *rest, **named
            )
            wall, cpu = clocks() - begin - sparse
            row = begun, time.time(), wall, process, cpu, sparse[1]
            first = len(CALL) * len(self)
            self._rows[first : first + len(CALL)] = row
            self._count.value += 1
            return frame

        DepthPipeline.__call__ = metered  # type: ignore[method-assign]


def clocks() -> tuple[float, float]:
    """Wall-clock time, and CPU time of this thread, in seconds."""
    return time.perf_counter(), time.thread_time()


# ---- the processes -------------------------------------------------------------------------------


def serve(kind: str, namespace: str, parameters: dict[str, Any], ledger: Ledger) -> None:
    """Run a node until SIGTERM."""
    cv2.setNumThreads(1)
    ledger.meter()
    if kind == OURS:
        from briges_ros.ros import depth_node

        values = {**parameters, 'autostart': True, 'backend': 'openvino'}
        assigned = [part for name, value in values.items() for part in ('-p', f'{name}:={value}')]
        sys.exit(depth_node.main(['', '--ros-args', '-r', f'__ns:={namespace}', *assigned]))
    import rclpy
    from straightforward_node import StraightforwardNode

    rclpy.init(args=['', '--ros-args', '-r', f'__ns:={namespace}'])
    with contextlib.suppress(Exception):  # it is being stopped
        rclpy.spin(StraightforwardNode(load(parameters), as_list=kind == LIST))


def load(parameters: dict[str, Any]) -> DepthPipeline:
    """The pipeline of a node with these parameters."""
    rest = {name: value for name, value in parameters.items() if name != 'model'}
    return DepthPipeline.load(parameters['model'], 'openvino', **rest)


def run_bare(connection: Connection, parameters: dict[str, Any], ledger: Ledger) -> None:
    """Answer each request by one call of the pipeline, until SIGTERM."""
    cv2.setNumThreads(1)
    data = load_picking_bin()
    frame, pipeline = data.frames[0], load(parameters)
    ledger.meter()
    while True:
        stamp = connection.recv()
        anchors = Anchors.from_points(frame.points, data.camera)
        pipeline(frame.image.copy(), data.camera, anchors, stamp)
        connection.send(True)


def drive(connection: Connection, namespaces: list[str]) -> None:
    """Publish on request, as a depth sensor and, a little later, a camera driver would.

    A request is (namespace, frames, rate in Hz); answered with the stamps in ns, which are of just
    before the image is published.
    """
    import rclpy
    from rclpy.qos import QoSProfile
    from std_msgs.msg import Header

    from briges_ros.ros.conversions import array_to_image
    from briges_ros.ros.playback import CAMERA_FRAME, camera_info_message, cloud_message

    rclpy.init()
    node = rclpy.create_node('driver')
    data = load_picking_bin()
    header = Header(frame_id=CAMERA_FRAME)
    messages = {
        'image': array_to_image(data.frames[0].image, 'rgb8', header),
        'camera_info': camera_info_message(data.camera, header),
        'sparse/points': cloud_message(data.frames[0].points, header),
    }
    publishers = {
        (namespace, topic): node.create_publisher(
            type(message), f'{namespace}/{topic}', QoSProfile(depth=5)
        )
        for namespace in namespaces
        for topic, message in messages.items()
    }

    def publish(namespace: str, *topics: str) -> int:
        now = time.time_ns()
        header.stamp.sec, header.stamp.nanosec = divmod(now, 1_000_000_000)
        for topic in topics:
            publishers[namespace, topic].publish(messages[topic])
        return now

    while True:
        namespace, frames, rate = connection.recv()
        stamps, begin = [], time.monotonic()
        for index in range(frames):
            publish(namespace, 'sparse/points')
            time.sleep(max(POINTS_AHEAD, begin + index / rate - time.monotonic()))
            stamps.append(publish(namespace, 'image', 'camera_info'))
        connection.send(stamps)


def consume(connection: Connection, namespaces: list[str]) -> None:
    """Send (topic, stamp in ns, time in ns) of whatever comes of the nodes, until SIGTERM.

    Taken serialised: what it takes to unpack a cloud in Python is not for the node to answer for.
    """
    import rclpy
    from rclpy.qos import qos_profile_sensor_data
    from sensor_msgs.msg import Image, PointCloud2

    rclpy.init()
    node = rclpy.create_node('consumer')

    def listen(kind: type, topic: str) -> None:
        def take(serialised: bytes) -> None:
            now = time.time_ns()
            seconds, nanoseconds = struct.unpack_from('<iI', serialised, 4)  # the header is first
            connection.send((kind.__name__, seconds * 1_000_000_000 + nanoseconds, now))

        node.create_subscription(kind, topic, take, qos_profile_sensor_data, raw=True)

    for namespace in namespaces:
        listen(Image, f'{namespace}/depth/image')
        listen(PointCloud2, f'{namespace}/depth/points')
    with contextlib.suppress(Exception):  # it is being stopped
        rclpy.spin(node)


# ---- the stage -----------------------------------------------------------------------------------


class Stage:
    """A driver, a consumer, some nodes and the bare pipeline, each in a process of its own."""

    def __init__(self, kinds: tuple[str, ...], parameters: dict[str, Any]) -> None:
        self.ledgers = {kind: Ledger() for kind in (*kinds, BARE)}
        self._namespaces = {k: f'/benchmark_{os.getpid()}/n{i}' for i, k in enumerate(kinds)}
        self._driver, driver_end = CONTEXT.Pipe()
        self._consumer, consumer_end = CONTEXT.Pipe()
        self._bare, bare_end = CONTEXT.Pipe()
        namespaces = list(self._namespaces.values())
        self._processes = {
            kind: CONTEXT.Process(
                target=serve, args=(kind, namespace, parameters, self.ledgers[kind])
            )
            for kind, namespace in self._namespaces.items()
        }
        self._processes[BARE] = CONTEXT.Process(
            target=run_bare, args=(bare_end, parameters, self.ledgers[BARE])
        )
        for name, run, end in (('driver', drive, driver_end), ('consumer', consume, consumer_end)):
            self._processes[name] = CONTEXT.Process(target=run, args=(end, namespaces))

    def __enter__(self) -> Stage:
        for process in self._processes.values():
            process.daemon = True  # whatever becomes of this one
            process.start()
        for kind in self._namespaces:
            deadline = time.monotonic() + 90
            while self.frame(kind) is None:
                if time.monotonic() > deadline or not self._processes[kind].is_alive():
                    raise SystemExit(f'{kind} gives no frame')
        self.frame(BARE)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            process.join(20)
            process.kill()

    def frame(self, kind: str) -> tuple[float, float, float] | None:
        """Put one frame through; when the image was sent, depth/image and depth/points came.

        In seconds; None if one of them did not come.
        """
        if kind == BARE:
            self._bare.send(time.time())
            self._bare.recv()
            return None
        self._driver.send((self._namespaces[kind], 1, 1.0))
        (sent,) = self._driver.recv()
        came: dict[str, float] = {}
        while len(came) < 2:
            if not self._consumer.poll(PATIENCE):
                return None
            topic, stamp, now = self._consumer.recv()
            if stamp == sent:
                came[topic] = now * 1e-9
        return sent * 1e-9, came['Image'], came['PointCloud2']

    def stream(self, kind: str, rate: float, seconds: float) -> tuple[int, np.ndarray]:
        """Publish at a rate; the number sent, and by stamp the seconds until depth/image came."""
        self._driver.send((self._namespaces[kind], round(rate * seconds), rate))
        ages: dict[int, float] = {}
        while self._consumer.poll(PATIENCE):
            topic, stamp, now = self._consumer.recv()
            if topic == 'Image':
                ages[stamp] = (now - stamp) * 1e-9
        sent = self._driver.recv()
        return len(sent), np.array([ages[stamp] for stamp in sent if stamp in ages])

    def rss_mb(self, kind: str) -> float:
        """Resident memory of a node."""
        status = Path(f'/proc/{self._processes[kind].pid}/status').read_text()
        return int(status.split('VmRSS:')[1].split()[0]) / 1024


# ---- what is measured ----------------------------------------------------------------------------


def turn(stage: Stage, kind: str) -> dict[str, float]:
    """Milliseconds a frame, of one turn of FRAMES frames."""
    first = len(stage.ledgers[kind])
    trips = []
    for _ in range(FRAMES):
        trips.append(stage.frame(kind))
        time.sleep(GAP)
    calls = stage.ledgers[kind].since(first)
    row = {'pipeline': np.median(calls['lasted']), 'cpu_pipeline': calls['cpu'].mean()}
    if kind != BARE:
        if None in trips or len(calls) != FRAMES:
            raise SystemExit(f'{kind}: frames were lost; is this scripts/env.sh, with its profile?')
        sent, image, cloud = np.array(trips).T
        around = np.diff(calls['process']) - calls['cpu'][:-1]
        row |= {
            'cpu_around': around.mean(),
            'cpu_anchors': calls['cpu_anchors'].mean(),
            'before': np.median(calls['begun'] - sent),
            'image': np.median(image - sent - calls['lasted']),
            'cloud': np.median(cloud - sent - calls['lasted']),
        }
    return {name: float(value) * 1e3 for name, value in row.items()}


def cost(rounds: int) -> dict[str, Any]:
    """CPU time and latency of all, in turns."""
    kinds = (OURS, ARRAY, LIST)
    rows: dict[str, list[dict[str, float]]] = {kind: [] for kind in (*kinds, BARE)}
    with Stage(kinds, SMALL) as stage:
        for _ in track(range(rounds), 'CPU and latency'):
            for kind, row in rows.items():
                row.append(turn(stage, kind))
    found = {
        kind: {name: spread([row[name] for row in rows[kind]]) for name in rows[kind][0]}
        for kind in rows
    }
    ours = found[OURS]['cpu_around']['best']
    ratios = {kind: found[kind]['cpu_around']['best'] / ours for kind in kinds}
    return {'rounds': rounds, 'milliseconds': found, 'cpu_around_to_ours': ratios}


def spread(values: list[float]) -> dict[str, float]:
    """Best, median and worst of the rounds."""
    return {
        'best': float(min(values)),
        'median': float(np.median(values)),
        'worst': float(max(values)),
    }


def endurance(frames: int) -> dict[str, Any]:
    """Resident memory over many frames, one after the other."""
    sizes, lost = [], 0
    with Stage((OURS,), SMALL) as stage:
        for index in track(range(WARM_FRAMES + frames), 'memory'):
            lost += stage.frame(OURS) is None
            if index >= WARM_FRAMES:
                sizes.append(stage.rss_mb(OURS))
    tenth = max(1, frames // 10)
    first, last = np.mean(sizes[:tenth]), np.mean(sizes[-tenth:])
    return {
        'frames': frames,
        'lost': lost,
        'rss_mb_of_first_tenth': float(first),
        'rss_mb_of_last_tenth': float(last),
        'greatest_mb': max(sizes),
        'growth': float(last / first - 1),
    }


def flood() -> dict[str, Any]:
    """Age of what comes out of a slow network that is sent more than it can take."""
    kinds = (OURS, ARRAY)
    result: dict[str, Any] = {'rate_hz': RATE_HZ, 'seconds': STREAM_SECONDS}
    with Stage(kinds, SLOW) as stage:
        for kind in kinds:
            first = len(stage.ledgers[kind])
            sent, ages = stage.stream(kind, RATE_HZ, STREAM_SECONDS)
            network = float(np.median(stage.ledgers[kind].since(first)['lasted'])) * 1e3
            quarter = len(ages) // 4
            result[kind] = {
                'sent': sent,
                'came': len(ages),
                'network_ms': network,
                'age_ms_first_quarter': float(np.median(ages[:quarter])) * 1e3,
                'age_ms_last_quarter': float(np.median(ages[-quarter:])) * 1e3,
                'age_ms_greatest': float(ages.max()) * 1e3,
                'age_in_networks': float(np.median(ages[-quarter:])) * 1e3 / network,
            }
    return result


def show(result: dict[str, Any], console: Console) -> None:
    """Print it as tables."""
    found, memory, stream = result['cost'], result['endurance'], result['flood']
    table = Table(
        'ms a frame', 'best', 'median', 'worst', 'ours = 1', title=f'{found["rounds"]} rounds'
    )
    for name, what in MEASURED.items():
        for kind, values in found['milliseconds'].items():
            if name in values:
                ratio = found['cpu_around_to_ours'][kind] if name == 'cpu_around' else None
                table.add_row(
                    f'{what}, {kind}',
                    *(f'{value:.1f}' for value in values[name].values()),
                    f'{ratio:.1f}' if ratio else '',
                )
    console.print(table)
    console.print(
        f'memory: {memory["rss_mb_of_first_tenth"]:.1f} -> {memory["rss_mb_of_last_tenth"]:.1f} MB '
        f'over {memory["frames"]} frames ({memory["growth"]:+.2%}), {memory["lost"]} lost'
    )
    for kind in (OURS, ARRAY):
        row = stream[kind]
        console.print(
            f'{stream["rate_hz"]} Hz to a network of {row["network_ms"]:.0f} ms, {kind}: '
            f'{row["came"]} of {row["sent"]} come, '
            f'{row["age_ms_first_quarter"]:.0f} ms old in the first quarter, '
            f'{row["age_ms_last_quarter"]:.0f} in the last ({row["age_in_networks"]:.1f} times the '
            f'network), {row["age_ms_greatest"]:.0f} at most'
        )


def main() -> None:
    """Measure, print and, if asked, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rounds', type=int, default=8, help='of the turns for CPU and latency')
    parser.add_argument('--frames', type=int, default=10_000, help='for memory')
    parser.add_argument('--output', type=Path, help='JSON file to write')
    options = parser.parse_args()
    # All processes are on this machine, and must not hear those of another.
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    result = {
        'cost': cost(options.rounds),
        'flood': flood(),
        'endurance': endurance(options.frames),
    }
    show(result, Console(width=110))
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__':
    main()
