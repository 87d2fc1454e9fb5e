"""The node against anything that a message, a parameter or a request can hold.

A real node in this process: its callbacks are called as the executor calls them, a frame is done
when the callback of its image returns, and what would be published is kept instead.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
import pytest
from any_message import Place, any_message, any_value, changed, changes
from builtin_interfaces.msg import Time
from harness import (
    CAMERA_FRAME,
    cloud_message,
    header,
    image_message,
    image_pixels,
    info_message,
    seconds,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.msg import ParameterValue
from rcl_interfaces.srv import GetParameters, SetParameters, SetParametersAtomically
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.serialization import deserialize_message, serialize_message
from rosidl_parser.definition import UnboundedString
from sensor_msgs.msg import (
    CameraInfo,
    CompressedImage,
    Image,
    LaserScan,
    PointCloud2,
    PointField,
    Range,
)

from briges_ros.alignment.anchors import rigid_transform
from briges_ros.msg import DepthStatus
from briges_ros.ros import sparse_inputs, transforms
from briges_ros.ros.lifecycle_node import DepthNode
from briges_ros.ros.parameters import BY_NAME, PARAMETERS, Change
from briges_ros.ros.throttle import ThrottledLog
from briges_ros.ros.transforms import TransformError, Transforms

EXAMPLES = int(os.environ.get('BRIGES_FUZZ_EXAMPLES', '25'))  # of each test
WIDTH, HEIGHT = 64, 48
K = np.array([[50.0, 0, 31.5], [0, 50.0, 23.5], [0, 0, 1]])
SENSOR = 'sensor'
FORWARD = [0.0, 0.0, 0.0, 0.5, -0.5, 0.5, 0.5]  # a sensor with x forward, in the optical frame
NOW = header(1.0).stamp  # stands for the moment of an example

many = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize='BRIGES_FUZZ_EXAMPLES' not in os.environ,
    suppress_health_check=list(HealthCheck),
)


class Log:
    """What an rclpy logger was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.info = self.warning = self.error = self.lines.append


class Publisher:
    """Somebody listens, and gets what went through the serialisation that DDS would have done."""

    def __init__(self, real: Any) -> None:
        self.topic_name, self._type = real.topic_name, real.msg_type
        self.last: Any = None

    def get_subscription_count(self) -> int:
        return 1

    def publish(self, message: Any) -> None:
        assert isinstance(message, self._type)
        self.last = through_dds(message)


