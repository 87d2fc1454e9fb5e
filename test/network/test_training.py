"""Losses, splits, augmentation, and a trainer that survives being killed."""

import json
import math
from itertools import pairwise

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from briges_ros.errors import BrigesError
from briges_ros.evaluation.metrics import affine_invariant_depth, depth_metrics
from briges_ros.network import dinov2_weights
from briges_ros.training import trainer as training
from briges_ros.training.augment import random_view, shrink_inverse
from briges_ros.training.checkpoint import warm_cosine
from briges_ros.training.datasets import NyuV2, Sample, nyu_split, project_inverse
from briges_ros.training.feature_cache import CachedViews, ViewGroup
from briges_ros.training.gate_config import read_config
from briges_ros.training.losses import align, depth_loss
from briges_ros.training.trainer import TrainConfig, Trainer

finite = st.floats(-5, 5)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.1, 10), finite, st.integers(0, 1000))
def test_the_loss_ignores_scale_and_shift(scale, shift, seed):
    g = torch.Generator().manual_seed(seed)
    target = torch.rand(2, 12, 16, generator=g) + 0.1
    prediction = torch.rand(2, 12, 16, generator=g)
    one = depth_loss(prediction, target, 0.5, 1.0)
    other = depth_loss(scale * prediction + shift, target, 0.5, 1.0)
    assert float(one) == pytest.approx(float(other), rel=2e-3, abs=2e-3)
    assert float(depth_loss(scale * target + shift, target, 0.5, 1.0)) < 0.01


def test_unknown_pixels_do_not_count():
    g = torch.Generator().manual_seed(0)
    target = torch.rand(1, 12, 16, generator=g) + 0.1
    prediction = target.clone()
    prediction[:, :4] = 100.0
    target[:, :4] = torch.nan
    prediction.requires_grad_(True)
    loss = depth_loss(prediction, target, 0.5, 1.0)
    assert float(loss.detach()) < 0.01
    loss.backward()
    assert torch.isfinite(prediction.grad).all()
    assert (prediction.grad[:, :4] == 0).all()


def test_a_prediction_that_runs_the_wrong_way_is_not_mended():
    target = torch.rand(1, 12, 16, generator=torch.Generator().manual_seed(0)) + 0.1
    aligned = align(-target, target, torch.ones_like(target, dtype=torch.bool))
    torch.testing.assert_close(aligned, target.mean().expand_as(aligned))


def test_a_frame_without_labels_gives_no_gradient_and_no_nan():
    prediction = torch.rand(1, 8, 8, requires_grad=True)
    loss = depth_loss(prediction, torch.full((1, 8, 8), torch.nan), 0.5, 1.0)
    loss.backward()
    assert float(loss.detach()) == 0 and (prediction.grad == 0).all()


def test_held_out_blocks_and_their_margins():
    splits = {n: nyu_split(n) for n in range(1449)}
    held_out = [n for n, split in splits.items() if split == 'held_out']
    expected = [*range(420, 480), *range(900, 960), *range(1380, 1440)]
    assert held_out == expected
    train = np.array([n for n, split in splits.items() if split == 'train'])
    assert np.abs(train[:, None] - np.array(held_out)[None]).min() > 6


def test_metrics_on_numbers_done_by_hand():
    truth = np.array([[1.0, 2.0, 4.0, np.nan]])
    result = depth_metrics(np.array([[1.1, 2.0, 2.0, 3.0]]), truth)
    assert result.abs_rel == pytest.approx((0.1 + 0 + 0.5) / 3)
    assert result.delta1 == pytest.approx(2 / 3)
    assert result.pixels == 3


@settings(max_examples=30, deadline=None)
@given(st.floats(0.1, 10), finite, st.integers(0, 1000))
def test_the_protocol_finds_scale_and_shift(scale, shift, seed):
    truth = np.random.default_rng(seed).uniform(0.5, 8, (20, 30))
    depth = affine_invariant_depth((1 / truth - shift) / scale, truth, 1e-3, 10.0)
    np.testing.assert_allclose(depth, truth, rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000))
