"""What the documentation says of topics and services, beside the running node."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from harness import Rig, until

from briges_ros.msg import DepthStatus
from briges_ros.ros.topics import INPUTS, OUTPUTS, SERVICES, Topic

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
