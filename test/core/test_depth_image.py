"""Units, validity, resizing and colours of depth images."""

import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from briges_ros.depth_image import (
    colorize,
    depth_from_inverse,
    from_millimetres,
    resize_inverse_depth,
    settle_flying_pixels,
    to_millimetres,
)

inverse_images = arrays.arrays(
    np.float32,
    arrays.array_shapes(min_dims=2, max_dims=2, max_side=9),
    elements=st.floats(-1e3, 1e3, width=32) | st.sampled_from([math.nan, math.inf, -math.inf]),
)


def reference_depth(relative, scale, shift, min_range, max_range):
    """The rule, for one pixel, in words."""
    if not math.isfinite(relative):
        return math.nan
    inverse = scale * relative + shift
    if inverse <= 1 / max_range:
        return math.inf
    if 1 / inverse > np.finfo(np.float32).max:
        return math.inf
    return 1 / inverse if 1 / inverse >= min_range else math.nan


@given(
    relative=inverse_images,
    scale=st.floats(1e-3, 1e3),
    shift=st.floats(-10, 10, width=16),
    min_range=st.floats(0.0, 1.0),
    max_range=st.floats(2.0, 200.0) | st.just(math.inf),
)
def test_depth_follows_the_rule_of_validity(relative, scale, shift, min_range, max_range):
    depth = depth_from_inverse(relative, scale, shift, min_range, max_range)
    assert depth.dtype == np.float32
    assert depth.shape == relative.shape
    for p, z in zip(relative.ravel().tolist(), depth.ravel().tolist(), strict=True):
        expected = reference_depth(p, scale, shift, min_range, max_range)
        inverse = scale * p + shift
        # float32 may decide a pixel at the very limit the other way
        slack = 1e-6 * (abs(scale * p) + abs(shift))
        if abs(inverse - 1 / max_range) <= slack or abs(inverse * min_range - 1) <= 1e-5:
            continue
        if min_range > 0 and abs(inverse - 1 / min_range) <= slack:
            continue
        if math.isfinite(expected):
            assert z == pytest.approx(expected, rel=1e-5 + 2 * slack / inverse)
        else:
            assert str(z) == str(expected)


def test_depth_values():
    relative = np.array([[0.5, 0.0, -1.0, 10.0, np.nan, 0.001]], np.float32)
    depth = depth_from_inverse(relative, 1.0, 0.0, 0.2, 100.0)
    np.testing.assert_array_equal(depth, [[2.0, np.inf, np.inf, np.nan, np.nan, np.inf]])


def test_unknown_scale_gives_no_metres():
    relative = np.random.default_rng(0).random((4, 5), np.float32)
    assert np.isnan(depth_from_inverse(relative, math.nan, math.nan, 0.1, 100)).all()
    assert np.isnan(depth_from_inverse(relative, 1.0, math.nan, 0.1, 100)).all()


def test_the_input_is_left_alone():
    relative = np.random.default_rng(0).random((4, 5), np.float32)
    before = relative.copy()
    depth_from_inverse(relative, 2.0, 0.1, 0.1, 100)
    np.testing.assert_array_equal(relative, before)


@pytest.mark.parametrize(
    'arguments', [(-1.0, 0, 0.1, 100), (0.0, 0, 0.1, 100), (1.0, 0, 5, 5), (1.0, 0, -1, 5)]
)
def test_senseless_scale_and_range_are_refused(arguments):
    with pytest.raises(ValueError, match=r'must be positive|need 0'):
        depth_from_inverse(np.ones((2, 2), np.float32), *arguments)


def test_every_millimetre_survives_the_round_trip():
    millimetres = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    depth = from_millimetres(millimetres)
    assert depth.dtype == np.float32
    assert np.isnan(depth[0, 0])
    assert np.isfinite(depth).sum() == 65535
    np.testing.assert_array_equal(to_millimetres(depth), millimetres)


def test_millimetres_of_what_does_not_fit_are_invalid():
    depth = [[np.nan, np.inf, -np.inf, 0.0, -1.0, 65.535, 65.536, 1e9, 0.0004, 0.0006, 1.2345]]
    millimetres = to_millimetres(np.array(depth, np.float32))
    assert millimetres.dtype == np.uint16
    np.testing.assert_array_equal(millimetres, [[0, 0, 0, 0, 0, 65535, 0, 0, 0, 1, 1235]])


