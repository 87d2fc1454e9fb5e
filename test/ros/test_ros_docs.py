"""What the documentation says of topics, services and frames, beside the running node."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from harness import Rig, until

from briges_ros.msg import DepthStatus
from briges_ros.ros.topics import INPUTS, OUTPUTS, SERVICES, Topic
from briges_ros.ros.transforms import matrix

DOCS = Path(__file__).resolve().parents[2] / 'docs'
# What every node has, and what docs/topics.md leaves to ROS' own documentation.
OF_EVERY_NODE = re.compile(
    r'/(parameter_events|rosout|depth/.*(parameter|parameters|parameter_types|type_description)'
    r'|depth/set_parameters_atomically|depth/get_(available_\w+|transition_graph))$'
)


def full(topic: Topic) -> str:
    """The name of a topic of the node `depth` without a namespace."""
    name = topic.name.replace('~', 'depth')
    return name if name.startswith('/') else f'/{name}'


@pytest.mark.parametrize(
    ('listed', 'table'),
    [('get_subscriber', INPUTS), ('get_publisher', OUTPUTS), ('get_service', SERVICES)],
)
def test_the_table_is_what_the_node_has(rig: Rig, listed: str, table: tuple[Topic, ...]) -> None:
    def found() -> dict[str, str]:
        pairs = getattr(rig.tester.node, f'{listed}_names_and_types_by_node')('depth', '/')
        return {name: kind for name, (kind,) in pairs if not OF_EVERY_NODE.match(name)}

    told = {full(topic): topic.type for topic in table}
    always = {full(topic) for topic in table if not topic.when or 'pose' in topic.when}
    until(lambda: always <= set(found()), f'{sorted(always)} of the node')
    assert found().items() <= told.items()


def test_the_message_has_the_fields_of_its_file() -> None:
    text = (DOCS / 'topics.md').read_text()
    told = re.findall(r'^[\w/\[\]]+ (\w+)$', text[text.index('## DepthStatus') :], re.M)
    assert told == list(DepthStatus.get_fields_and_field_types())


def test_the_poses_of_frames_are_where_it_says() -> None:
    """docs/frames.md: a LiDAR 0.10 m above and 0.15 m behind, and the quaternions in the table."""
    text = (DOCS / 'frames.md').read_text()
    (seven,) = re.findall(r'^sparse\.extrinsics: (\[.*\])$', text, re.M)
    *translation, qx, qy, qz, qw = yaml.safe_load(seven)
    right, down, forward = np.eye(3)
    ahead, left, up = np.eye(3)
    np.testing.assert_allclose(translation, -0.10 * down - 0.15 * forward)

    quaternions = {
        said: np.array(numbers.split(','), float)
        for said, numbers in re.findall(r'^\| (.*?) \| ([-\d., ]*\d) \|$', text, re.M)
    }
    turned = {'x ahead, y left': (forward, -right, -down), 'upside': (forward, right, down)}
    for said, (of_ahead, of_left, of_up) in turned.items():
        (quaternion,) = [q for text, q in quaternions.items() if said in text]
        R = matrix((0, 0, 0), quaternion)[:3, :3]
        np.testing.assert_allclose(R @ ahead, of_ahead, atol=1e-12)
        np.testing.assert_allclose(R @ left, of_left, atol=1e-12)
        np.testing.assert_allclose(R @ up, of_up, atol=1e-12)
    np.testing.assert_array_equal(quaternions[next(iter(quaternions))], (qx, qy, qz, qw))