def test_shrinking_labels_invents_nothing(seed):
    rng = np.random.default_rng(seed)
    inverse = rng.uniform(0.1, 1, (30, 40)).astype(np.float32)
    inverse[rng.random((30, 40)) < 0.9] = np.nan
    small = shrink_inverse(inverse, 8, 6)
    assert set(small[np.isfinite(small)]) <= set(inverse[np.isfinite(inverse)])
    assert np.nanmax(small) == np.nanmax(inverse)  # the nearest survives


def test_views_keep_image_and_label_together():
    inverse = np.tile(np.linspace(0.1, 0.9, 400, dtype=np.float32), (300, 1))
    grey = (inverse * 255).astype(np.uint8)
    sample = Sample('ramp', np.repeat(grey[..., None], 3, axis=2), inverse)
    for seed in range(20):
        image, label = random_view(sample, 392, 294, 0.65, np.random.default_rng(seed))
        assert image.shape == (294, 392, 3) and label.shape == (168, 224)
        small = cv2.resize(image, (224, 168)).mean(axis=(0, 2))
        assert np.corrcoef(small, label.mean(axis=0))[0, 1] > 0.9  # flipped both or none


def test_lidar_hidden_behind_a_near_object_is_dropped():
    K = np.array([[100.0, 0, 50], [0, 100.0, 50], [0, 0, 1]])
    xyz = np.array([[0, 0, 2.0], [0.1, 0, 10.0], [4.0, 0, 10.0], [0, 0, -3.0]])
    inverse = project_inverse(xyz, K, 100, 100)
    assert np.nanmax(inverse) == pytest.approx(0.5)
    assert np.isfinite(inverse).sum() == 2


def test_the_rate_warms_up_and_ends_at_zero():
    rates = [warm_cosine(step, 10, 100) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == 1.0 and rates[100] == pytest.approx(0.0)
    assert all(a >= b for a, b in pairwise(rates[10:]))


@pytest.fixture
def tiny_data(tmp_path):
    """A few made-up frames in the layout of the real data."""
    rng = np.random.default_rng(0)
    for folder in ('nyuv2/rgb', 'nyuv2/depth', 'kitti_drive/image', 'kitti_drive/lidar'):
        (tmp_path / folder).mkdir(parents=True)
    for number in (0, 1, 2, 420):
        picture = cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), (480, 357))
        cv2.imwrite(str(tmp_path / f'nyuv2/rgb/{number:04d}.jpg'), picture)
        cv2.imwrite(str(tmp_path / f'nyuv2/depth/{number:04d}.png'), picture[..., 0] // 2 + 60)
    picture = cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), (1242, 375))
    for number in range(2):
        cv2.imwrite(str(tmp_path / f'kitti_drive/image/{number:06d}.jpg'), picture)
        points = rng.uniform([-5, -1, 4], [5, 1, 30], (500, 3))
        np.save(tmp_path / f'kitti_drive/lidar/{number:06d}.npy', points.astype(np.float32))
    calibration = {
        'K': [[721.0, 0, 610], [0, 721.0, 173], [0, 0, 1]],
        'T_camera_lidar': np.eye(4).tolist(),
    }
    (tmp_path / 'kitti_drive/calibration.json').write_text(json.dumps(calibration))
    return tmp_path