def centres(new, old):
    """Where the centres of `new` pixels lie among `old` ones, as cv2.resize has it."""
    return np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)


@given(
    size=st.tuples(*[st.integers(2, 40)] * 2),
    new=st.tuples(*[st.integers(1, 90)] * 2),
    slope=st.tuples(*[st.floats(-1, 1)] * 2),
)
def test_planes_stay_planes(size, new, slope):
    h, w = size
    plane = slope[0] * np.arange(w) + slope[1] * np.arange(h)[:, None]
    resized = resize_inverse_depth(plane.astype(np.float32), *new)
    expected = slope[0] * centres(new[0], w) + slope[1] * centres(new[1], h)[:, None]
    # OpenCV's weights are float32 at positions of up to 40.
    np.testing.assert_allclose(resized, expected, atol=2e-4)


@given(
    size=st.tuples(*[st.integers(6, 40)] * 2),
    new=st.tuples(*[st.integers(6, 160)] * 2),
    edge=st.floats(0.2, 0.8),
    angle=st.floats(0, 2 * math.pi),
    near=st.floats(0.05, 5.0),
)
def test_nothing_floats_between_two_walls(size, new, edge, angle, near):
    h, w = size
    x, y = np.arange(w) / w - edge, np.arange(h)[:, None] / h - edge
    is_near = math.cos(angle) * x + math.sin(angle) * y > 0
    walls = np.where(is_near, np.float32(near), np.float32(0.01))
    resized = resize_inverse_depth(walls, *new)
    assert set(np.unique(resized)) <= set(np.unique(walls))


@given(relative=inverse_images, new=st.tuples(*[st.integers(1, 30)] * 2))
def test_resizing_invents_nothing(relative, new):
    resized = resize_inverse_depth(relative, *new)
    assert resized.shape == (new[1], new[0])
    assert resized.dtype == np.float32
    finite = relative[np.isfinite(relative)]
    shown = resized[np.isfinite(resized)]
    if shown.size:
        assert finite.min() - 1e-3 <= shown.min()
        assert shown.max() <= finite.max() + 1e-3


def test_unknown_pixels_keep_to_their_place():
    relative = np.ones((8, 8), np.float32)
    relative[3, 4] = np.nan
    resized = resize_inverse_depth(relative, 32, 32)
    assert np.isnan(resized[12:16, 16:20]).all()
    assert np.isnan(resized).sum() == 16
    assert (resized[np.isfinite(resized)] == 1).all()


@given(gain=st.sampled_from([0.25, 2.0, 64.0]), offset=st.sampled_from([-64.0, 0.0, 32.0]))
def test_resizing_does_not_depend_on_scale_and_shift(gain, offset):
    # Whole numbers and powers of two, so that float32 is exact and edges are decided alike.
    relative = np.random.default_rng(0).integers(0, 64, (24, 32)).astype(np.float32)
    relative = cv2.blur(relative, (2, 2)) * 64
    resized = resize_inverse_depth(relative, 96, 72)
    moved = resize_inverse_depth(relative * np.float32(gain) + np.float32(offset), 96, 72)
    np.testing.assert_allclose(moved, resized * gain + offset, rtol=1e-5, atol=1e-3)


def test_same_size_is_a_copy():
    relative = np.random.default_rng(0).random((5, 7), np.float32)
    resized = resize_inverse_depth(relative, 7, 5)
    np.testing.assert_array_equal(resized, relative)
    assert not np.shares_memory(resized, relative)


def test_fewer_flying_pixels_than_bilinear_on_a_real_frame(data):
    """A real indoor frame, made small as a network's output is, and enlarged again."""
    depth = cv2.imread(str(data / 'frames/d11_box_depth.png'), cv2.IMREAD_UNCHANGED)
    inverse = np.where(depth > 0, 1000.0 / np.maximum(depth, 1), 0).astype(np.float32)
    inverse = cv2.medianBlur(inverse, 5)
    h, w = inverse.shape
    small = inverse[::8, ::8].copy()
    small[small == 0] = np.nan
    measured = np.where(inverse > 0, inverse, np.nan)
    ours = resize_inverse_depth(small, w, h)
    known = np.isfinite(small)
    plain = cv2.resize(np.where(known, small, 0), (w, h), interpolation=cv2.INTER_LINEAR)
    blended = cv2.resize(known.astype(np.float32), (w, h), interpolation=cv2.INTER_LINEAR)
    comparable = np.isfinite(ours) & (blended == 1)  # elsewhere `plain` mixes in the zeros

    def flying(image):
        # Farther than 4 % from every measurement near by: on no surface.
        shifts = [(dy, dx) for dy in range(-8, 9, 4) for dx in range(-8, 9, 4)]
        around = np.stack([np.roll(measured, shift, (0, 1)) for shift in shifts])
        off = np.fmin.reduce(np.abs(around[:, comparable] / image[comparable] - 1))
        return (off > 0.04).mean()

    assert comparable.mean() > 0.5
    assert flying(plain) > 0.002
    assert flying(ours) < 0.2 * flying(plain)


