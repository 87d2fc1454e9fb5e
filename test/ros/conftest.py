"""What the tests of the node share: how they talk over DDS, real data, the model."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]

# Before anything of ROS starts. The domain is in the conftest.py above.
os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
for variable in ('FASTRTPS_DEFAULT_PROFILES_FILE', 'FASTDDS_DEFAULT_PROFILES_FILE'):
    os.environ[variable] = str(ROOT / 'config' / 'fastdds_large_messages.xml')

try:
    from harness import DepthNodeProcess, Drive, Rig, Tester, running
except pytest.skip.Exception:  # without ROS; the test modules that need it say so
    DepthNodeProcess = Drive = Rig = Tester = None
    running = []

DATA = Path(os.environ.get('BRIGES_DATA') or ROOT.parent / 'shared' / 'data')


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the nodes said when a test fails."""
    report = yield
    if report.failed:
        report.sections += [('log of the node', process.log) for process in running]
    return report


@pytest.fixture(scope='session')
def ros() -> Iterator[None]:
    """Initialise rclpy for the whole run."""
    import rclpy

    rclpy.init()
    yield
    rclpy.try_shutdown()


@pytest.fixture(scope='session')
def model() -> str:
    """The name of the model that the tests run."""
    from briges_ros.errors import BrigesError
    from briges_ros.inference.bundle import ModelBundle

    try:
        ModelBundle.load('compact')
    except BrigesError as error:
        pytest.skip(str(error))
    return 'compact'


@pytest.fixture(scope='module')
def tester(ros: None) -> Iterator[Tester]:
    """A node to talk to the one under test."""
    tester = Tester()
    yield tester
    tester.close()


@pytest.fixture
def start() -> Iterator[Callable[..., DepthNodeProcess]]:
    """Start node processes; each is stopped at the end, and must have ended with code 0."""
    processes: list[DepthNodeProcess] = []

    def begin(*arguments: Any, **keywords: Any) -> DepthNodeProcess:
        processes.append(DepthNodeProcess(*arguments, **keywords))
        return processes[-1]

    yield begin
    codes = [process.stop() for process in processes]
    for process, code in zip(processes, codes, strict=True):
        assert code == 0, f'the node ended with code {code}:\n{process.log}'


@pytest.fixture(scope='session')
def drive() -> Drive:
    """The KITTI drive."""
    folder = DATA / 'kitti_drive'
    if not (folder / 'calibration.json').is_file():
        pytest.skip(f'no {folder}: set BRIGES_DATA to the folder of the test data')
    calibration = json.loads((folder / 'calibration.json').read_text())
    return Drive(folder, np.array(calibration['K']), np.array(calibration['T_camera_lidar']))


@pytest.fixture(scope='module')
def rig(tester: Tester, model: str, drive: Drive) -> Iterator[Rig]:
    """An active node on a small budget, with the drive to play to it."""
    rig = Rig(tester, DepthNodeProcess(small_parameters(model, drive)), drive)
    assert tester.configure()
    assert tester.activate()
    rig.connect()
    yield rig
    assert rig.process.stop() == 0, rig.process.log


def small_parameters(model: str, drive: Drive) -> dict[str, Any]:
    """Parameters for what does not depend on accuracy: few tokens are fast."""
    return {
        'model': model,
        'token_budget': 150,
        'sparse.extrinsics': drive.extrinsics,
        'refinement': False,  # so that the same image and points give the same depth again
    }
