"""launch/, config/ and rviz/, as far as they can be checked without `ros2 launch`."""

from __future__ import annotations

import ast
import importlib.util
import py_compile
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from conftest import ROOT

LAUNCH = ROOT / 'launch' / 'depth.launch.py'
ARGUMENTS = {
    'cameras',
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


@pytest.mark.parametrize('file', sorted(ROOT.glob('launch/*.py')), ids=lambda file: file.name)
def test_launch_compiles(file: Path, tmp_path: Path) -> None:
    py_compile.compile(str(file), str(tmp_path / 'launch.pyc'), doraise=True)


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


class Recorded:
    """Stands for any class of launch, which is in no wheel: keeps what it is given."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        self.arguments, self.keywords = arguments, keywords

    def perform(self, context: dict[str, str]) -> str:
        return context[self.arguments[0]]


@pytest.fixture
def depth_launch(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """launch/depth.launch.py as a module, with `Recorded` for what it imports of launch."""
    for path in (
        'ament_index_python.packages',
        'launch.actions',
        'launch.substitutions',
        'launch_ros.actions',
        'launch_ros.parameter_descriptions',
    ):
        for name in (path.split('.')[0], path):
            module = ModuleType(name)
            module.__getattr__ = lambda wanted: type(wanted, (Recorded,), {})  # type: ignore
            monkeypatch.setitem(sys.modules, name, module)
    found = sys.modules['ament_index_python.packages']
    found.get_package_share_directory = lambda _: str(ROOT)  # type: ignore
    spec = importlib.util.spec_from_file_location('depth_launch', LAUNCH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def context(**given: str) -> dict[str, str]:
    return dict.fromkeys(ARGUMENTS, '') | given


def test_launch_starts_one_camera(depth_launch: ModuleType) -> None:
    (node,) = depth_launch.start_node(context(namespace='robot', model='mine'))
    assert type(node).__name__ == 'LifecycleNode'
    assert node.keywords['executable'] == 'depth_node'
    assert node.keywords['name'] == 'depth'
    assert node.keywords['namespace'].arguments == ('namespace',)
    assert set(node.keywords['parameters'][1]) == {'use_sim_time', 'autostart', 'model'}
    assert node.keywords['arguments'][0] == '--ros-args'
    assert [name for name, _ in node.keywords['remappings']] == [
        'image',
        'camera_info',
        'sparse/points',
        'sparse/scan',
        'sparse/range',
        'sparse/depth',
        'sparse/camera_info',
    ]


@pytest.mark.parametrize('cameras', ['front,rear', 'front rear', ' front, rear'])
def test_launch_starts_several_cameras_in_one_process(
    depth_launch: ModuleType, cameras: str
) -> None:
    (node,) = depth_launch.start_node(context(namespace='robot', cameras=cameras))
    arguments = ['--cameras', '/robot/front', '/robot/rear', '--ros-args']
    assert node.keywords['arguments'][:4] == arguments
    # They would be those of all nodes of the process.
    assert not {'name', 'namespace'} & set(node.keywords)


def test_rviz_shows_each_camera(depth_launch: ModuleType) -> None:
    assert depth_launch.start_rviz(context(rviz='false')) == []
    (one,) = depth_launch.start_rviz(context(rviz='true'))
    assert one.keywords['arguments'] == ['-d', str(ROOT / 'rviz' / 'depth.rviz')]
    (several,) = depth_launch.start_rviz(context(rviz='true', cameras='front,rear'))
    path = Path(several.keywords['arguments'][1])
    displays = yaml.safe_load(path.read_text())['Visualization Manager']['Displays']
    path.unlink()
    topics = {display['Topic']['Value'] for display in displays if 'Topic' in display}
    assert {'/front/depth/points', '/rear/depth/points'} <= topics
    assert len(topics) == 10
    assert sum('Topic' not in display for display in displays) == 1  # the frames of TF


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
