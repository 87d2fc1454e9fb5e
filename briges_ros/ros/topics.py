"""The topics and services of the node in one table, and the page made of it. No ROS.

`python -m briges_ros.ros.topics` writes docs/topics.md anew: this table, the arguments that the
launch files declare, and msg/DepthStatus.msg. A test compares the table with the running node.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAGE = 'docs/topics.md'
FIRST = 'depth.launch.py'  # which the other launch files include


@dataclass(frozen=True)
class Topic:
    """A topic or a service.

    Attributes:
        name: relative to the node's namespace, `~/` to its name, or absolute.
        type: of its messages, or the service's, such as 'sensor_msgs/msg/Image'.
        text: what it holds.
        when: parameters or packages that it depends on; empty: it is always there.
    """

    name: str
    type: str
    text: str
    when: str = ''


INPUTS = (
    Topic(
        'image',
        'sensor_msgs/msg/Image',
        'the camera, in one of the [encodings](cameras.md#encodings)',
        '`image_transport: raw`',
    ),
    Topic(
        'image/compressed',
        'sensor_msgs/msg/CompressedImage',
        'the camera as JPEG or PNG; remapping `image` moves it along',
        '`image_transport: compressed`',
    ),
    Topic(
        'camera_info',
        'sensor_msgs/msg/CameraInfo',
        'its [calibration](cameras.md#calibration); the last one counts, whatever its stamp',
    ),
    Topic(
        'sparse/points', 'sensor_msgs/msg/PointCloud2', 'a LiDAR, a radar, or landmarks of a VIO'
    ),
    Topic('sparse/scan', 'sensor_msgs/msg/LaserScan', 'a planar LiDAR'),
    Topic(
        'sparse/depth',
        'sensor_msgs/msg/Image',
        'a depth camera or chip: `16UC1` in mm, `32FC1` in m',
    ),
    Topic(
        'sparse/camera_info',
        'sensor_msgs/msg/CameraInfo',
        'calibration of `sparse/depth`, unless that is registered to the image',
    ),
    Topic('sparse/range', 'sensor_msgs/msg/Range', 'sonars and ToF rangers'),
    Topic('/tf', 'tf2_msgs/msg/TFMessage', 'where the sensors and the base are', 'tf2_ros'),
    Topic('/tf_static', 'tf2_msgs/msg/TFMessage', 'the same, of what does not move', 'tf2_ros'),
    Topic('/clock', 'rosgraph_msgs/msg/Clock', 'simulated time', '`use_sim_time: true`'),
)
OUTPUTS = (
    Topic(
        'depth/image',
        'sensor_msgs/msg/Image',
        'depth along the optical axis for each pixel of the image: `32FC1` in m (NaN unknown, +inf '
        'beyond `depth.max_range`; REP 118) or `16UC1` in mm (0 for both)',
    ),
    Topic(
        'depth/camera_info',
        'sensor_msgs/msg/CameraInfo',
        'calibration of the pixels of depth/image',
    ),
    Topic(
        'depth/points',
        'sensor_msgs/msg/PointCloud2',
        'xyz or xyz and rgb: organised, NaN where there is no depth, or one point a voxel',
    ),
    Topic(
        'depth/obstacles',
        'sensor_msgs/msg/PointCloud2',
        'what stands on the ground: [navigation](navigation.md)',
        'pose of the camera',
    ),
    Topic(
        'depth/clearing',
        'sensor_msgs/msg/PointCloud2',
        'ends of the sight lines that are known to be free, for costmaps',
    ),
    Topic(
        'depth/scan',
        'sensor_msgs/msg/LaserScan',
        'the same for 2D navigation, in `base_frame`',
        'pose of the camera',
    ),
    Topic(
        'depth/sigma',
        'sensor_msgs/msg/Image',
        '`32FC1`: one standard deviation of depth/image, in m',
    ),
    Topic(
        'depth/relative',
        'sensor_msgs/msg/Image',
        '`32FC1`: inverse depth up to scale and shift, larger is nearer, whatever is known of the '
        'scale',
    ),
    Topic(
        'depth/preview', 'sensor_msgs/msg/Image', '`rgb8`: depth/relative in colours, for people'
    ),
    Topic(
        'depth/status',
        'briges_ros/msg/DepthStatus',
        'what the metres are worth: [below](#depthstatus)',
    ),
    Topic('/diagnostics', 'diagnostic_msgs/msg/DiagnosticArray', 'once a second, in every state'),
    Topic(
        '~/transition_event', 'lifecycle_msgs/msg/TransitionEvent', 'each change of the life cycle'
    ),
)
SERVICES = (
    Topic(
        '~/reset_scale', 'std_srvs/srv/Trigger', 'forget the last scale: the next fit starts anew'
    ),
    Topic(
        '~/change_state',
        'lifecycle_msgs/srv/ChangeState',
        'configure, activate, deactivate, cleanup, shutdown: `ros2 lifecycle set /depth activate`',
    ),
    Topic('~/get_state', 'lifecycle_msgs/srv/GetState', '`ros2 lifecycle get /depth`'),
)

_HEAD = """\
# Topics, services and launch arguments

