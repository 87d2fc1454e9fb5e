"""launch/, config/ and rviz/, as far as they can be checked without `ros2 launch`."""

from __future__ import annotations

import ast
import py_compile
import xml.etree.ElementTree as ET
from pathlib import Path

import yaml
from conftest import ROOT

LAUNCH = ROOT / 'launch' / 'depth.launch.py'
ARGUMENTS = {
    'image',
    'camera_info',
    'sparse_points',
    'sparse_scan',
    'sparse_range',
    'sparse_depth',
    'sparse_camera_info',
    'model',
    'backend',
    'precision',
    'image_width',
    'image_height',
    'params_file',
    'namespace',
    'use_sim_time',
    'autostart',
    'rviz',
    'log_level',
}


def calls(name: str) -> list[ast.Call]:
    return [
        node
        for node in ast.walk(ast.parse(LAUNCH.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name
    ]


def keywords(call: ast.Call) -> dict[str, ast.expr]:
    return {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}


def test_launch_compiles(tmp_path: Path) -> None:
    py_compile.compile(str(LAUNCH), str(tmp_path / 'launch.pyc'), doraise=True)


def test_launch_declares_its_arguments() -> None:
    declared = {
        ast.literal_eval(call.args[0]): keywords(call) for call in calls('DeclareLaunchArgument')
    }
    assert set(declared) == ARGUMENTS
    for name, given in declared.items():
        assert {'default_value', 'description'} <= set(given), name


def test_launch_uses_only_what_it_declares() -> None:
    used = {
        ast.literal_eval(call.args[0])
        for call in calls('LaunchConfiguration')
        if isinstance(call.args[0], ast.Constant)
    }
    given = {'model', 'backend', 'precision', 'image_width', 'image_height'}
    assert used | given == ARGUMENTS


def test_launch_remaps_every_input() -> None:
    (node,) = calls('LifecycleNode')
    given = keywords(node)
    assert ast.literal_eval(given['executable']) == 'depth_node'
    assert ast.literal_eval(given['name']) == 'depth'
    remapped = [ast.literal_eval(pair.elts[0]) for pair in given['remappings'].elts]
    assert remapped == [
        'image',
        'camera_info',
        'sparse/points',
        'sparse/scan',
        'sparse/range',
        'sparse/depth',
        'sparse/camera_info',
    ]


def test_shipped_files_that_launch_names_exist() -> None:
    for call in calls('shared'):
        assert ROOT.joinpath(*map(ast.literal_eval, call.args)).is_file()


def test_profile_is_xml() -> None:
    ET.parse(ROOT / 'config' / 'fastdds_large_messages.xml')


def test_rviz_subscribes_as_every_output_qos_allows() -> None:
    config = yaml.safe_load((ROOT / 'rviz' / 'depth.rviz').read_text())
    displays = config['Visualization Manager']['Displays']
    topics = [display['Topic'] for display in displays if 'Topic' in display]
    assert {topic['Value'] for topic in topics} == {
        'depth/points',
        'depth/obstacles',
        'depth/scan',
        'depth/preview',
        'depth/image',
    }
    for topic in topics:
        assert topic['Reliability Policy'] == 'Best Effort'
        assert topic['Durability Policy'] == 'Volatile'
    assert any(display['Class'] == 'rviz_default_plugins/TF' for display in displays)
