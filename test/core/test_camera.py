"""CameraModel against OpenCV, against itself, and against input that cannot be right."""

import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from briges_ros.camera import CameraModel, Undistortion

K = np.array([[600.0, 0, 321.5], [0, 590.0, 238.25], [0, 0, 1]])
BARREL = [-0.28, 0.07, 1e-3, -5e-4, 0.01]
PINCUSHION = [0.12, -0.05, -8e-4, 6e-4]
RATIONAL = [0.6, -2.4, 8e-4, -3e-4, 1.4, 0.48, -2.2, 1.3]  # of a depth camera's colour sensor
FISHEYE = [-0.012, 0.033, -0.027, 0.006]


def camera(D=(), width=640, height=480, **options):
    return CameraModel(width, height, K, D, **options)


def fisheye(D=FISHEYE, f=180.0, width=640, height=480, **options):
    K = [[f, 0, 321.5], [0, 0.98 * f, 238.25], [0, 0, 1]]
    return CameraModel(width, height, K, D, 'equidistant', **options)


def points_in_front(count=500, spread=0.55):
    rng = np.random.default_rng(0)
    z = rng.uniform(0.3, 80, count)
    return np.stack(
        [rng.uniform(-spread, spread, count) * z, rng.uniform(-spread, spread, count) * z, z], 1
    )


def cv2_rays(model):
    """Rays by cv2.undistortPoints, iterated until they stop moving."""
    u, v = np.meshgrid(np.arange(model.width), np.arange(model.height))
    pixels = np.stack([u, v], -1).reshape(-1, 1, 2).astype(np.float64)
    criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 200, 1e-12)
    if hasattr(cv2, 'undistortPointsIter'):  # OpenCV 4
        rays = cv2.undistortPointsIter(pixels, model.K, model.D, None, None, criteria)
    else:
        rays = cv2.undistortPoints(pixels, model.K, model.D, criteria=criteria)
    return rays.reshape(model.height, model.width, 2)


@pytest.mark.parametrize('D', [(), (0, 0, 0, 0, 0), BARREL, PINCUSHION, RATIONAL])
def test_project_agrees_with_opencv(D):
    xyz = points_in_front()
    expected, _ = cv2.projectPoints(xyz, np.zeros(3), np.zeros(3), K, np.array(D, float))
    uv, in_view = camera(D).project(xyz)
    u, v = expected[:, 0].T
    np.testing.assert_allclose(uv, expected[:, 0], atol=1e-9)
    np.testing.assert_array_equal(in_view, (u >= -0.5) & (u < 639.5) & (v >= -0.5) & (v < 479.5))
    assert 0 < in_view.sum() < len(xyz)


@pytest.mark.parametrize('D', [BARREL, PINCUSHION, RATIONAL])
def test_rays_agree_with_opencv(D):
    model = camera(D)
    np.testing.assert_allclose(model.rays(), cv2_rays(model), atol=2e-7)


@pytest.mark.parametrize('D', [(), FISHEYE])
def test_fisheye_agrees_with_opencv(D):
    model = fisheye(D, f=230.0)
    coefficients = np.array(D or np.zeros(4))
    xyz = points_in_front(spread=4.0)
    expected = cv2.fisheye.projectPoints(
        xyz[None], np.zeros(3), np.zeros(3), model.K, coefficients
    )[0][0]
    uv, in_view = model.project(xyz)
    np.testing.assert_allclose(uv, expected, atol=1e-9)
    assert 0 < in_view.sum() < len(xyz)
    v, u = np.mgrid[:480:7, :640:7]
    pixels = np.stack([u, v], -1).reshape(1, -1, 2).astype(float)
    rays = cv2.fisheye.undistortPoints(pixels, model.K, coefficients)[0]
    ours = model.rays()[::7, ::7].reshape(-1, 2)
    seen = np.isfinite(ours[:, 0])
    assert seen.mean() > 0.85
    np.testing.assert_allclose(ours[seen], rays[seen], rtol=1e-5, atol=1e-6)


def test_a_fisheye_without_coefficients_is_no_pinhole():
    model = fisheye(())
    assert model.distorted
    uv, _ = model.project(np.array([[1.0, 0, 1.0]]))
    np.testing.assert_allclose(uv, [[321.5 + 180 * math.pi / 4, 238.25]])