class Node:
    """An active node, hung up on its topics.

    Attributes:
        node: the node.
        log: what it says; the messages of rclpy itself are not among it.
        good: a message for each topic, in the order they are sent.
        image: the topic of the image.
        outputs: by name.
    """

    def __init__(self, **parameters: Any) -> None:
        # Not /depth, whose topics other tests in this process may look for.
        self.node = DepthNode(namespace='fuzz')
        self.set(token_budget=12, base_frame='base', camera__height=1.0, **parameters)
        self.set(sparse__extrinsics=FORWARD)
        self.log = Log()
        self.node._log = ThrottledLog(self.log, 0.0)
        assert self.node.trigger_configure() == TransitionCallbackReturn.SUCCESS
        self._publishers = self.node._outputs._publishers
        self.outputs = {name: Publisher(real) for name, real in self._publishers.items()}
        self.node._outputs._publishers = self.outputs
        assert self.node.trigger_activate() == TransitionCallbackReturn.SUCCESS
        self.inputs = self.node._inputs
        self.inputs.worker.stop()
        self.inputs.worker = SimpleNamespace(put=self.inputs.process, stop=lambda: None)
        self.callbacks = {
            sub.topic_name.removeprefix('/fuzz'): sub.callback for sub in self.node.subscriptions
        }
        self.good = {topic: message for topic, message in GOOD.items() if topic in self.callbacks}
        self.image = list(self.good)[-1]
        self._moments = itertools.count(100)
        # What its relative depth is, is known now, and good points are made of it.
        self.moment({})
        relative = image_pixels(self.outputs['depth/relative'].last, np.float32)
        inverse = 0.1 + 0.4 * (relative - relative.min()) / np.ptp(relative)
        v, u = (pixels.ravel() for pixels in np.mgrid[4:44:4, 4:60:4])
        rays = np.stack([np.ones(len(u)), (31.5 - u) / 50, (23.5 - v) / 50], axis=1)
        points = (rays / inverse[v, u][:, None]).astype(np.float32)
        self.good['/sparse/points'] = cloud_message(points, 1.0, SENSOR)

    def close(self) -> None:
        self.node._outputs._publishers = self._publishers
        self.node.close()
        self.node.destroy_node()

    @property
    def counters(self) -> Any:
        return self.node._health.counters

    def set(self, **parameters: Any) -> None:
        """Set parameters, with '__' for '.'."""
        made = [Parameter(name.replace('__', '.'), value=v) for name, v in parameters.items()]
        for result in self.node.set_parameters(made):
            assert result.successful, result.reason

    def changed(self, topic: str, instead: dict[Place, Any]) -> Any:
        """A good message with something else in some places, as it comes out of DDS."""
        return through_dds(changed(self.good[topic], instead))

    def moment(self, spoilt: dict[str, Any]) -> dict[str, Any]:
        """Play one moment, with these messages beside or instead of the good ones.

        Returns:
            What was published, by name.
        """
        stamp = float(next(self._moments))
        for output in self.outputs.values():
            output.last = None
        self.log.lines.clear()
        told = {self.image, '/camera_info', '/sparse/points', *spoilt}
        if told & DEPTH_CAMERA:
            told |= DEPTH_CAMERA
        for topic, good in self.good.items():
            if topic in told:
                message = copy.copy(spoilt.get(topic, good))
                if message.header.stamp == NOW:
                    message.header = header(stamp, message.header.frame_id)
                self.callbacks[topic](message)
        return {name: output.last for name, output in self.outputs.items() if output.last}


def through_dds(message: Any) -> Any:
    return deserialize_message(serialize_message(message), type(message))


def picture() -> np.ndarray:
    """Something to see, (H, W, 3) uint8."""
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    return cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)


def scan() -> LaserScan:
    first, last = np.radians((-20.0, 20.0))
    return LaserScan(
        header=header(1.0, SENSOR),
        angle_min=first,
        angle_max=last,
        angle_increment=(last - first) / 20,
        time_increment=1e-4,
        range_min=0.1,
        range_max=30.0,
        ranges=np.full(21, 4.0, np.float32),
    )


JPEG = cv2.imencode('.jpg', picture()[..., ::-1])[1].tobytes()
# One good message for each topic, in the order they are sent.
GOOD: dict[str, Any] = {
    '/sparse/points': cloud_message(np.ones((9, 3), np.float32), 1.0, SENSOR),
    '/sparse/scan': scan(),
    '/sparse/range': Range(
        header=header(1.0, SENSOR), field_of_view=0.3, min_range=0.1, max_range=5.0, range=2.0
    ),
    '/sparse/camera_info': info_message(np.diag([5.0, 5.0, 1.0]), 6, 4, 1.0),
    '/sparse/depth': image_message(np.full((4, 6), 2.0, np.float32), 1.0, '32FC1', SENSOR),
    '/camera_info': info_message(K, WIDTH, HEIGHT, 1.0),
    '/image': image_message(picture(), 1.0),
    '/image/compressed': CompressedImage(header=header(1.0), format='jpeg', data=JPEG),
}
ENCODINGS = 'mono8 16UC1 32FC1 bayer_rggb8 bayer_gbrg16 nv12 nv24 yuv422 bgra16 8UC3'
WORDS = {
    'encoding': ENCODINGS.split(),
    'format': ('', 'png', 'bayer_rggb8; jpeg compressed', 'rgb8; jpeg compressed rgb8'),
    'distortion_model': ('plumb_bob', 'rational_polynomial', 'equidistant', 'none', 'fisheye'),
    'd': ([-0.1, 0.01, 0.0, 0.0, 0.0], [0.5] * 8, [-2.0] * 4, [1e9] * 5, [1e-9] * 14),
    'k': ([1.0, 0, 31, 0, 1, 23, 0, 0, 1], [1e6, 0, 31, 0, 1e6, 23, 0, 0, 1]),
    'frame_id': (CAMERA_FRAME, SENSOR, 'odom', 'base'),
    'name': ('x', 'y', 'z', 'rgb'),
    'datatype': (7, 8, 2),
    'stamp': (NOW,),
}
DEPTH_CAMERA = {'/sparse/camera_info', '/sparse/depth'}
# Parameters that have messages read in other ways, and other things made of them.
MODES: dict[str, dict[str, Any]] = {
    'as it is': {},
    'undistorted': {'undistort': True, 'prior__ground': True},
    'rectified': {'image_is_rectified': True, 'depth__encoding': '16UC1'},
    'sparse cloud': {'points__kind': 'voxel', 'points__fields': 'xyz', 'horizontal_fov': 60.0},
}


