"""Who is at the other end of our topics, and why nothing gets through to them, or from them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rclpy.qos import (
    DurabilityPolicy,
    QoSCompatibility,
    ReliabilityPolicy,
    qos_check_compatible,
)


def deaf_subscribers(node: Any, topics: Iterable[str]) -> tuple[str, ...]:
    """Name those who get nothing, as they ask for more than is offered, with the mend.

    The other way round it cannot be: the inputs of the node are subscribed to with
    `rclpy.qos.qos_profile_sensor_data`, which asks for nothing that a publisher may not offer.

    Args:
        node: the rclpy node.
        topics: fully qualified, that it publishes.
    """
    found = []
    for topic in topics:
        for subscriber in node.get_subscriptions_info_by_topic(topic):
            # What is offered: as the middleware has it, which knows more than was asked of it.
            for ours in node.get_publishers_info_by_topic(topic):
                if _name(ours) == node.get_fully_qualified_name() and _is_deaf(ours, subscriber):
                    found.append(
                        f"a subscriber of '{topic}' asks for more than is offered and gets "
                        f"nothing: '{_name(subscriber)}' has to {_mend(ours, subscriber)}"
                    )
    return tuple(found)


def other_types(node: Any, topic: str, message_type: type) -> str:
    """Name what the publishers of a topic send, if all of them send something else; else ''.

    Args:
        node: the rclpy node.
        topic: fully qualified.
        message_type: what is expected.
    """
    sent = {info.topic_type for info in node.get_publishers_info_by_topic(topic)}
    return '' if type_name(message_type) in sent else ', '.join(sorted(sent))


def type_name(message_type: type) -> str:
    """Return the name of a message class as ROS writes it, as 'sensor_msgs/msg/Image'."""
    return f'{message_type.__module__.split(".")[0]}/msg/{message_type.__name__}'


def _name(info: Any) -> str:
    return f'{info.node_namespace.rstrip("/")}/{info.node_name}'


def _is_deaf(publisher: Any, subscriber: Any) -> bool:
    compatible, _ = qos_check_compatible(publisher.qos_profile, subscriber.qos_profile)
    return bool(compatible == QoSCompatibility.ERROR)


def _mend(publisher: Any, subscriber: Any) -> str:
    """Say what a subscriber has to change."""
    offered, asked = publisher.qos_profile, subscriber.qos_profile
    mends = []
    if (offered.reliability, asked.reliability) == (
        ReliabilityPolicy.BEST_EFFORT,
        ReliabilityPolicy.RELIABLE,
    ):
        mends.append("subscribe best effort, or set 'output_qos' to reliable")
    if asked.durability == DurabilityPolicy.TRANSIENT_LOCAL:
        mends.append('subscribe volatile, not transient local')
    return ', and '.join(mends) or 'subscribe without a deadline and without liveliness'
