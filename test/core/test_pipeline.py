"""The pipeline on real frames: contracts of its arguments and of what it returns."""

import json

import cv2
import numpy as np
import pytest

from briges_ros import Anchors, CameraModel, DepthPipeline
from briges_ros.alignment.tracker import ScaleState


@pytest.fixture(scope='module')
def pipeline(bundle):
    return DepthPipeline.load(bundle.folder)


@pytest.fixture(autouse=True)
def fresh_scale(request):
    if 'pipeline' in request.fixturenames:
        request.getfixturevalue('pipeline').reset_scale()


@pytest.fixture(scope='module')
def desk(data):
    """A real RGB-D frame: image, depth in metres (NaN unknown), camera."""
    meta = json.loads((data / 'frames' / 'meta.json').read_text())
    entry = next(e for e in meta if e['id'] == 'd09_tumdesk')
    image = cv2.cvtColor(cv2.imread(str(data / 'frames' / entry['rgb'])), cv2.COLOR_BGR2RGB)
    raw = cv2.imread(str(data / 'frames' / entry['depth']), cv2.IMREAD_UNCHANGED)
    depth = np.where(raw > 0, raw / entry['depth_scale'], np.nan).astype(np.float32)
    fx, fy, cx, cy = entry['K_fx_fy_cx_cy']
    height, width = image.shape[:2]
    return image, depth, CameraModel(width, height, np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]))


def some_of(depth: np.ndarray, count: int, seed: int = 0) -> tuple[Anchors, np.ndarray]:
    """A few anchors, and the depth with those removed."""
    v, u = np.nonzero(np.isfinite(depth))
    chosen = np.random.default_rng(seed).choice(len(u), count, replace=False)
    v, u = v[chosen], u[chosen]
    rest = depth.copy()
    rest[v, u] = np.nan
    z = depth[v, u]
    return Anchors(u, v, z, 0.02 + 0.01 * z), rest


def test_200_anchors_make_metres(pipeline, desk):
    image, depth, camera = desk
    anchors, rest = some_of(depth, 200)
    frame = pipeline(image, camera, anchors, stamp=1.0)
    assert frame.scale.state is ScaleState.METRIC
    assert frame.depth.shape == frame.relative.shape == depth.shape
    assert frame.depth.dtype == frame.relative.dtype == np.float32
    known = np.isfinite(rest) & np.isfinite(frame.depth)
    assert known.sum() > 0.95 * np.isfinite(rest).sum()
    assert np.median(np.abs(frame.depth[known] / rest[known] - 1)) < 0.15
    # The contract: 1/z = scale * relative + shift, wherever there is a depth.
    finite = np.isfinite(frame.depth)
    inverse = frame.scale.scale * frame.relative[finite] + frame.scale.shift
    np.testing.assert_allclose(1 / frame.depth[finite], inverse, rtol=1e-3)


def test_larger_relative_is_nearer(pipeline, desk):
    image, depth, _ = desk
    frame = pipeline(image)
    known = np.isfinite(depth)
    assert np.corrcoef(frame.relative[known], 1 / depth[known])[0, 1] > 0.6


def test_without_anchors_there_are_no_metres(pipeline, desk):
    image, _, camera = desk
    frame = pipeline(image, camera, stamp=1.0)
    assert frame.scale.state is ScaleState.RELATIVE
    assert np.isnan(frame.depth).all() and np.isfinite(frame.relative).all()
    assert np.isnan(frame.points()).all()


def test_held_then_relative(pipeline, desk):
    image, depth, camera = desk
    anchors, _ = some_of(depth, 200)
    fitted = pipeline(image, camera, anchors, stamp=10.0)
    held = pipeline(image, camera, None, stamp=14.9)
    assert held.scale.state is ScaleState.HELD and held.scale.age == pytest.approx(4.9)
    assert np.trace(held.scale.covariance) > np.trace(fitted.scale.covariance)
    # Too late to carry the depth over: the scale is held, the refinement is not.
    assert np.nanmedian(np.abs(held.depth / fitted.depth - 1)) < 0.1
    lost = pipeline(image, camera, None, stamp=15.1)
    assert lost.scale.state is ScaleState.RELATIVE and np.isnan(lost.depth).all()


def test_reset_and_pictures_on_their_own_hold_nothing(pipeline, desk):
    image, depth, camera = desk
    anchors, _ = some_of(depth, 200)
    pipeline(image, camera, anchors, stamp=1.0)
    pipeline.reset_scale()
    assert pipeline(image, camera, None, stamp=1.1).scale.state is ScaleState.RELATIVE
    assert pipeline(image, camera, anchors).scale.state is ScaleState.METRIC
    assert pipeline(image, camera, None).scale.state is ScaleState.RELATIVE


def test_anchors_may_come_late(pipeline, desk):
    image, depth, camera = desk
    anchors, _ = some_of(depth, 200)
    asked = []

    def late() -> Anchors:
        asked.append(True)
        return anchors

    assert pipeline(image, camera, late, stamp=1.0).scale.state is ScaleState.METRIC
    assert asked == [True]
    assert pipeline(image, camera, lambda: None, stamp=1.1).scale.state is ScaleState.HELD