def check(outputs: dict[str, Any], image: Any) -> None:
    """What REP 103, 117 and 118 and the message definitions say of what is published.

    Args:
        outputs: by name.
        image: the message that they were made of.
    """
    size = (image.width, image.height) if isinstance(image, Image) else None
    for name, message in outputs.items():
        if name != 'depth/scan':
            assert message.header.frame_id == image.header.frame_id, name
        if isinstance(message, (Image, CameraInfo)):
            assert (message.width, message.height) == (size or (WIDTH, HEIGHT)), name
        if isinstance(message, Image):
            assert len(message.data) == message.step * message.height, name
        elif isinstance(message, CameraInfo):
            assert np.isfinite([*message.k, *message.p, *message.r, *message.d]).all()
        elif isinstance(message, PointCloud2):
            assert message.row_step == message.width * message.point_step
            assert len(message.data) == message.row_step * message.height
            values = np.frombuffer(message.data, np.float32).reshape(-1, message.point_step // 4)
            unknown = np.isnan(values[:, :3])
            assert not np.isinf(values[:, :3]).any(), name
            assert (unknown.all(axis=1) == unknown.any(axis=1)).all(), name
            assert not (message.is_dense and unknown.any()), name
        elif isinstance(message, LaserScan):
            assert (np.isnan(message.ranges) | (np.array(message.ranges) > 0)).all()
        elif isinstance(message, DepthStatus):
            for text in (message.reason, *message.sparse_reasons):
                assert is_one_line(text), text[:200]
            line = np.isfinite([*message.covariance, message.scale, message.shift])
            assert line.all() or message.state == DepthStatus.RELATIVE
    if outputs:
        assert not np.isinf(image_pixels(outputs['depth/relative'], np.float32)).any()
        sigma = image_pixels(outputs['depth/sigma'], np.float32)
        assert (np.isnan(sigma) | (sigma > 0)).all()
        metres = outputs['depth/image']
        if metres.encoding == '32FC1':
            depth = image_pixels(metres, np.float32)
            assert (np.isnan(depth) | ((depth >= 0.1) & (depth <= 100)) | (depth == np.inf)).all()
        else:
            assert image_pixels(metres, np.uint16).max() <= 65_000


def is_one_line(text: str) -> bool:
    return text.isprintable() and len(text) < 2000


def hear(node: Node, topic: str, instead: dict[Place, Any], mode: str = 'as it is') -> None:
    """Play a moment with a message that is changed, then a good one; look at all that is said."""
    failed = node.counters.failed
    messages = {topic: node.changed(topic, instead)}
    node.set(**MODES[mode])
    outputs = node.moment(messages)
    node.set(**{name: BY_NAME[name.replace('__', '.')].default for name in MODES[mode]})
    assert node.counters.failed == failed, node.log.lines
    for text in (*node.log.lines, *diagnostics_of(node)):
        assert is_one_line(text), text[:300]
    check(outputs, messages.get(node.image, node.good[node.image]))
    # Only what is wrong with the camera stops a frame.
    assert outputs or topic in (node.image, '/camera_info')
    good = node.moment({})
    check(good, node.good[node.image])
    assert good['depth/status'].state == DepthStatus.METRIC, good['depth/status'].reason


@pytest.fixture(scope='module')
def node(ros: None, model: str) -> Iterator[Node]:
    node = Node(model=model)
    yield node
    node.close()


@pytest.fixture
def listener(node: Node, topic: str, model: str) -> Iterator[Node]:
    """A node that has the topic."""
    if topic in node.good:
        yield node
    else:
        other = Node(model=model, image_transport='compressed')
        yield other
        other.close()


@pytest.mark.parametrize('topic', GOOD)
def test_any_message(listener: Node, topic: str) -> None:
    """Nothing gets out of a callback or a frame, and the next frame has metres."""

    @many
    @given(changes(listener.good[topic], WORDS), st.sampled_from(list(MODES)))
    def anything(instead: dict[Place, Any], mode: str) -> None:
        hear(listener, topic, instead, mode)

    Path('/proc/self/clear_refs').write_text('5')  # forget the most that was ever resident
    before = most_resident()
    anything()
    assert most_resident() < before + 300


def most_resident() -> int:
    """The most memory that this process had, MB."""
    (line,) = (
        entry for entry in Path('/proc/self/status').read_text().splitlines() if 'VmHWM' in entry
    )
    return int(line.split()[1]) // 1024


# What was once found, and what hypothesis would take long to find.
FOUND: dict[str, tuple[str, dict[Place, Any]]] = {
    'line break in the name of a field': ('/sparse/points', {('fields', 0, 'name'): '\nforged'}),
    'terminal code in an encoding': ('/image', {('encoding',): '\x1b[2J'}),
    'megabytes of encoding': ('/image', {('encoding',): 'x' * 2_000_000}),
    'megabytes of distortion model': ('/camera_info', {('distortion_model',): 'y\n' * 1_000_000}),
    'megabytes of frame': ('/image', {('header', 'frame_id'): 'x' * 2_000_000}),
    'megabytes of frame of a sensor': ('/sparse/scan', {('header', 'frame_id'): '\n' * 2_000_000}),
    'line break in the frame of a sensor': (
        '/sparse/points',
        {
            ('header', 'frame_id'): 'a\r[ERROR]',
            ('fields', 0, 'offset'): 12,  # 0, so that all are beside the image
        },
    ),
    'R is not finite': ('/camera_info', {('r',): [math.nan] * 9}),
    'P is not finite': ('/camera_info', {('p',): [math.inf] * 12}),
    'D overflows': ('/camera_info', {('d',): [1e300] * 8}),
    'D overflows in the camera of a depth image': ('/sparse/camera_info', {('d',): [1e300] * 8}),
    'K is next to zero': ('/camera_info', {('k',): [1e-300, 0, 0, 0, 1e-300, 0, 0, 0, 1]}),
    'K is huge': ('/camera_info', {('k',): [1e300, 0, 1e300, 0, 1e300, 1e300, 0, 0, 1]}),
    'distance next to zero': (
        '/sparse/range',
        {('range',): 1e-45, ('min_range',): 0.0},
    ),
    'variance next to zero': ('/sparse/range', {('variance',): 1e-45}),
    'ranges next to zero': ('/sparse/scan', {('range_min',): 0.0, ('ranges',): [1e-45] * 21}),
    'depth next to zero': (
        '/sparse/depth',
        {('data',): np.full(24, 1e-45, np.float32).tobytes()},
    ),
    'angles that do not differ': ('/sparse/scan', {('angle_increment',): 1e-45}),
    'negative time of an image': ('/image', {('header', 'stamp', 'sec'): -(2**31)}),
    'time of an image after all others': (
        '/image',
        {('header', 'stamp', 'sec'): 2**31 - 1, ('header', 'stamp', 'nanosec'): 2**32 - 1},
    ),
    'time of a cloud after all others': ('/sparse/points', {('header', 'stamp', 'sec'): 2**31 - 1}),
    'sizes whose product overflows': (
        '/image',
        {('height',): 2**31, ('width',): 2**31, ('step',): 2**31},
    ),
    'points whose number overflows': (
        '/sparse/points',
        {('height',): 2**16, ('width',): 2**16, ('row_step',): 0, ('point_step',): 0},
    ),
    'fields without end': ('/sparse/points', {('fields',): [PointField(name='x')] * 10_000}),
    'rays without end': ('/sparse/scan', {('ranges',): np.ones(2**20 + 1, np.float32)}),
    'coefficients without end': ('/camera_info', {('d',): np.zeros(100_000)}),
    'a row wider than OpenCV can go': (
        '/image',
        {('width',): 40_000, ('height',): 1, ('step',): 120_000, ('data',): bytes(120_000)},
    ),
}


@pytest.mark.parametrize('name', FOUND)
def test_found(node: Node, name: str) -> None:
    hear(node, *FOUND[name])


@pytest.mark.parametrize(
    ('topic', 'instead', 'says'),
    [
        ('/image', {('width',): 16_385}, 'the image claims 16385 x 48 pixels, more than the 16384'),
        ('/image', {('width',): 16_384, ('height',): 16_384}, 'and 67108864 in all'),
        ('/image', {('header', 'frame_id'): 'a\n' * 200}, r"frame_id 'a\\na.*' \(400 characters\)"),
        ('/sparse/points', {('width',): 2**22 + 1}, 'the cloud claims 4194305 points'),
        ('/sparse/points', {('fields',): [PointField()] * 65}, 'the cloud has 65 fields'),
        ('/sparse/scan', {('ranges',): [1.0] * (2**20 + 1)}, 'the scan has 1048577 rays'),
        ('/sparse/depth', {('height',): 2**27}, r'the image claims 6 x 134217728 pixels'),
    ],
)
def test_what_is_too_large_is_refused(
    node: Node, topic: str, instead: dict[Place, Any], says: str
) -> None:
    malformed = node.counters.malformed
    status = node.moment({topic: node.changed(topic, instead)}).get('depth/status')
    assert any(re.search(says, line) for line in node.log.lines), node.log.lines
    if topic == '/image':
        assert node.counters.malformed == malformed + 1
    else:
        assert f'{topic.split("/")[-1]}: malformed' in status.sparse_reasons


def test_what_a_topic_keeps_is_bounded(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixty large messages of each of sixteen sensors would be all the memory of a robot."""
    monkeypatch.setattr(sparse_inputs, 'MAX_BYTES', 100_000)
    source = next(source for source in node.inputs.sparse._sources if source.name == 'depth')
    for number in range(60):
        pixels = np.ones((40, 40), np.float32)
        message = image_message(pixels, 50 + number / 30, '32FC1', f'sensor {number % 3}')
        node.callbacks['/sparse/depth'](message)
    sensors = [
        buffer for (name, _), buffer in source._sensors.items() if name.startswith('sensor ')
    ]
    kept = [message for sensor in sensors for _, message in sensor._entries]
    assert sum(len(message.data) for message in kept) <= 100_000
    assert len(kept) == 100_000 // 6400
    assert max(seconds(message.header.stamp) for message in kept) == round(50 + 59 / 30, 6)


def diagnostics_of(node: Node) -> list[str]:
    from briges_ros.ros.health import diagnostics

    (status,) = diagnostics(node.node._health, '/depth', header(1.0).stamp).status
    return [status.message, *(value.value for value in status.values)]


# ---- requests and parameters ---------------------------------------------------------------------

NAMES = [parameter.name for parameter in PARAMETERS]
ODD = st.floats(0, 1e3) | st.sampled_from([0.0, -0.0, 5e-324, 1e-300, 1e-9, 1.0, -1.0, 1e308])
# What a parameter of each type may hold that means something.
VALUES = {
    float: st.floats()
    | st.sampled_from([0.0, 1e-300, 1e-9, 0.01, 0.1, 1.0, 50.0, 1e3, 1e4, 1e308]),
    int: st.integers(-(2**63), 2**63 - 1) | st.sampled_from([0, 1, 2, 3, 64, 16384]),
    bool: st.booleans(),
    str: any_value(UnboundedString()),
    tuple: st.lists(st.floats(), max_size=8)
    | st.lists(ODD, min_size=3, max_size=3)
    | st.lists(ODD, min_size=3, max_size=3).map(lambda translation: [*translation, *FORWARD[3:]]),
}


@st.composite
def parameter_message(draw: Any) -> Any:
    """A parameter of the node or of no node, with what it takes, nearly, or anything."""
    if draw(st.integers(0, 3)) == 0:
        return draw(any_message(ParameterMessage))
    parameter = BY_NAME[draw(st.sampled_from(NAMES))]
    values = VALUES[type(parameter.default)]
    for some in (parameter.choices, [n for n in (parameter.low, parameter.high) if n is not None]):
        if some:
            values |= st.sampled_from(some)
    if isinstance(parameter.default, tuple):
        values |= st.just(list(parameter.default)) | st.just(FORWARD)
    value = draw(values)
    kinds = {bool: 'bool_value', int: 'integer_value', float: 'double_value', str: 'string_value'}
    field = kinds.get(type(parameter.default), 'double_array_value')
    number = list(ParameterValue.get_fields_and_field_types()).index(field)
    if field == 'double_value':
        value = float(value)
    if parameter.name == 'token_budget' and 12 < value <= 16384:
        value = 12  # more takes time, as it says
    return ParameterMessage(
        name=parameter.name, value=ParameterValue(type=number, **{field: value})
    )


def call(node: Node, name: str, request: Any) -> Any:
    """Call a service; the answer as it would be sent."""
    (service,) = (each for each in node.node.services if each.srv_name.split('/')[-1] == name)
    kind = service.srv_type.Response
    return deserialize_message(serialize_message(service.callback(request, kind())), kind)


@contextlib.contextmanager
def unchanged(node: Node) -> Iterator[None]:
    """Set the parameters back to what they were."""
    names = [name for name in NAMES if BY_NAME[name].change is Change.NEXT_FRAME]
    values = call(node, 'get_parameters', GetParameters.Request(names=names)).values
    try:
        yield
    finally:
        pairs = zip(names, values, strict=True)
        back = [ParameterMessage(name=name, value=value) for name, value in pairs]
        request = SetParametersAtomically.Request(parameters=back)
        assert call(node, 'set_parameters_atomically', request).result.successful


def play_all(node: Node) -> None:
    """Play a moment with each of the sensors, with the parameters as they are."""
    failed = node.counters.failed
    for topic in ('/sparse/points', '/sparse/scan', '/sparse/range', '/sparse/depth'):
        node.moment({topic: node.good[topic]})
        assert node.counters.failed == failed, node.log.lines
        for line in node.log.lines:
            assert is_one_line(line), line[:300]


def test_any_parameters(node: Node) -> None:
    """They are taken or refused for a reason, and frames go on with those that are taken."""

    @many
    @given(st.lists(parameter_message(), max_size=5), st.booleans())
    def set_them(messages: list[Any], at_once: bool) -> None:
        with unchanged(node):
            if at_once:
                request = SetParametersAtomically.Request(parameters=messages)
                results = [call(node, 'set_parameters_atomically', request).result]
            else:
                request = SetParameters.Request(parameters=messages)
                results = call(node, 'set_parameters', request).results
                assert len(results) == len(messages)
            for result in results:
                assert result.successful != bool(result.reason)
            play_all(node)

    set_them()


@pytest.mark.parametrize(
    'parameters',
    [
        {'camera__height': 1e-300, 'prior__ground': True},
        {'camera__height': 5e-324, 'camera__pitch': 1.5707},
        {'sparse__points__extrinsics': [1e308, 0.0, 0.0, *FORWARD[3:]]},
        {'sparse__scan__weight': 1e-300, 'sparse__points__weight': 1e-300},
        {'sparse__points__noise': [1e-6, 0.0, 0.0], 'sparse__scan__noise': [1e3, 1e3, 1e3]},
    ],
)
def test_found_parameters(node: Node, parameters: dict[str, Any]) -> None:
    with unchanged(node):
        node.set(**parameters)
        play_all(node)


def test_noise_beyond_reason_is_refused(node: Node) -> None:
    for noise in ([1e-300, 0.0, 0.0], [1e308, 0.0, 0.0], [1.0, 0.0, 1e30], [0.1, math.nan, 0.0]):
        with pytest.raises(AssertionError, match=r"'sparse\.points\.noise'"):
            node.set(sparse__points__noise=noise)


@pytest.mark.parametrize(
    'name',
    [
        *('describe_parameters', 'get_parameters', 'get_parameter_types', 'list_parameters'),
        *('get_type_description', 'get_state', 'get_available_states'),
        *('get_available_transitions', 'get_transition_graph', 'reset_scale'),
    ],
)
def test_any_request(node: Node, name: str) -> None:
    (service,) = (each for each in node.node.services if each.srv_name.split('/')[-1] == name)

    @many
    @given(any_message(service.srv_type.Request))
    def ask(request: Any) -> None:
        call(node, name, request)

    ask()


# ---- transforms and the log ----------------------------------------------------------------------

SOME = st.floats() | st.sampled_from([0.0, 1.0, -1.0, 0.5, 1e-300, 1e300])


@given(st.lists(SOME, min_size=7, max_size=7), st.integers(-(2**31), 2**31 - 1))
@settings(many, max_examples=200)
def test_any_transform(values: list[float], second: int) -> None:
    """TF takes any translation, and a stamp may be negative. The real tf2_ros is not to be had."""
    x, y, z, *quaternion = values
    transform = SimpleNamespace(
        translation=SimpleNamespace(x=x, y=y, z=z),
        rotation=SimpleNamespace(**dict(zip('xyzw', quaternion, strict=True))),
    )
    poses = Transforms(None)
    poses._buffer = SimpleNamespace(
        lookup_transform=lambda *_: SimpleNamespace(transform=transform),
        lookup_transform_full=lambda *_: SimpleNamespace(transform=transform),
    )
    stamp = Time(sec=second)
    names = {'TransformException': LookupError, 'ExtrapolationException': LookupError}
    with patch.object(transforms, 'tf2_ros', SimpleNamespace(**names)):
        for find in (
            lambda: poses.camera_from_sensor('camera', 'sensor', stamp, None),
            lambda: poses.base_from_camera('base', 'camera', stamp),
            lambda: poses.motion('camera', 1, 2, 'odom'),
        ):
            with contextlib.suppress(TransformError):
                rigid_transform(find())


def test_kinds_without_end_do_not_flood_the_log() -> None:
    log, now = Log(), 0.0
    throttled = ThrottledLog(log, 5.0, lambda: now)
    words = (''.join(letters) for letters in itertools.product('abcdefgh', repeat=4))
    for _ in range(1000):
        throttled.error(f'encoding {next(words)} is not supported')
    assert len(log.lines) == 64
    now = 6.0
    throttled.error(f'encoding {next(words)} is not supported')
    assert len(log.lines) == 65
