"""That images and clouds go out without waste: counted in copies and bytes, not in seconds."""

from __future__ import annotations

import array
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import sensor_msgs.msg._image
import sensor_msgs.msg._point_cloud2
from harness import Tester, cloud_fields, header, until
from rclpy.lifecycle import LifecycleNode
from sensor_msgs.msg import PointCloud2

from briges_ros.alignment.tracker import ScaleTracker
from briges_ros.camera import CameraModel
from briges_ros.pipeline import DepthFrame
from briges_ros.ros.camera_input import CameraInput
from briges_ros.ros.conversions import info_of
from briges_ros.ros.health import Counters, Health
from briges_ros.ros.outputs import IMAGE, INFO, POINTS, Outputs, Source
from briges_ros.ros.parameters import PARAMETERS, Settings
from briges_ros.ros.sparse_inputs import SparseInputs
from briges_ros.ros.throttle import ThrottledLog
from briges_ros.ros.transforms import Transforms

WIDTH, HEIGHT = 640, 480
CAMERA = CameraModel(WIDTH, HEIGHT, [[500.0, 0, 319.5], [0, 500, 239.5], [0, 0, 1]])
DEFAULTS = {parameter.name: parameter.default for parameter in PARAMETERS}
CLOUD_BYTES = 16 * WIDTH * HEIGHT
WANTED = frozenset({IMAGE, INFO, POINTS})


def some_frame(seed: int) -> DepthFrame:
    rng = np.random.default_rng(seed)
    depth = rng.uniform(0.5, 20, (HEIGHT, WIDTH)).astype(np.float32)
    depth[:20] = np.nan
    image = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    return DepthFrame(image, 1 / depth, depth, depth, ScaleTracker().update(None, 0.0), CAMERA, {})


class Publishing:
    """The outputs of an active node, in this process, and a way to publish frames."""

    def __init__(self) -> None:
        self.node = LifecycleNode('publishing', namespace='speed')
        self.outputs = Outputs(self.node, True, ThrottledLog(self.node.get_logger()))
        self.node.trigger_configure()
        self.node.trigger_activate()

    def publish(self, frame: DepthFrame, stamp: float, **parameters: Any) -> None:
        values = {**DEFAULTS, **{name.replace('__', '.'): v for name, v in parameters.items()}}
        source = Source(header=header(stamp), info=info_of(CAMERA), started=0.0, decode_ms=0.0)
        self.outputs.publish(frame, source, Settings.of(values), WANTED, Health(Counters()))

    def close(self) -> None:
        self.outputs.close()
        self.node.destroy_node()


@pytest.fixture
def publishing(ros: None) -> Iterator[Publishing]:
    publishing = Publishing()
    yield publishing
    publishing.close()


def test_nothing_is_handed_to_a_field_that_copies_it(
    publishing: Publishing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The generated classes copy what is assigned to data, most types element by element."""
    copied: list[int] = []

    class Counting(array.array):
        def __new__(cls, typecode: str, values: Any = ()) -> Any:
            copied.append(len(values))
            return super().__new__(cls, typecode, values)

    for module in (sensor_msgs.msg._image, sensor_msgs.msg._point_cloud2):
        monkeypatch.setattr(module, 'array', SimpleNamespace(array=Counting))
    publishing.publish(some_frame(0), 1.0)
    publishing.publish(some_frame(0), 2.0, points__fields='xyz', depth__encoding='16UC1')
    assert copied  # the fields, made empty
    assert not any(copied)


def test_the_executor_has_no_events_to_look_at(ros: None) -> None:
    """It goes through all of them whenever it wakes, which is three times a frame."""
    node = LifecycleNode('eventless', namespace='speed')
    without = len(list(node.waitables))
    outputs = Outputs(node, True, ThrottledLog(node.get_logger()))
    camera = CameraInput(node, lambda: Settings.of(DEFAULTS), lambda _: None)
    sparse = SparseInputs(node, Transforms(node), ThrottledLog(node.get_logger()))
    assert len(list(node.waitables)) == without
    for part in (outputs, camera, sparse):
        part.close()
    node.destroy_node()


def test_a_frame_takes_little_new_memory(publishing: Publishing) -> None:
    """The planes of the cloud, but not the cloud again; and of the frame before nothing stays."""
    frame = some_frame(0)
    publishing.publish(frame, 1.0)
    tracemalloc.start()
    try:
        publishing.publish(frame, 2.0)
        before, peak = tracemalloc.get_traced_memory()
        for stamp in range(3, 9):
            publishing.publish(frame, float(stamp))
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1.25 * CLOUD_BYTES
    assert after - before < 0.01 * CLOUD_BYTES


def test_memory_does_not_grow(publishing: Publishing) -> None:
    """Of the whole process, with what rclpy and DDS allocate in C."""
    frame = some_frame(0)

    def resident(first: int) -> int:
        for stamp in range(first, first + 150):
            publishing.publish(frame, float(stamp))
        return 4096 * int(Path('/proc/self/statm').read_text().split()[1])

    before = resident(1)
    assert resident(151) - before < CLOUD_BYTES


def test_a_cloud_that_is_filled_again_is_of_its_own_frame(
    publishing: Publishing, tester: Tester
) -> None:
    """Sent is what was in the message when it was published, whatever comes after."""
    clouds = tester.listen(PointCloud2, 'speed/depth/points', reliable=True)
    until(lambda: POINTS in publishing.outputs.wanted(), 'the subscriber')
    frames = {float(stamp): some_frame(stamp) for stamp in (1, 2, 3)}
    strides = {1.0: 1, 2.0: 1, 3.0: 2}
    for stamp, frame in frames.items():
        publishing.publish(frame, stamp, points__stride=strides[stamp])
    for stamp, frame in frames.items():
        fields = cloud_fields(clouds.wait(stamp))
        stride = strides[stamp]
        np.testing.assert_array_equal(fields['z'], frame.depth[::stride, ::stride])
        bgr = np.ascontiguousarray(fields['rgb']).view(np.uint8).reshape(*fields.shape, 4)
        np.testing.assert_array_equal(bgr[..., 2::-1], frame.image[::stride, ::stride])
    clouds.close()
