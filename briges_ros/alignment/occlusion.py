"""Points that a range sensor sees and the camera does not, because it stands elsewhere."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from briges_ros.camera import CameraModel

Vector = npt.NDArray[np.float32]

# The cell is 0.16 degrees: 2 pixels at the focal length of KITTI, where the rows of a 64-beam LiDAR
# are 5 pixels apart. The widest window, +-7 cells, spans the gap of a 16-beam LiDAR.
_CELL_RADIANS = 0.0028
_WINDOWS = (0, 1, 3, 7)
_OCCLUDER_MARGIN = 0.1


def hidden_points(
    u: Vector,
    v: Vector,
    x: Vector,
    y: Vector,
    z: Vector,
    origin: npt.NDArray[np.float64],
    camera: CameraModel,
) -> npt.NDArray[np.bool_]:
    """Find points the sensor sees but the camera does not.

    Between the sensor's view and the camera's, a point moves by a parallax that is proportional to
    its inverse depth. Points of one surface that both see keep their order in the image; a far
    point that comes to lie behind a near one has changed places with it, so its parallax relative
    to that one is greater than their distance in the image (the ordering constraint of stereo
    matching). Hence a point is taken as hidden if, in a window of r pixels around it, some point is
    nearer by more than a margin and differs in parallax by more than r. Steep surfaces pass, as
    their parallax changes slower than their image; and without a baseline there is no parallax, and
    nothing is hidden.

    Visible points within r of an object's edge are lost too. There are enough others, and those are
    where depth maps are blurred anyway.

    Args:
        u: (N,) columns, pixels, inside the image.
        v: (N,) rows.
        x: (N,) the points in the optical frame, metres.
        y: (N,) likewise.
        z: (N,) likewise, positive.
        origin: (3,) the sensor in the optical frame, metres.
        camera: The camera.

    Returns:
        (N,) bool, True for hidden points.
    """
    hidden = np.zeros(len(z), np.bool_)
    if not len(z) or not origin.any():
        return hidden
    # To first order in the baseline b, a point on the ray r = (x, y, 1) shifts by
    # f (b_xy - b_z r_xy) / z.
    inverse = np.float32(1.0) / z
    bx, by, bz = (float(b) for b in origin)
    across = camera.fx * (bx - bz * (x * inverse))
    along = camera.fy * (by - bz * (y * inverse))
    baseline = np.sqrt(across * across + along * along)
    greatest_parallax = float((baseline * (inverse.max() - inverse)).max())
    cell = max(1, round(_CELL_RADIANS * camera.fx))
    if greatest_parallax <= 0.5 * cell:
        return hidden
    columns = ((u + np.float32(0.5)) * np.float32(1 / cell)).astype(np.int32)
    rows = ((v + np.float32(0.5)) * np.float32(1 / cell)).astype(np.int32)
    rows -= rows.min()  # a LiDAR covers a part of the height
    width = -(-camera.width // cell)
    nearest = np.zeros((int(rows.max()) + 1, width), np.float32)  # greatest inverse depth
    flat = rows * np.int32(width) + columns
    np.maximum.at(nearest.reshape(-1), flat, inverse)

    # The windows grow out of one another, and each is as near as the last or nearer: so the widest
    # tells which points may be hidden at all, and the others need to look at those alone.
    reaches = [reach for reach in _WINDOWS if greatest_parallax > (reach + 0.5) * cell]
    windows, done = [], 0
    for reach in reaches:
        if reach > done:
            side = 2 * (reach - done) + 1
            nearest = np.asarray(cv2.dilate(nearest, np.ones((side, side), np.uint8)))
            done = reach
        windows.append(nearest.reshape(-1))
    near = windows[-1].take(flat)
    doubtful = np.flatnonzero(near > np.float32(1 + _OCCLUDER_MARGIN) * inverse)
    flat = flat.take(doubtful)
    inverse, baseline = inverse.take(doubtful), baseline.take(doubtful)
    for reach, window in zip(reaches, windows, strict=True):
        near = window.take(flat)
        is_hidden = near > np.float32(1 + _OCCLUDER_MARGIN) * inverse
        is_hidden &= baseline * (near - inverse) > np.float32((reach + 0.5) * cell)
        hidden[doubtful[is_hidden]] = True
    return hidden