def test_a_fisheye_has_no_rays_from_80_degrees_on():
    model = fisheye((), f=100.0)
    v, u = np.mgrid[:480, :640]
    angle = np.degrees(np.hypot((u - 321.5) / 100, (v - 238.25) / 98))
    np.testing.assert_array_equal(np.isnan(model.rays()[..., 0]), angle >= 80)
    steep = np.tan(np.radians([[79.9], [80.1]])) * [1.0, 0, 0] + [0, 0, 1]
    np.testing.assert_array_equal(model.project(steep)[1], [True, False])


def test_rays_of_a_pinhole():
    rays = camera().rays()
    assert rays.shape == (480, 640, 2)
    assert rays.dtype == np.float32
    np.testing.assert_allclose(
        rays[100, 200], [(200 - 321.5) / 600, (100 - 238.25) / 590], rtol=1e-6
    )


def test_zero_distortion_is_a_pinhole():
    np.testing.assert_array_equal(camera([0, 0, 0, 0, 0]).rays(), camera().rays())
    assert not camera([0, 0, 0, 0, 0]).distorted


def test_rays_are_kept_and_cannot_be_spoilt():
    model = camera(BARREL)
    assert model.rays() is model.rays()
    with pytest.raises(ValueError, match='read-only'):
        model.rays()[0, 0] = 0


coefficient = st.floats(-1.0, 1.0)
distortions = st.tuples(coefficient, coefficient, coefficient, coefficient, coefficient).map(
    # Of the size that calibrations of ordinary lenses give.
    lambda c: [0.35 * c[0], 0.2 * c[1], 0.003 * c[2], 0.003 * c[3], 0.1 * c[4]]
)


@settings(max_examples=25, deadline=None)
@given(
    k=st.tuples(*[st.floats(-0.08, 0.08)] * 4), f=st.floats(30.0, 200.0), z=st.floats(0.1, 200.0)
)
def test_every_ray_of_a_fisheye_projects_to_its_pixel(k, f, z):
    returns_to_its_pixel(
        CameraModel(160, 120, [[f, 0, 81], [0, f, 58], [0, 0, 1]], k, 'equidistant'), z
    )


@settings(max_examples=25, deadline=None)
@given(
    # The denominator stays positive in the image: at a pole, rounding to float32 goes anywhere.
    k=st.tuples(*[st.floats(-0.8, 0.8)] * 3, *[st.floats(-0.1, 0.8)] * 3),
    f=st.floats(90.0, 400.0),
    z=st.floats(0.1, 200.0),
)
def test_every_ray_of_a_rational_polynomial_projects_to_its_pixel(k, f, z):
    D = [k[0], k[1], 1e-3, -1e-3, *k[2:]]
    returns_to_its_pixel(CameraModel(160, 120, [[f, 0, 81], [0, f, 58], [0, 0, 1]], D), z)


@settings(max_examples=60, deadline=None)
@given(D=distortions, f=st.floats(90.0, 400.0), z=st.floats(0.1, 200.0))
def test_every_ray_projects_to_its_pixel(D, f, z):
    returns_to_its_pixel(
        CameraModel(160, 120, [[f, 0, 81.0], [0, 1.02 * f, 58.5], [0, 0, 1]], D), z
    )


def returns_to_its_pixel(model, z):
    rays = model.rays().reshape(-1, 2).astype(np.float64)
    v, u = np.divmod(np.arange(len(rays)), 160)
    exists = np.isfinite(rays[:, 0])
    assert exists[60 * 160 + 80]
    xyz = np.column_stack([rays, np.ones(len(rays))])[exists] * z
    uv, _ = model.project(xyz)
    # At the very rim of the valid field a ray rounded to float32 may fall just outside.
    found = np.isfinite(uv[:, 0])
    assert found.mean() > 0.99
    np.testing.assert_allclose(uv[found], np.column_stack([u, v])[exists][found], atol=1e-3)