@pytest.fixture
def small_views(monkeypatch):
    """Training on a quarter of the patches: it takes as long as they are many."""

    def quarter(name, width, height, *settings, **more):
        return ViewGroup(name, width // 28 * 14, height // 28 * 14, *settings, **more)

    monkeypatch.setattr(training, 'ViewGroup', quarter)


@pytest.mark.usefixtures('small_views')
def test_a_killed_training_resumes_to_the_same_weights(tiny_data, tmp_path, monkeypatch):
    try:
        dinov2_weights.weights_path()
    except BrigesError as error:
        pytest.skip(str(error))
    config = TrainConfig(views=1, batch=1, epochs=1, warmup_steps=2, checkpoint_steps=2)
    whole = Trainer(config, tiny_data, tmp_path / 'whole', 'cpu')
    frozen = {n: p.clone() for n, p in whole.model.named_parameters() if n not in whole.trained}
    score = whole.train()
    assert score.frames == 1 and np.isfinite(score.abs_rel)
    for name, parameter in whole.model.named_parameters():
        assert name in whole.trained or torch.equal(parameter, frozen[name])

    class Killed(Exception):
        pass

    killed = Trainer(config, tiny_data, tmp_path / 'killed', 'cpu')
    step = killed._step

    def die_at_three(*arguments):
        if killed.step == 3:
            raise Killed
        return step(*arguments)

    monkeypatch.setattr(killed, '_step', die_at_three)
    with pytest.raises(Killed):
        killed.train()
    resumed = Trainer(config, tiny_data, tmp_path / 'killed', 'cpu')
    assert resumed.step == 2
    resumed.train()
    assert resumed.step == whole.step > 3
    for name in whole.ema:
        torch.testing.assert_close(whole.ema[name], resumed.ema[name], atol=0, rtol=0)

    other = TrainConfig(views=1, batch=1, epochs=2)
    with pytest.raises(BrigesError, match='other settings'):
        Trainer(other, tiny_data, tmp_path / 'killed', 'cpu')


@pytest.mark.usefixtures('small_views')
def test_a_loss_that_is_no_number_names_its_frames_and_keeps_the_checkpoint(
    tiny_data, tmp_path, monkeypatch
):
    try:
        dinov2_weights.weights_path()
    except BrigesError as error:
        pytest.skip(str(error))
    config = TrainConfig(views=1, batch=1, epochs=1, checkpoint_steps=1)
    trainer = Trainer(config, tiny_data, tmp_path / 'work', 'cpu')
    forward = trainer.model.from_trunk

    def broken(*arguments):
        return forward(*arguments) * (torch.nan if trainer.step == 1 else 1.0)

    monkeypatch.setattr(trainer.model, 'from_trunk', broken)
    with pytest.raises(BrigesError, match=r'the loss is nan at step 2, from frames \S+ \d'):
        trainer.train()
    assert Trainer(config, tiny_data, tmp_path / 'work', 'cpu').step == 1


def test_a_folder_without_frames_is_refused(tmp_path):
    with pytest.raises(BrigesError, match='holds no frames'):
        NyuV2(tmp_path, 'train')


@pytest.mark.parametrize(
    ('key', 'value', 'allowed'),
    [
        *((key, 0, 'positive, not 0') for key in ('views', 'batch', 'epochs', 'checkpoint_steps')),
        *((key, -1e-3, 'positive, not -0.001') for key in ('decoder_lr', 'adapter_lr', 'clip')),
        ('adapter_lr', math.nan, 'positive, not nan'),
        *(
            (key, -0.5, 'at least 0, not -0.5')
            for key in ('gradient_weight', 'ratio_weight', 'weight_decay')
        ),
        *((key, -1, 'at least 0, not -1') for key in ('warmup_steps', 'seed')),
        ('ema', 1.0, r'in \[0, 1\), not 1.0'),
    ],
)
def test_settings_that_cannot_work_are_refused(key, value, allowed, tmp_path):
    with pytest.raises(ValueError, match=f'^{key} must be {allowed}$'):
        TrainConfig(**{key: value})
    text = '.nan' if value != value else repr(value)
    (tmp_path / 'bad.yaml').write_text(f'{key}: {text}')
    with pytest.raises(BrigesError, match=rf'bad\.yaml: {key} must be {allowed}$'):
        read_config(TrainConfig, tmp_path / 'bad.yaml')


def test_settings_at_the_ends_of_what_is_allowed_are_taken():
    TrainConfig(batch=1, views=1, ema=0.0, gradient_weight=0.0, weight_decay=0.0, warmup_steps=0)


def test_a_batch_larger_than_every_data_set_is_refused(tmp_path, monkeypatch):
    try:
        dinov2_weights.weights_path()
    except BrigesError as error:
        pytest.skip(str(error))
    none = np.zeros(0, np.float16)
    views = CachedViews(ViewGroup('three frames', 28, 28, 1), 3, True, none, none)
    monkeypatch.setattr(Trainer, '_open_data', lambda *_: ([views], views))
    with pytest.raises(BrigesError, match='enough frames for a batch of 4; lower batch'):
        Trainer(TrainConfig(batch=4), tmp_path, tmp_path, 'cpu')
