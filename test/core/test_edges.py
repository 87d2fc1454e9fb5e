"""Anchors on depth edges count less; those on planes and smooth things do not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from briges_ros.alignment import edge_weight

HEIGHT, WIDTH = 120, 160
COLUMN, ROW = np.meshgrid(np.arange(WIDTH, dtype=np.float32), np.arange(HEIGHT, dtype=np.float32))


def weights(relative):
    """At every pixel, (H, W)."""
    return edge_weight(relative, COLUMN.ravel(), ROW.ravel()).reshape(relative.shape)


@settings(max_examples=20, deadline=None)
@given(st.floats(-3, 3), st.floats(-3, 3))
def test_no_plane_has_an_edge(across, down):
    """Inverse depth is linear in the image on a plane: a road, a wall seen at a grazing angle."""
    assert weights(np.float32(1 + across * COLUMN + down * ROW)).min() > 0.99


@pytest.mark.parametrize('blur', [0, 2, 4])
def test_both_sides_of_an_edge_count_less(blur):
    relative = np.float32(1 + np.clip((COLUMN - 80) / max(blur, 1e-3), 0, 1) + 0.001 * ROW)
    found = weights(relative)
    assert found[:, 80].max() < 0.01
    assert found[:, 81].max() < 0.05
    assert found[:, :70].min() > 0.99
    assert found[:, 92:].min() > 0.99


def test_a_step_counts_by_its_share_of_the_range():
    relative = np.where(COLUMN < 80, 0.0, np.where(COLUMN < 120, 1.0, 1.02)).astype(np.float32)
    found = weights(relative)
    assert found[60, 80] < 0.001
    assert found[60, 120] == pytest.approx(0.5, abs=0.01)


@settings(max_examples=20, deadline=None)
@given(st.floats(1e-3, 1e3), st.floats(-10, 10))
def test_scale_and_shift_make_no_difference(scale, shift):
    relative = np.float32(np.sin(COLUMN / 9) + (ROW > 60))
    moved = np.float32(scale * (relative + shift))
    np.testing.assert_allclose(weights(moved), weights(relative), atol=0.02)


@pytest.mark.parametrize('shape', [(1, 1), (2, 200), (200, 2), (7, 7)])
@pytest.mark.parametrize('value', [3.0, np.nan, np.inf])
def test_odd_images(shape, value):
    relative = np.full(shape, value, np.float32)
    u, v = np.float32([0, shape[1] - 1, -0.5]), np.float32([0, shape[0] - 1, -0.5])
    found = edge_weight(relative, u, v)
    assert found.shape == (3,)
    assert ((found >= 0) & (found <= 1)).all()
    if np.isfinite(value):
        assert (found == 1).all()
    assert len(edge_weight(relative, u[:0], v[:0])) == 0


def test_next_to_what_is_unknown_nothing_counts():
    relative = np.float32(1 + 0.01 * COLUMN)
    relative[50, 60] = np.nan
    found = weights(relative)
    assert found[50, 59] == 0 and found[49, 60] == 0
    assert found[50, 80] > 0.99