@settings(max_examples=100, deadline=None)
@given(
    D=distortions,
    x=st.floats(-20, 20),
    y=st.floats(-20, 20),
)
def test_what_is_far_off_the_axis_never_folds_back(D, x, y):
    model = CameraModel(160, 120, [[120.0, 0, 81.0], [0, 120.0, 58.5], [0, 0, 1]], D)
    uv, in_view = model.project(np.array([[x, y, 1.0]]))
    if in_view[0]:
        column, row = np.clip(np.round(uv[0]), 0, [159, 119]).astype(int)
        # The ray of that pixel leads back to the point; a point that folded back is far from it.
        ray = model.rays()[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
        assert np.nanmin(np.hypot(*(ray.reshape(-1, 2) - (x, y)).T)) < 0.05


def test_opencv_folds_back_where_we_do_not():
    model = camera([-0.3, 0, 0, 0])
    far_off = np.array([[1.7, 0.0, 1.0]])
    folded, _ = cv2.projectPoints(far_off, np.zeros(3), np.zeros(3), K, model.D)
    assert 0 <= folded[0, 0, 0] < 640
    uv, in_view = model.project(far_off)
    assert np.isnan(uv).all()
    assert not in_view[0]


def test_pixels_beyond_the_valid_field_have_no_ray():
    rays = CameraModel(
        640, 480, [[200.0, 0, 320], [0, 200.0, 240], [0, 0, 1]], [-0.3, 0, 0, 0]
    ).rays()
    assert np.isnan(rays[0, 0]).all()
    assert np.isfinite(rays[200:280, 250:390]).all()
    assert (np.isnan(rays[..., 0]) == np.isnan(rays[..., 1])).all()


def test_points_without_a_place_in_the_image():
    xyz = np.array(
        [[0, 0, -1], [0, 0, 0], [np.nan, 0, 1], [0, 0, np.inf], [0, np.inf, 1], [0, 0, 1]]
    )
    uv, in_view = camera(BARREL).project(xyz)
    np.testing.assert_array_equal(in_view, [False] * 5 + [True])
    assert np.isnan(uv[:5]).all()


def test_project_takes_no_points_and_float32():
    uv, in_view = camera().project(np.empty((0, 3), np.float32))
    assert uv.shape == (0, 2)
    assert in_view.shape == (0,)
    with pytest.raises(ValueError, match=r'\(N, 3\)'):
        camera().project(np.zeros((3, 4)))


def test_a_rectified_image_goes_by_its_projection_alone():
    P = [500.0, 0, 300, 0, 0, 510.0, 200, 0, 0, 0, 1, 0]
    model = camera([0.1, 0.2, 0.3], model='equidistant', P=P, rectified=True)
    assert (model.fx, model.fy, model.cx, model.cy) == (500.0, 510.0, 300.0, 200.0)
    np.testing.assert_allclose(model.project(np.array([[0.1, 0.2, 1.0]]))[0], [[350, 302]])
    assert not model.distorted


def test_a_raw_image_does_not_look_at_the_projection():
    assert camera(P=np.zeros((3, 4))).fx == 600.0


@settings(max_examples=40, deadline=None)
@given(width=st.integers(8, 2000), height=st.integers(8, 2000))
def test_scaled_projects_where_the_resized_image_shows_it(width, height):
    P = np.column_stack([K * [[1.1], [1.2], [1]], [7.0, 0, 0]])
    xyz = points_in_front(50)
    for model in (camera(BARREL), camera(RATIONAL), fisheye(), camera(P=P, rectified=True)):
        uv, _ = model.project(xyz)
        scaled, _ = model.scaled(width, height).project(xyz)
        expected = (uv + 0.5) * [width / 640, height / 480] - 0.5
        np.testing.assert_allclose(scaled, expected, atol=1e-6)


def test_cropped_projects_where_the_part_shows_it():
    P = np.column_stack([K, [7.0, 0, 0]])
    xyz = points_in_front(50)
    for model in (camera(BARREL), fisheye(), camera(P=P, rectified=True)):
        cropped = model.cropped(100, 50, 200, 150)
        assert (cropped.width, cropped.height) == (200, 150)
        uv, in_view = cropped.project(xyz)
        np.testing.assert_allclose(uv, model.project(xyz)[0] - [100, 50])
        assert 0 < in_view.sum() < model.project(xyz)[1].sum()


@pytest.mark.parametrize('model', [camera(BARREL), camera(PINCUSHION), camera(RATIONAL)])
def test_undistorted_images_agree_with_opencv(model):
    undistortion = Undistortion(model)
    picture = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    picture = cv2.GaussianBlur(picture, (0, 0), 3)
    expected = cv2.undistort(picture, model.K, model.D)
    inside = cv2.erode((~undistortion.blind).astype(np.uint8), np.ones((3, 3))) > 0
    assert inside.mean() > 0.9
    ours = undistortion(picture)
    assert np.abs(ours.astype(int) - expected)[inside].max() <= 1
    assert (ours[undistortion.blind] == 0).all()


def test_undistorted_fisheye_agrees_with_opencv():
    model = fisheye()
    wanted = np.array([[150.0, 0, 300], [0, 160, 250], [0, 0, 1]])
    undistortion = Undistortion(model, wanted)
    np.testing.assert_array_equal(undistortion.camera.K, wanted)
    assert not undistortion.camera.distorted
    picture = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    picture = cv2.GaussianBlur(picture, (0, 0), 3)
    expected = cv2.fisheye.undistortImage(picture, model.K, model.D, None, wanted)
    inside = cv2.erode((~undistortion.blind).astype(np.uint8), np.ones((3, 3))) > 0
    assert np.abs(undistortion(picture).astype(int) - expected)[inside].max() <= 2


def test_where_the_lens_shows_nothing_is_blind():
    """OpenCV folds the picture over and shows it again there."""
    model = camera([-0.3, 0, 0, 0])
    undistortion = Undistortion(model, np.array([[200.0, 0, 320], [0, 200, 240], [0, 0, 1]]))
    picture = np.full((480, 640, 3), 200, np.uint8)
    assert undistortion.blind[:40, :40].all()
    assert (undistortion(picture)[:40, :40] == 0).all()
    assert (cv2.undistort(picture, model.K, model.D, None, undistortion.camera.K)[:40] > 0).any()
    assert not undistortion.blind[200:280, 250:390].any()


def test_undistorted_depth_is_not_blended():
    depth = np.full((480, 640), 2.0, np.float32)
    depth[:, 320:] = 9.0
    depth[200, 300] = np.nan
    undistortion = Undistortion(camera(PINCUSHION))
    out = undistortion.depth(depth)
    np.testing.assert_array_equal(np.isnan(out)[undistortion.blind], True)
    assert set(np.unique(out[np.isfinite(out)])) == {2.0, 9.0}
    assert np.isnan(out[~undistortion.blind]).sum() <= 2


def test_from_fov_spans_the_angle_from_edge_to_edge():
    model = CameraModel.from_fov(640, 480, math.radians(90))
    uv, _ = model.project(np.array([[-1.0, 0, 1], [1.0, 0, 1], [0, 0, 1]]))
    np.testing.assert_allclose(uv, [[-0.5, 239.5], [639.5, 239.5], [319.5, 239.5]], atol=1e-9)
    assert model.fx == model.fy


@pytest.mark.parametrize('angle', [0.0, -1.0, math.pi, math.nan])
def test_from_fov_refuses_impossible_angles(angle):
    with pytest.raises(ValueError, match='field of view'):
        CameraModel.from_fov(640, 480, angle)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'width': 0}, 'size'),
        ({'height': -3}, 'size'),
        ({'K': np.zeros((3, 3))}, 'not calibrated'),
        ({'K': np.full((3, 3), np.nan)}, 'not finite'),
        ({'K': -K}, 'must look like'),
        ({'K': K.T}, 'must look like'),
        ({'K': np.eye(2)}, '3 x 3'),
        ({'D': [0.1, 0.2]}, '0, 4, 5, 8, 12 or 14 distortion coefficients, got 2'),
        ({'D': [0.1] * 12}, 'thin prism'),
        ({'D': [0.1] * 5, 'model': 'equidistant'}, "'equidistant' takes 0 or 4"),
        ({'D': [np.nan] * 5}, 'D holds'),
        ({'model': 'mystery'}, "'mystery' is not supported, only plumb_bob, rational_polynomial"),
        ({'model': '', 'D': [0.1, 0, 0, 0]}, "'' is not supported"),
        ({'model': 'none', 'D': [0.1, 0, 0, 0]}, "'none' is not supported"),
        ({'rectified': True}, 'needs P'),
        ({'rectified': True, 'P': np.zeros((3, 4))}, 'P is zero'),
        ({'P': np.eye(3)}, '3 x 4'),
    ],
)
def test_impossible_cameras_are_refused(change, message):
    good = {'width': 640, 'height': 480, 'K': K}
    with pytest.raises(ValueError, match=message):
        CameraModel(**{**good, **change})


def test_a_camera_info_without_distortion_needs_no_model_name():
    assert camera(model='').model == 'plumb_bob'
    assert not camera(model='none').distorted
    assert camera([0, 0, 0, 0, 0], model='').rays().shape == (480, 640, 2)


@pytest.mark.parametrize('count', [12, 14])
def test_zeros_after_the_coefficients_change_nothing(count):
    D = RATIONAL + [0.0] * (count - 8)
    np.testing.assert_array_equal(camera(D).rays(), camera(RATIONAL).rays())


def test_flat_arrays_of_a_message_are_taken():
    model = CameraModel(640, 480, tuple(K.ravel()), [0.0] * 5)
    np.testing.assert_array_equal(model.K, K)


def test_the_model_keeps_its_own_copy():
    mine = K.copy()
    model = CameraModel(640, 480, mine)
    mine[0, 0] = 1.0
    assert model.fx == 600.0
    with pytest.raises(ValueError, match='read-only'):
        model.K[0, 0] = 1.0