def test_near_is_warm_and_far_is_cool():
    inverse = np.tile(np.linspace(0.05, 2.0, 200, dtype=np.float32), (20, 1))
    red, _, blue = colorize(inverse).astype(int).transpose(2, 0, 1)
    assert (red - blue)[:, -30:].min() > 50  # near: red
    assert (blue - red)[:, 10:40].min() > 50  # far: blue


def test_unknown_is_black_and_beyond_range_is_grey():
    depth = np.full((40, 40), 2.0, np.float32)
    depth[:10] = np.nan
    depth[10:20] = np.inf
    rgb = colorize(1 / depth)
    assert rgb.dtype == np.uint8
    assert (rgb[:10] == 0).all()
    assert (rgb[10:20] == rgb[15, 15, 0]).all()
    assert 0 < rgb[15, 15, 0] < 80
    assert rgb[20:].max() > 0


def test_odd_pixels_do_not_bleach_the_picture():
    inverse = np.tile(np.linspace(0.5, 2.0, 200, dtype=np.float32), (100, 1))
    odd = inverse.copy()
    odd[50, 100] = 1e6
    np.testing.assert_allclose(colorize(odd)[:50], colorize(inverse)[:50], atol=3)


@given(image=inverse_images)
def test_any_image_can_be_shown(image):
    rgb = colorize(image)
    assert rgb.shape == (*image.shape, 3)
    assert (rgb[~np.isfinite(image)] == 0).all()


@settings(max_examples=20)
@given(value=st.floats(-100, 100, width=32))
def test_a_flat_image_has_one_colour(value):
    rgb = colorize(np.full((12, 16), value, np.float32))
    assert (rgb == rgb[0, 0]).all()


# Flying pixels


def settled(inverse, measured=None):
    """Inverse metric depth after `settle_flying_pixels`, and where it was changed."""
    relative = inverse.astype(np.float32)
    index, _ = settle_flying_pixels(relative, 1.0, 0.0, measured)
    moved = np.zeros(relative.size, np.bool_)
    moved[index] = True
    return relative, moved.reshape(relative.shape)


def blurred_step(near=1.0, far=0.25, sigma=4.0):
    step = np.full((480, 640), far, np.float32)
    step[:, 320:] = near
    return cv2.GaussianBlur(step, (0, 0), sigma)


@pytest.mark.parametrize('transposed', [False, True])
@pytest.mark.parametrize(('near', 'far'), [(1.0, 0.25), (2.0, 1.5), (0.5, 0.0)])
def test_a_blurred_edge_becomes_two_surfaces(near, far, transposed):
    blurred = blurred_step(near, far)
    blurred = np.ascontiguousarray(blurred.T) if transposed else blurred
    result, moved = settled(blurred)
    between = (result > far + 0.1 * (near - far)) & (result < near - 0.1 * (near - far))
    before = (blurred > far + 0.1 * (near - far)) & (blurred < near - 0.1 * (near - far))
    assert between.sum() < 0.05 * before.sum()
    edge = np.diff((result > (near + far) / 2).astype(int), axis=0 if transposed else 1)
    where = np.nonzero(edge)[0 if transposed else 1]
    assert set(where) <= {318, 319, 320}  # where it was
    assert moved.mean() < 0.06