def test_points_are_the_depth_seen_along_the_rays(pipeline, desk):
    image, depth, camera = desk
    anchors, _ = some_of(depth, 200)
    frame = pipeline(image, camera, anchors)
    points = frame.points(stride=3)
    np.testing.assert_array_equal(
        points[..., 2], np.where(np.isfinite(frame.depth), frame.depth, np.nan)[::3, ::3]
    )
    v, u = 30, 50
    expected = (3 * u - camera.cx) / camera.fx * frame.depth[3 * v, 3 * u]
    assert points[v, u, 0] == pytest.approx(expected, rel=1e-5)


def test_before_a_wall_what_seems_nearer_than_the_wall_is_unknown(pipeline, desk):
    image, _, camera = desk
    relative = pipeline(image).relative
    low, high = np.quantile(relative, [0.2, 0.8])
    v, u = np.nonzero((relative > low) & (relative < high))
    chosen = np.random.default_rng(0).choice(len(u), 300, replace=False)
    wall = np.full(300, 2.0)
    frame = pipeline(image, camera, Anchors(u[chosen], v[chosen], wall, 0.02 * wall), stamp=1.0)
    assert frame.scale.state is ScaleState.METRIC and 'one depth' in frame.scale.reason
    np.testing.assert_allclose(frame.depth[np.isfinite(frame.depth)], 2.0, rtol=0.03)
    nearer, farther = relative > high, relative < low
    assert np.isnan(frame.depth[nearer | farther]).all()
    assert np.isfinite(frame.depth).mean() > 0.5


def test_timing_names_every_stage(pipeline, desk):
    timing = pipeline(desk[0]).timing
    assert set(timing) == {'preprocess', 'inference', 'align', 'postprocess', 'total'}
    assert all(value >= 0 for value in timing.values())
    assert timing['total'] >= timing['inference']


def test_a_prior_scale_is_used_and_called_by_its_name(bundle, desk):
    pipeline = DepthPipeline.load(bundle.folder, prior=(1.0, 0.2))
    frame = pipeline(desk[0], stamp=1.0)
    assert frame.scale.state is ScaleState.PRIOR
    assert not np.isnan(frame.depth).all()


def test_ranges_are_honest(bundle, desk):
    image, depth, camera = desk
    anchors, _ = some_of(depth, 200)
    pipeline = DepthPipeline.load(bundle.folder, min_range=0.8, max_range=1.5)
    depth = pipeline(image, camera, anchors).depth
    finite = depth[np.isfinite(depth)]
    assert finite.min() >= 0.8 and finite.max() < 1.5
    assert np.isposinf(depth).any()
    assert not (depth == 0).any()


@pytest.mark.parametrize(
    'image',
    [
        np.zeros((48, 64), np.uint8),
        np.zeros((48, 64, 4), np.uint8),
        np.zeros((48, 64, 3), np.float32),
        np.zeros((0, 64, 3), np.uint8),
    ],
)
def test_what_is_no_image_is_refused(pipeline, image):
    with pytest.raises(ValueError, match='uint8 RGB'):
        pipeline(image)


def test_anchors_out_of_the_image_do_not_crowd_out_those_in_it(pipeline, desk):
    image, depth, camera = desk
    inside, _ = some_of(depth, 200)
    u, v = np.random.default_rng(0).uniform(-20000, -1, (2, 20000))
    anchors = Anchors(
        np.append(inside.u, u),
        np.append(inside.v, v),
        np.append(inside.depth, np.full(20000, 5.0)),
        np.append(inside.sigma, np.full(20000, 0.05)),
    )
    scale = pipeline(image, camera, anchors).scale
    assert scale.state is ScaleState.METRIC
    assert scale.inliers + scale.outliers == 200


def test_a_stamp_that_is_no_time_is_refused(pipeline, desk):
    image, _, camera = desk
    with pytest.raises(ValueError, match='stamp'):
        pipeline(image, camera, stamp=float('nan'))


def test_a_camera_of_another_size_is_refused(pipeline, desk):
    with pytest.raises(ValueError, match=r'camera is 320x240'):
        pipeline(desk[0], CameraModel.from_fov(320, 240, 1.0))


def test_anchors_of_another_image_size_are_refused(pipeline, desk):
    image, depth, camera = desk
    half = Anchors.from_depth(depth[::2, ::2])
    with pytest.raises(ValueError, match='320x240, this one is 640x480'):
        pipeline(image, camera, half)
    rays = camera.rays()[240, 320]
    points = np.array([[*rays, 1.0]])
    with pytest.raises(ValueError, match='belong to an image of 320x240'):
        pipeline(image, camera, Anchors.from_points(points, camera.scaled(320, 240)))


def test_points_need_a_camera(pipeline, desk):
    with pytest.raises(ValueError, match='from_fov'):
        pipeline(desk[0]).points()


@pytest.mark.parametrize('shape', [(480, 640), (375, 1242), (640, 480), (33, 47)])
def test_black_and_noisy_pictures_never_make_metres_up(pipeline, shape):
    rng = np.random.default_rng(0)
    for image in (
        np.zeros((*shape, 3), np.uint8),
        rng.integers(0, 256, (*shape, 3), dtype=np.uint8),
    ):
        frame = pipeline(image, stamp=1.0)
        assert frame.relative.shape == shape and np.isfinite(frame.relative).all()
        assert np.isnan(frame.depth).all()
