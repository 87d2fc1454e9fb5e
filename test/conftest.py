"""What all tests share: a DDS domain, where the real data lie, and the exported model."""

from __future__ import annotations

import os
import random
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from briges_ros import pipeline
from briges_ros.errors import BrigesError
from briges_ros.inference import bundle as bundles
from briges_ros.inference.bundle import ModelBundle, file_sha256
from briges_ros.inference.selfcheck import open_checked_engine

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get('BRIGES_DATA') or ROOT.parent / 'shared' / 'data')

# The same examples each time: what fails is new in the change at hand. To look for more:
# HYPOTHESIS_PROFILE=default.
settings.register_profile('fixed', derandomize=True, deadline=None)
settings.load_profile(os.environ.get('HYPOTHESIS_PROFILE', 'fixed'))


def quiet_domain() -> int:
    """A domain in which nobody on this machine is: at work, in other tests, or left behind by some.

    Raises:
        OSError: the one that was tried is taken. The coordinator tries another.
    """
    domain = random.randint(1, 101)  # Fast DDS takes 0 to 101 everywhere
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as port:
        port.bind(('', 7410 + 250 * domain))  # where RTPS has the first participant listen
    return domain


# Processes that test at the same time must not hear each other. Before anything of ROS starts, and
# reserved until this process ends.
try:
    from domain_coordinator import domain_id
except ImportError:  # without ROS
    pass
else:
    reservation = domain_id(quiet_domain)
    os.environ['ROS_DOMAIN_ID'] = str(reservation.__enter__())


@pytest.fixture(scope='session')
def data() -> Path:
    """The folder of the real frames."""
    if not (DATA / 'README.md').is_file():
        pytest.skip(f'no test data in {DATA}: set BRIGES_DATA to their folder')
    return DATA


@pytest.fixture(scope='session')
def bundle() -> ModelBundle:
    """The compact model, as `make setup` exports it."""
    try:
        return ModelBundle.load('compact')
    except BrigesError as error:
        pytest.skip(str(error))


@pytest.fixture(scope='session')
def known() -> dict[tuple, Any]:
    """What `opened_once` keeps."""
    return {}


@pytest.fixture
def opened_once(monkeypatch: pytest.MonkeyPatch, known: dict[tuple, Any]) -> None:
    """Open each bundle and each engine once, for tests of what comes after that.

    To check a bundle's digests and to open its engine takes a command longer than its work on a
    small image.
    """

    def digest(path: Path) -> str:
        status = path.stat()
        key = (path, status.st_ino, status.st_size, status.st_mtime_ns)
        if key not in known:
            known[key] = file_sha256(path)
        return known[key]

    def engine(bundle: ModelBundle, *settings: str | int) -> Any:
        key = (bundle.folder, bundle.sha256, *settings)
        if key not in known:
            known[key] = open_checked_engine(bundle, *settings)
        return known[key]

    monkeypatch.setattr(bundles, 'file_sha256', digest)
    monkeypatch.setattr(pipeline, 'open_checked_engine', engine)