@settings(max_examples=20)
@given(
    right=st.floats(-1, 1), down=st.floats(-1, 1), crease=st.floats(-1, 1), noise=st.floats(0, 0.01)
)
def test_planes_and_creases_stay(right, down, crease, noise):
    """Floor, walls and where they meet: inverse depth is linear on each."""
    y, x = np.mgrid[:240, :320] / 320
    inverse = 2.2 + right * (x - 0.5) + down * (y - 0.4) - crease * np.abs(x - 0.5)
    inverse *= np.exp(noise * np.random.default_rng(0).normal(size=inverse.shape))
    _, moved = settled(inverse)
    assert moved.mean() < 0.002


@pytest.mark.parametrize('width', [5, 9, 20])
def test_a_pole_stays_and_keeps_its_width(width):
    scene = np.full((480, 640), 0.25, np.float32)
    scene[:, 320 : 320 + width] = 1.0
    blurred = cv2.GaussianBlur(scene, (0, 0), 3.0)
    result, _ = settled(blurred)
    top = result.max(axis=1)
    np.testing.assert_allclose(top, blurred.max(axis=1), rtol=1e-5)  # as near as it was
    wide = (result > 0.25 + 0.6 * (top[:, None] - 0.25)).sum(axis=1)
    half = (blurred > 0.25 + 0.5 * (blurred.max(axis=1)[:, None] - 0.25)).sum(axis=1)
    assert (np.abs(wide - half) <= 2).all()


def test_nothing_is_invented_and_the_rest_is_as_it_was():
    rng = np.random.default_rng(0)
    scene = cv2.GaussianBlur(np.kron(rng.random((6, 8)), np.ones((80, 80))), (0, 0), 5)
    result, moved = settled(scene + 0.2)
    assert 0 < moved.mean() < 0.5
    np.testing.assert_array_equal(result[~moved], (scene + 0.2).astype(np.float32)[~moved])
    assert set(result[moved]) <= set((scene + 0.2).astype(np.float32).ravel())


def test_measured_pixels_stay_on_wide_flanks():
    blurred = blurred_step(sigma=6.0)
    u, v = np.full(10, 322.3), np.arange(40, 440, 40) + 0.2
    _, moved = settled(blurred)
    assert moved[v.round().astype(int), 322].all()
    result, moved = settled(blurred, (u, v))
    assert not moved[v.round().astype(int), 322].any()
    assert moved[v.round().astype(int) + 20, 322].all()
    assert result[40, 322] == blurred[40, 322]
    settled(blurred, (np.array([-5.0, 1e4]), np.array([3.0, 3.0])))  # off the image


def test_what_is_beside_the_unknown_stays():
    blurred = blurred_step()
    blurred[100:110, 318:322] = np.nan
    result, moved = settled(blurred)
    assert np.isnan(result[100:110, 318:322]).all()
    assert not moved[95:115, 310:330].any()
    assert moved[200, 310:330].any()


def test_nothing_hangs_before_the_sky():
    """Between an object at 2 m and what is beyond range, there is nothing at 30 m."""
    blurred = blurred_step(near=0.5, far=-0.05)  # the network has the sky behind infinity
    result, _ = settled(blurred)
    depth = depth_from_inverse(result, 1.0, 0.0, 0.1, 50.0)
    assert ((depth > 3) & (depth < 50)).sum() < 0.05 * (
        (1 / blurred > 3) & (1 / blurred < 50)
    ).sum()


def test_what_would_move_far_is_told():
    blurred = blurred_step(near=1.0, far=0.25).astype(np.float32)
    result = blurred.copy()
    index, far_off = settle_flying_pixels(result, 1.0, 0.0)
    ratio = result.ravel()[index] / blurred.ravel()[index]
    np.testing.assert_array_equal(far_off, (ratio > 1.25) | (ratio < 0.8))
    assert 0 < far_off.mean() < 1
    # Scale and shift count: the same step, seen by another network.
    other = (blurred - np.float32(0.1)) / np.float32(7)
    same_index, same = settle_flying_pixels(other, 7.0, 0.1)
    assert len(np.setxor1d(same_index, index)) < 0.01 * len(index)
    assert abs(same.mean() - far_off.mean()) < 0.01
    # Beyond infinity nothing is farther.
    sky = blurred_step(near=-0.01, far=-0.5)
    assert not settle_flying_pixels(sky, 1.0, 0.0)[1].any()


def test_small_images_are_no_error():
    for shape in [(1, 1), (2, 3), (1, 50), (7, 7)]:
        settled(np.random.default_rng(0).random(shape) + 0.1)
