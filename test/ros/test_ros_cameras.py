"""Every camera: what the node takes for the camera, and what it publishes of it."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from harness import (
    Rig,
    cloud_fields,
    image_message,
    image_pixels,
    info_message,
    until,
)
from hypothesis import given
from hypothesis import settings as few
from hypothesis import strategies as st
from sensor_msgs.msg import CameraInfo, Image, PointCloud2

from briges_ros.alignment.anchors import Anchors
from briges_ros.ros.camera_view import CameraView, view_of
from briges_ros.ros.conversions import MessageError
from briges_ros.ros.frame_processor import visible
from briges_ros.ros.parameters import PARAMETERS, Settings

WIDTH, HEIGHT = 64, 48
K = np.array([[40.0, 0, 31], [0, 41, 24], [0, 0, 1]])
BARREL = (-0.3, 0.08, 1e-3, -1e-3, 0.0)


def view(info: CameraInfo | None, **parameters: Any) -> CameraView:
    values = {parameter.name: parameter.default for parameter in PARAMETERS}
    return view_of(info, '/camera_info', (WIDTH, HEIGHT), Settings.of({**values, **parameters}))


def camera_info(d: tuple[float, ...] = BARREL, model: str = 'plumb_bob') -> CameraInfo:
    message = info_message(K, WIDTH, HEIGHT, 1.0, d)
    message.distortion_model = model
    return message


def test_by_default_images_are_taken_as_they_come() -> None:
    seen = view(camera_info())
    assert seen.undistortion is None
    assert seen.note == ''
    assert seen.camera.distorted
    assert seen.info.d.tolist() == list(BARREL)


def test_undistorted_images_have_p() -> None:
    info = camera_info()
    info.p[:4] = [30.0, 0, 33, 0]
    seen = view(info, undistort=True)
    assert seen.undistortion is not None
    assert not seen.camera.distorted
    assert seen.camera.K[0].tolist() == [30, 0, 33]
    assert (seen.info.distortion_model, any(seen.info.d)) == ('plumb_bob', False)
    assert seen.info.k.tolist() == seen.camera.K.ravel().tolist()
    assert seen.info.p.tolist() == np.column_stack([seen.camera.K, np.zeros(3)]).ravel().tolist()
    # As image_proc rectifies them.
    picture = cv2.resize(np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8), (64, 48))
    expected = cv2.undistort(picture, K, np.array(BARREL), None, seen.camera.K)
    inside = np.ones((HEIGHT, WIDTH), bool) if seen.blind is None else ~seen.blind
    inside = cv2.erode(inside.astype(np.uint8), np.ones((3, 3))) > 0
    off = np.abs(seen.undistortion(picture).astype(int) - expected)
    assert off[inside].max() <= 1


def test_undistorting_does_not_turn_a_camera() -> None:
    info = camera_info()
    info.p[:4] = [30.0, 0, 33, 0]
    info.r = cv2.Rodrigues(np.array([0, 0.02, 0]))[0].ravel()
    seen = view(info, undistort=True)
    np.testing.assert_array_equal(seen.camera.K, K)
    assert seen.info.r.tolist() == np.eye(3).ravel().tolist()


@pytest.mark.parametrize('parameters', [{}, {'image_is_rectified': True}])
def test_nothing_is_undistorted_that_is_not_distorted(parameters: dict[str, Any]) -> None:
    info = camera_info(BARREL if parameters else (0.0,) * 5)
    seen = view(info, undistort=True, **parameters)
    assert seen.undistortion is None
    assert seen.blind is None


def test_beyond_a_fisheye_is_blind() -> None:
    wide = camera_info((), 'equidistant')
    wide.k[0] = wide.k[4] = 18.0  # the corners lie at 127 degrees
    seen = view(wide)
    assert seen.blind is not None
    assert seen.blind[0, 0]
    assert not seen.blind[24, 31]
    undistorted = view(wide, undistort=True)
    assert undistorted.blind is None  # K of the middle shows no more than 60 degrees
    assert view(camera_info((-0.2, 0, 0, 0, 0)), undistort=True).blind is None
    assert view(camera_info((0.2, 0, 0, 0, 0)), undistort=True).blind is not None


def test_a_calibration_wins_over_a_field_of_view() -> None:
    assert view(camera_info(), horizontal_fov=90.0).camera.fx == 40.0
    assert view(camera_info(), horizontal_fov=90.0).note == ''


@pytest.mark.parametrize('known', ['nothing', 'not calibrated'])
def test_field_of_view_stands_in_for_a_calibration(known: str) -> None:
    info = None if known == 'nothing' else CameraInfo(width=WIDTH, height=HEIGHT)
    seen = view(info, horizontal_fov=90.0)
    assert seen.camera.fx == pytest.approx(32.0)
    assert seen.info.k[0] == pytest.approx(32.0)
    assert (seen.info.width, seen.info.height) == (WIDTH, HEIGHT)
    what = 'missing' if info is None else 'not calibrated'
    assert seen.note.startswith(f"camera_info of '/camera_info' is {what}")
    assert 'field of view taken as 90 degrees' in seen.note


def test_an_uncalibrated_camera_says_how_to_do_without() -> None:
    with pytest.raises(MessageError, match=r"'/camera_info': K is zero.*set 'horizontal_fov'"):
        view(CameraInfo(width=WIDTH, height=HEIGHT))


def test_anchors_of_blind_pixels_are_left_out() -> None:
    blind = np.zeros((4, 6), bool)
    blind[3, 5] = True
    u, v = np.float32([5.49, 4.4, 5.0, -0.5]), np.float32([3.0, 3.0, 2.4, 0.0])
    anchors = Anchors(u, v, np.float32([1, 2, 3, 4]), np.full(4, 0.1, np.float32), (6, 4))
    assert visible(anchors, blind).depth.tolist() == [2, 3, 4]
    assert visible(anchors, None) is anchors
    assert visible(None, blind) is None


@few(max_examples=150, deadline=None)
@given(
    d=st.lists(st.floats(), max_size=8) | st.lists(st.floats(-2, 2), min_size=4, max_size=8),
    model=st.sampled_from(['plumb_bob', 'rational_polynomial', 'equidistant']),
    f=st.floats(1, 1e4) | st.sampled_from([0.0, -1.0, np.nan, np.inf]),
    undistort=st.booleans(),
)
def test_any_calibration(d: list[float], model: str, f: float, undistort: bool) -> None:
    info = CameraInfo(width=WIDTH, height=HEIGHT, distortion_model=model, d=d)
    info.k[0] = info.k[4] = f
    info.k[8] = 1.0
    try:
        seen = view(info, undistort=undistort)
    except MessageError as error:
        assert '\n' not in str(error)
        return
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    if seen.undistortion is not None:
        assert seen.undistortion(picture).shape == picture.shape


# Of the node


def test_undistorted_outputs_belong_together(rig: Rig) -> None:
    """Depth, cloud and camera_info are of one camera without distortion, as the image is."""
    info = info_message(rig.drive.k, 1242, 375, 0.0, (0.25, 0.0, 0.0, 0.0, 0.0))
    came = rig.tester.listen(CameraInfo, 'depth/camera_info')
    depth = rig.tester.listen(Image, 'depth/image')
    relative = rig.tester.listen(Image, 'depth/relative')
    cloud = rig.tester.listen(PointCloud2, 'depth/points')

    def undistorted() -> float | None:
        stamp = rig.send(info=info)
        values = image_pixels(relative.wait(stamp), np.float32)
        return stamp if np.isnan(values).any() else None  # a frame may overtake its camera_info

    assert rig.tester.set('undistort', True)[0]
    try:
        stamp = until(undistorted, 'an undistorted frame')
        expected = info_message(rig.drive.k, 1242, 375, stamp)
        assert came.wait(stamp) == expected
        metres = image_pixels(depth.wait(stamp), np.float32)
        blind = np.isnan(image_pixels(relative.of(stamp), np.float32))
        assert blind[0, 0]
        assert not blind[187, 621]
        assert np.isnan(metres[blind]).all()
        fields = cloud_fields(cloud.wait(stamp))
        x = (np.arange(1242) - rig.drive.k[0, 2]) / rig.drive.k[0, 0]
        known = np.isfinite(fields['x'])
        assert known.any()
        np.testing.assert_allclose(
            (fields['x'] / fields['z'])[known], (x + 0 * metres)[known], 1e-4
        )
    finally:
        assert rig.tester.set('undistort', False)[0]
    for listener in (came, depth, relative, cloud):
        listener.close()


def test_half_of_the_image_in_both_directions(rig: Rig) -> None:
    """Binned by the camera: its camera_info still is of the sensor."""
    info = info_message(rig.drive.k, 1242, 375, 0.0)
    info.binning_x = info.binning_y = 2
    came = rig.tester.listen(CameraInfo, 'depth/camera_info')
    small = cv2.resize(rig.drive.image(40), (621, 187), interpolation=cv2.INTER_AREA)

    def sent() -> CameraInfo | None:
        rig.send(info=info, image=image_message(small, 0.0))
        return next((message for message in came.messages if message.width == 621), None)

    message = until(sent, 'a camera_info of the small image')
    assert message.height == 187
    assert (message.binning_x, message.binning_y) == (0, 0)
    assert message.k[0] == pytest.approx(rig.drive.k[0, 0] / 2)
    assert message.k[2] == pytest.approx((rig.drive.k[0, 2] + 0.5) / 2 - 0.5)
    came.close()
