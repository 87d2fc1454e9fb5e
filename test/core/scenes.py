"""Exact depth images of simple scenes: planes and boxes of a base frame, seen by a camera."""

from __future__ import annotations

import numpy as np

from briges_ros import CameraModel

Box = tuple[tuple[float, float, float], tuple[float, float, float]]  # least and greatest corner


def pose(x=0.0, y=0.0, height=1.0, yaw=0.0, pitch=0.0, roll=0.0) -> np.ndarray:
    """T_base_camera of a camera that faces `yaw` (to the left) and down by `pitch`, in radians."""
    cy, sy, cp, sp = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch)
    cr, sr = np.cos(roll), np.sin(roll)
    turn = (
        np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
        @ np.array([[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]])
        @ np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]])
    )
    T = np.eye(4)
    T[:3, :3] = turn @ np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]])  # body from optical (REP 103)
    T[:3, 3] = x, y, height
    return T


def view(
    camera: CameraModel, T_base_camera: np.ndarray, boxes: list[Box] = (), ground: bool = True
) -> np.ndarray:
    """(H, W) float32 depth of boxes on the ground z = 0; +inf where there is nothing."""
    rays = camera.rays().astype(float)
    rays = np.concatenate([rays, np.ones_like(rays[..., :1])], axis=-1)
    way = rays @ T_base_camera[:3, :3].T  # a depth of 1 along it
    origin = T_base_camera[:3, 3]
    depth = np.full(way.shape[:2], np.inf)
    with np.errstate(divide='ignore', invalid='ignore'):
        if ground:
            hit = -origin[2] / way[..., 2]
            depth = np.where(hit > 0, hit, depth)
        for low, high in boxes:
            a, b = (np.array(low) - origin) / way, (np.array(high) - origin) / way
            enter, leave = np.minimum(a, b).max(axis=-1), np.maximum(a, b).min(axis=-1)
            depth = np.where((enter > 0) & (enter < leave) & (enter < depth), enter, depth)
    return depth.astype(np.float32)
