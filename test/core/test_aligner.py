"""The steps of the alignment together, on a scene that is known everywhere."""

import cv2
import numpy as np
import pytest

from briges_ros.alignment import Anchors, ScaleState
from briges_ros.alignment.aligner import Aligner
from briges_ros.camera import CameraModel
from briges_ros.depth_image import depth_from_inverse
from briges_ros.obstacles import ground_of_base, level_camera_pose

H, W = 120, 160
CAMERA = CameraModel(W, H, [[120, 0, 80], [0, 120, 60], [0, 0, 1]])
IMAGE = cv2.GaussianBlur(
    np.random.default_rng(5).integers(0, 256, (H, W, 3), dtype=np.uint8), (0, 0), 2
)
V, U = np.mgrid[0:H, 0:W].astype(np.float32)
TRUTH = 0.1 + 0.4 * V / H  # 1/m: 2 to 10 m
RELATIVE = (5 * TRUTH * np.exp(0.2 * np.sin(U / 30) * np.cos(V / 25)) - 0.1).astype(np.float32)


def anchors(count=300, factor=1.0, seed=0):
    chosen = np.random.default_rng(seed).permutation(H * W)[:count]
    v, u = np.divmod(chosen, W)
    z = factor / TRUTH[v, u]
    return Anchors(u, v, z, 0.01 * z, (W, H))


def aligned(aligner, given, stamp, **options):
    """The alignment of a frame, its depth and the sigma of that."""
    alignment = aligner.align(IMAGE, RELATIVE, CAMERA, given, stamp, **options)
    scale = alignment.scale
    if scale.state is ScaleState.RELATIVE:
        depth = np.full((H, W), np.nan, np.float32)
    else:
        depth = depth_from_inverse(alignment.relative, scale.scale, scale.shift, 0.1, 100.0)
    return alignment, depth, aligner.remember(IMAGE, depth, alignment, CAMERA, stamp)


def error(depth, factor=1.0):
    return float(np.mean(np.abs(depth * TRUTH / factor - 1)))


def test_refinement_is_in_the_relative_depth_and_can_be_left_out():
    plain, alone, _ = aligned(Aligner(refinement=False), anchors(), None)
    assert plain.relative is RELATIVE and not plain.refined
    refined, depth, sigma = aligned(Aligner(), anchors(), None)
    assert refined.scale.state is ScaleState.METRIC and refined.refined
    assert error(depth) < 0.3 * error(alone)
    assert 0.5 < np.mean(np.abs(depth - 1 / TRUTH) < sigma) < 0.95


def test_a_stuck_reading_does_not_refine():
    given = anchors(600)
    z = given.depth.copy()
    z[given.u < 0.4 * W] = 4.0
    stuck = Anchors(given.u, given.v, z, 0.01 * z, (W, H))
    _, alone, _ = aligned(Aligner(refinement=False), stuck, None)
    _, depth, _ = aligned(Aligner(), stuck, None)
    left = U < 0.4 * W
    assert np.mean(np.abs(depth * TRUTH - 1)[left]) < 1.2 * np.mean(np.abs(alone * TRUTH - 1)[left])
    assert error(depth) < error(alone)


def test_what_was_refined_is_carried_to_a_frame_without_anchors():
    aligner = Aligner()
    aligned(aligner, anchors(), 0.0)
    held, depth, _ = aligned(aligner, None, 0.1)
    _, alone, _ = aligned(Aligner(refinement=False), anchors(), None)
    assert held.scale.state is ScaleState.HELD and held.refined
    assert error(depth) < 0.6 * error(alone)


@pytest.mark.parametrize('factor', [0.5, 1.5])
def test_a_step_of_the_true_scale_leaves_the_carried_depth_behind(factor):
    aligner = Aligner()
    for frame in range(3):
        aligned(aligner, anchors(seed=frame), 0.1 * frame)
    few = anchors(40, factor, seed=9)
    stepped, depth, _ = aligned(aligner, few, 0.3)
    _, afresh, _ = aligned(Aligner(), few, None)
    assert stepped.scale.state is ScaleState.METRIC
    assert error(depth, factor) < 1.1 * error(afresh, factor) + 0.01


def test_reset_forgets_the_scale_and_the_depth():
    aligner = Aligner(prior=(1.0, 0.2))
    aligned(aligner, anchors(), 0.0)
    aligner.reset()
    prior, _, _ = aligned(aligner, None, 0.1)
    assert prior.scale.state is ScaleState.PRIOR and not prior.refined


def test_without_a_scale_there_is_no_sigma():
    unknown, _, sigma = aligned(Aligner(), None, 0.0)
    assert unknown.scale.state is ScaleState.RELATIVE
    assert np.isnan(sigma).all()


def test_the_ground_is_a_prior_until_there_are_anchors():
    rays = CAMERA.rays()
    ground = ground_of_base(level_camera_pose(1.5, 0.35))
    inverse = rays[..., 0] * ground.inverse[0] + rays[..., 1] * ground.inverse[1]
    inverse = np.maximum(inverse + ground.inverse[2], 0.02).astype(np.float32)
    aligner = Aligner()
    prior = aligner.align(IMAGE, 3 * inverse + 1, CAMERA, None, 0.0, ground).scale
    assert prior.state is ScaleState.PRIOR
    assert (prior.scale, prior.shift) == pytest.approx((1 / 3, -1 / 3), rel=0.05)
    unseen = aligner.align(IMAGE, np.ones((H, W), np.float32), CAMERA, None, 0.1, ground).scale
    assert unseen.state is ScaleState.RELATIVE and 'no floor in view' in unseen.reason
    assert aligned(aligner, anchors(), 0.2, ground=ground)[0].scale.state is ScaleState.METRIC


def test_metres_by_neighbours_are_for_a_refinement():
    flat = (1 + 0.5 * np.cos(U / 11) * np.sin(V / 17)).astype(np.float32)
    z = 0.8 + 0.3 * np.sin(U / 40)
    v, u = np.divmod(np.random.default_rng(0).permutation(H * W)[:400], W)
    given = Anchors(u, v, z[v, u], 0.01 * z[v, u], (W, H))
    assert Aligner().align(IMAGE, flat, CAMERA, given, None).scale.state is ScaleState.METRIC
    without = Aligner(refinement=False).align(IMAGE, flat, CAMERA, given, None)
    assert without.scale.state is ScaleState.RELATIVE
