"""The package as it is installed: one version, one directory, light to import."""

import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

import briges_ros

ROOT = Path(__file__).resolve().parents[2]


def run_python(code: str, **environment: str) -> str:
    """Run code in a fresh interpreter, away from the checkout; its output."""
    return subprocess.run(
        [sys.executable, '-c', code],
        cwd='/',
        env={**os.environ, **environment},
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def test_package_xml_and_python_agree_on_the_version():
    assert ElementTree.parse(ROOT / 'package.xml').findtext('version') == briges_ros.__version__


def test_every_dependency_of_pyproject_is_pinned():
    pinned = set(re.findall(r'^([a-z0-9-]+)==', (ROOT / 'constraints.txt').read_text(), re.M))
    pyproject = (ROOT / 'pyproject.toml').read_text()
    project = pyproject[pyproject.index('dependencies = [') : pyproject.index('[project.scripts]')]
    wheels = (ROOT / 'ros-wheels.txt').read_text()
    wanted = re.findall(r"'([a-z0-9_-]+)[>=]=", project) + re.findall(r'^[a-z].*$', wheels, re.M)
    assert len(wanted) > 20
    assert set(wanted) - pinned == set()


def test_import_is_light():
    code = 'import json, sys, briges_ros; print(json.dumps(sorted(sys.modules)))'
    loaded = json.loads(run_python(code))
    assert 'briges_ros' in loaded
    assert not {'numpy', 'cv2', 'torch', 'rclpy', 'onnxruntime', 'openvino'} & set(loaded)


def test_public_names_load_without_torch_and_ros():
    code = (
        'import json, sys, briges_ros\n'
        '[getattr(briges_ros, name) for name in briges_ros.__all__]\n'
        'print(json.dumps(sorted(sys.modules)))'
    )
    loaded = set(json.loads(run_python(code)))
    assert {'briges_ros.pipeline', 'briges_ros.camera'} <= loaded
    assert not {'torch', 'rclpy', 'onnx'} & loaded


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match='nothing_of_the_kind'):
        _ = briges_ros.nothing_of_the_kind


class TestBuiltPackage:
    """What `make setup` or colcon leaves in install/."""

    @pytest.fixture(autouse=True)
    def _built(self):
        pytest.importorskip('briges_ros.msg', reason='messages are not built: run make setup')

    def test_messages_and_modules_share_a_directory(self):
        code = (
            'import briges_ros.camera, briges_ros.msg, json, pathlib\n'
            'folders = [pathlib.Path(m.__file__) for m in (briges_ros.camera, briges_ros.msg)]\n'
            'print(json.dumps([str(folders[0].parent), str(folders[1].parent.parent)]))'
        )
        modules, messages = json.loads(run_python(code))
        assert modules == messages

    def test_messages_are_found_from_the_checkout_too(self):
        code = (
            f'import sys; sys.path.insert(0, {str(ROOT)!r})\n'
            'import briges_ros, briges_ros.msg; print(briges_ros.__file__)'
        )
        assert run_python(code).strip() == str(ROOT / 'briges_ros' / '__init__.py')

    def test_states_have_the_names_of_the_library(self):
        from briges_ros.alignment.tracker import ScaleState
        from briges_ros.msg import DepthStatus

        states = {state.name: getattr(DepthStatus, state.name) for state in ScaleState}
        assert states == {'RELATIVE': 0, 'PRIOR': 1, 'HELD': 2, 'METRIC': 3}

    def test_every_number_says_its_unit(self):
        lines = (ROOT / 'msg' / 'DepthStatus.msg').read_text().splitlines()
        comment = ''
        for line in lines:
            if line.startswith('#'):
                comment += line
            elif re.match(r'(float|uint)[0-9]+(\[[0-9]*\])? \w+$', line) and line != 'uint8 state':
                assert re.search(r'\[[^\]]+\]|their units', comment), line
            else:
                comment = '' if not line else comment
            if not line:
                comment = ''