Made by `python -m briges_ros.ros.topics`: topics and services from the table in that module, which
a test compares with the running node; launch arguments and the message of `depth/status` from the
files that define them. [Parameters](parameters.md) have a page of their own.

Names are relative to the namespace of the node, and can be remapped. `~` is the name of the node,
`depth` unless you rename it. With [several cameras](several_cameras.md) each has a node of its own,
in its namespace.
"""
_INPUTS = """
## What it takes

All with the quality of sensor data (best effort, volatile, the last 5), which connects with every
publisher. There while the node is active.
"""
_OUTPUTS = """
## What it gives

With the stamp and the frame of the image that it was made of, but for `depth/scan`, which is in
`base_frame`. Volatile, the last 5, and reliable or best effort as `output_qos` says. Without a
subscriber nothing is computed. *Pose of the camera*: needs TF to `base_frame`, or `camera.height`
and `camera.pitch`. There from configure to cleanup, the last two always.
"""
_SERVICES = """
## Services

And those that every node has (parameters), and every managed node (`~/get_available_states`, ...).
"""
_STATUS = """
## DepthStatus

[msg/DepthStatus.msg](../msg/DepthStatus.msg), once for every frame that was processed:
"""


def page(root: Path) -> str:
    """Return the page of the documentation.

    Args:
        root: of the repository.
    """
    parts = [_HEAD]
    for text, topics in ((_INPUTS, INPUTS), (_OUTPUTS, OUTPUTS), (_SERVICES, SERVICES)):
        parts.append(text)
        rows = [(f'`{t.name}`', f'`{t.type}`', t.text, t.when) for t in topics]
        parts.append(_table(('name', 'type', '', 'needs'), rows))
    for path in sorted((root / 'launch').glob('*.launch.py')):
        parts.append(f'\n## {path.name}\n')
        if path.name != FIRST:
            parts.append(f'\nThese, and those of `{FIRST}`.\n')
        arguments = [(f'`{name}`', value, text) for name, value, text in launch_arguments(path)]
        parts.append(_table(('argument', 'default', ''), arguments))
    message = (root / 'msg' / 'DepthStatus.msg').read_text()
    parts.append(f'{_STATUS}\n```\n{message}```\n')
    return ''.join(parts)


def launch_arguments(path: Path) -> Iterator[tuple[str, str, str]]:
    """Return name, default and description of each argument that a launch file declares.

    Read, not run: that takes ROS. A default that is computed, and is no file of ours, is left out.
    """
    for call in ast.walk(ast.parse(path.read_text())):
        if isinstance(call, ast.Call) and ast.unparse(call.func) == 'DeclareLaunchArgument':
            given = {keyword.arg: keyword.value for keyword in call.keywords}
            default = given.get('default_value')
            value = _literal(default) or ''
            if isinstance(default, ast.Call) and ast.unparse(default.func) == 'shared':
                value = '/'.join(filter(None, map(_literal, default.args)))
            text = _literal(given.get('description')) or ''
            choices = _literal(given.get('choices'))
            if choices:
                text += f' [{", ".join(choices)}]'
            yield _literal(call.args[0]), f'`{value}`' if value else '', text


def _literal(expression: ast.expr | None) -> Any:
    """Return the value of an expression that is one as it stands; None: there is none."""
    try:
        return None if expression is None else ast.literal_eval(expression)
    except ValueError:
        return None


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of Markdown after an empty line."""
    lines = [head, ['---'] * len(head), *([cell.replace('|', r'\|') for cell in r] for r in rows)]
    return '\n' + ''.join(f'| {" | ".join(line)} |\n' for line in lines)


if __name__ == '__main__':
    ROOT = Path(__file__).resolve().parents[2]
    (ROOT / PAGE).write_text(page(ROOT))
