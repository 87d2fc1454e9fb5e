"""What all tests share: where the real data lie, and the exported model."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from briges_ros.errors import BrigesError
from briges_ros.inference.bundle import ModelBundle

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get('BRIGES_DATA') or ROOT.parent / 'shared' / 'data')


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
