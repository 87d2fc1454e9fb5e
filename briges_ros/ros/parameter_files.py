"""The files that say what the parameters are, made from their table. No ROS.

`python -m briges_ros.ros.parameter_files` writes them anew:

    config/depth.yaml              for people who copy and change it
    config/depth.schema.json       for their editors, which check as they type
    docs/parameters.md             for people who look something up
"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

from briges_ros.ros.parameters import PARAMETERS, Change, Parameter, Value

TAGS = {Change.NEXT_FRAME: 'DYNAMIC', Change.CONFIGURE: 'CONFIGURE', Change.START: 'START'}
# By the first parameter of each.
SECTIONS = {
    'model': 'Model and engine',
    'image_transport': 'Camera',
    'output_qos': 'Outputs',
    'base_frame': 'Obstacles: depth/obstacles, depth/scan and depth/clearing; docs/navigation.md',
    'sparse.max_age': 'Sparse sensors; docs/sensors.md',
    'hold_duration': 'Scale; docs/metres.md',
}
_WIDTH = 100
_YAML_HEAD = """\
# yaml-language-server: $schema=depth.schema.json
#
# Parameters of the node `depth`, at their defaults. Copy the file, keep the lines you change, and
# pass it with  params_file:=<your file>  (launch) or  --ros-args --params-file <your file>.
# Made from the table in briges_ros/ros/parameters.py; docs/parameters.md is the same as a page.
#
# [DYNAMIC]   may be set at any time and holds from the next frame on (ros2 param set).
# [CONFIGURE] is read on configure; a change is refused until the node is cleaned up.
# [START]     is read at start only.

/**:
  ros__parameters:
"""
_PAGE_HEAD = """\
# Parameters

Made by `python -m briges_ros.ros.parameter_files` from the table in `briges_ros/ros/parameters.py`,
from which the node declares and checks them. [config/depth.yaml](../config/depth.yaml) has them all
at their defaults; `ros2 param describe /depth NAME` says the same.

*dynamic*: may be set at any time and holds from the next frame on. *configure*: read on configure;
a change is refused until the node is cleaned up. *start*: read at start only. A value that cannot
be had is refused with the reason.
"""


def write(root: Path) -> None:
    """Write all three under the root of the repository."""
    for name, text in files().items():
        (root / name).write_text(text)


def files() -> dict[str, str]:
    """Return the text of each file, by its path under the root of the repository."""
    return {
        'config/depth.yaml': yaml_file(),
        'config/depth.schema.json': json.dumps(json_schema(), indent=2) + '\n',
        'docs/parameters.md': page(),
    }


def yaml_file() -> str:
    """Return the parameter file, with each parameter's description as a comment."""
    lines = [_YAML_HEAD.rstrip()]
    before: list[str] = []
    for parameter in PARAMETERS:
        if parameter.name in SECTIONS:
            lines += ['', f'    # ---- {SECTIONS[parameter.name]} '.ljust(_WIDTH, '-'), '']
        *groups, name = parameter.name.split('.')
        for depth, group in enumerate(groups):
            if groups[: depth + 1] != before[: depth + 1]:
                lines.append(f'{_indent(depth)}{group}:')
        before = groups
        indent = _indent(len(groups))
        text = f'[{TAGS[parameter.change]}] {parameter.description}{_limits(parameter)}'
        comment = textwrap.wrap(
            text, _WIDTH, initial_indent=f'{indent}# ', subsequent_indent=f'{indent}# '
        )
        lines += [*comment, f'{indent}{name}: {_yaml(parameter.default)}']
    return '\n'.join(lines) + '\n'


def json_schema() -> dict[str, Any]:
    """Return a JSON schema of parameter files, as a dictionary."""
    tree: dict[str, Any] = {}
    for parameter in PARAMETERS:
        *groups, name = parameter.name.split('.')
        branch = tree
        for group in groups:
            node = branch.setdefault(group, {'type': 'object', 'properties': {}})
            branch = node['properties']
        branch[name] = _schema(parameter)
    parameters = {'type': 'object', 'properties': tree}
    node = {'type': 'object', 'properties': {'ros__parameters': parameters}}
    return {
        '$schema': 'https://json-schema.org/draft/2020-12/schema',
        'title': 'Parameters of the depth node of briges_ros',
        'type': 'object',
        'additionalProperties': node,
    }


def page() -> str:
    """Return the page of the documentation."""
    lines = [_PAGE_HEAD.rstrip()]
    for parameter in PARAMETERS:
        if parameter.name in SECTIONS:
            title, _, guide = SECTIONS[parameter.name].partition('; docs/')
            lines += ['', f'## {title}', '']
            if guide:
                lines += [f'[docs/{guide}]({guide}) explains.', '']
            lines += ['| name | type, default | | changes |', '| --- | --- | --- | --- |']
        text = f'{parameter.description}{_limits(parameter)}'.replace('|', r'\|')
        default = _yaml(parameter.default)
        tag = TAGS[parameter.change].lower()
        kind = parameter.type_name
        lines.append(f'| `{parameter.name}` | {kind}, `{default}` | {text} | {tag} |')
    return '\n'.join(lines) + '\n'


def _indent(depth: int) -> str:
    return '  ' * (depth + 2)


def _limits(parameter: Parameter) -> str:
    """Return unit and bounds, in brackets, or nothing."""
    parts = [parameter.unit] if parameter.unit else []
    if parameter.low is not None and parameter.high is not None:
        parts.append(f'{parameter.low:g} to {parameter.high:g}')
    return f' [{"; ".join(parts)}]' if parts else ''


def _yaml(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f'[{", ".join(map(str, value))}]'
    return str(value) if value != '' else "''"


def _schema(parameter: Parameter) -> dict[str, Any]:
    kinds = {bool: 'boolean', int: 'integer', float: 'number', str: 'string', tuple: 'array'}
    default = parameter.default
    schema: dict[str, Any] = {
        'description': f'{parameter.description}{_limits(parameter)}',
        'type': kinds[type(default)],
        'default': list(default) if isinstance(default, tuple) else default,
    }
    if isinstance(default, tuple):
        count = len(default)
        schema |= {'items': {'type': 'number'}, 'minItems': count, 'maxItems': count}
    if parameter.low is not None and parameter.high is not None:
        schema |= {'minimum': parameter.low, 'maximum': parameter.high}
    if parameter.choices:
        schema['enum'] = list(parameter.choices)
    return schema


if __name__ == '__main__':
    write(Path(__file__).resolve().parents[2])
