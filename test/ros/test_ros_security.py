"""The policy for SROS 2 allows what the running node does, and nothing more."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from harness import Rig, until

POLICY = Path(__file__).resolve().parents[2] / 'config' / 'sros2' / 'depth_policy.xml'
# What the node takes with other parameters, or with tf2_ros, than here.
SOMETIMES = {'/image/compressed', '/tf', '/tf_static', '/clock'}


def allowed(kind: str, access: str) -> set[str]:
    """Fully qualified names that the policy allows, e.g. of topics to publish."""
    (profile,) = ElementTree.parse(POLICY).iter('profile')
    assert profile.attrib == {'ns': '/', 'node': 'depth'}
    names = [
        entry.text for group in profile.findall(f'{kind}s[@{access}="ALLOW"]') for entry in group
    ]
    assert len(names) == len(set(names)) > 0
    assert {entry.tag for group in profile for entry in group} == {'topic', 'service'}
    return {name if name.startswith('/') else f'/{name}' for name in names}


def test_least_privilege(rig: Rig) -> None:
    node = rig.tester.node

    def names(listed: str) -> set[str]:
        return {
            name for name, _ in getattr(node, f'{listed}_names_and_types_by_node')('depth', '/')
        }

    until(lambda: '/depth/status' in names('get_publisher'), 'the topics of the node')
    assert names('get_publisher') == allowed('topic', 'publish')
    subscribed = names('get_subscriber')
    assert subscribed <= allowed('topic', 'subscribe')
    assert allowed('topic', 'subscribe') - subscribed <= SOMETIMES
    assert names('get_service') == allowed('service', 'reply')
    assert not names('get_client')
