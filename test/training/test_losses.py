"""The loss of gate training: what it ignores, what it punishes, and that it never breaks."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from briges_ros.training.losses import GateLoss, centred, gradient_matching

FORMS = ('least_squares', 'median')
forms = st.sampled_from(FORMS)
seeds = st.integers(0, 1000)


def maps(seed, batch=2, height=20, width=24):
    """A noisy prediction of a truth with unknown and infinitely far pixels."""
    g = torch.Generator().manual_seed(seed)
    inverse = torch.rand(batch, height, width, generator=g) + 0.1
    prediction = inverse + torch.rand(batch, height, width, generator=g)
    inverse[torch.rand(batch, height, width, generator=g) < 0.2] = torch.nan
    inverse[:, 0, :3] = 0.0
    return prediction, inverse


@settings(max_examples=30, deadline=None)
@given(forms, st.floats(0.2, 20), st.floats(-5, 5), seeds)
def test_scale_and_shift_of_the_prediction_do_not_matter(form, scale, shift, seed):
    prediction, inverse = maps(seed)
    loss = GateLoss(form=form, ratio_weight=1.0)
    one = loss.by_image(prediction, inverse, sharp=True)
    other = loss.by_image(scale * prediction + shift, inverse, sharp=True)
    torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-3)
    assert (one > 0.05).all()


@settings(max_examples=20, deadline=None)
@given(forms, st.floats(0.5, 5), st.floats(-5, 5), seeds)
def test_the_truth_up_to_scale_and_shift_is_perfect(form, scale, shift, seed):
    _, inverse = maps(seed)
    target = torch.nan_to_num(inverse, nan=3.0) / (1 + 1e-3 * torch.nan_to_num(inverse, nan=3.0))
    loss = GateLoss(form=form).by_image(scale * target + shift, inverse, sharp=True)
    assert (loss < 1e-3).all()


@settings(max_examples=20, deadline=None)
@given(forms, seeds)
def test_unknown_pixels_neither_count_nor_learn(form, seed):
    prediction, inverse = maps(seed)
    unknown = torch.isnan(inverse)
    loss = GateLoss(form=form, ratio_weight=1.0)
    prediction.requires_grad_(True)
    value = loss.by_image(prediction, inverse, sharp=True)
    value.sum().backward()
    assert torch.isfinite(prediction.grad).all() and (prediction.grad[unknown] == 0).all()
    assert (prediction.grad[~unknown] != 0).any()
    other = torch.where(unknown, torch.full_like(prediction, 1e3), prediction.detach())
    torch.testing.assert_close(value, loss.by_image(other, inverse, sharp=True))


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('known', [0, 1, 2])
def test_images_with_hardly_a_known_pixel_give_no_nan(form, known):
    prediction, inverse = maps(0)
    inverse[0] = torch.nan
    inverse[0, 5, 5 : 5 + known] = torch.tensor([0.5, 0.7])[:known]
    prediction.requires_grad_(True)
    loss = GateLoss(form=form, ratio_weight=1.0).by_image(prediction, inverse, sharp=True)
    loss.sum().backward()
    assert torch.isfinite(loss).all() and torch.isfinite(prediction.grad).all()
    if known == 0:
        assert loss[0] == 0 and (prediction.grad[0] == 0).all()
    alone = GateLoss(form=form, ratio_weight=1.0).by_image(prediction[1:], inverse[1:], sharp=True)
    torch.testing.assert_close(loss[1:], alone)


@pytest.mark.parametrize('form', FORMS)
def test_a_constant_prediction_or_truth_gives_no_nan(form):
    prediction, inverse = maps(0)
    loss = GateLoss(form=form, ratio_weight=1.0)
    for p, t in [(torch.full_like(prediction, 0.3), inverse), (prediction, 0 * inverse + 0.5)]:
        p.requires_grad_(True)
        value = loss.by_image(p, t, sharp=True)
        value.sum().backward()
        assert torch.isfinite(value).all() and torch.isfinite(p.grad).all()


def test_least_squares_is_what_numpy_says():
    prediction, inverse = maps(3, batch=1)
    valid = torch.isfinite(inverse)[0].numpy()
    p, i = prediction[0].numpy()[valid].astype(float), inverse[0].numpy()[valid].astype(float)
    target = i / (1 + 1e-3 * i)
    target = (target - target.min()) / (target.max() - target.min())
    design = np.stack([p, np.ones_like(p)], 1)
    fitted = design @ np.linalg.lstsq(design, target, rcond=None)[0]
    loss = GateLoss().by_image(prediction, inverse, sharp=False)
    assert float(loss) == pytest.approx(np.abs(fitted - target).mean(), rel=1e-4)


def test_the_median_form_is_what_numpy_says():
    x, inverse = maps(5, batch=1)
    valid = torch.isfinite(inverse)
    known = x[valid].numpy()
    median = np.sort(known)[(known.size - 1) // 2]  # the lower one of an even number
    expected = (known - median) / np.abs(known - median).mean()
    np.testing.assert_allclose(centred(x, valid)[valid].numpy(), expected, rtol=1e-4, atol=1e-5)


def test_gradients_are_matched_only_where_labels_are_sharp():
    prediction, inverse = maps(0)
    with_term, without = GateLoss(gradient_weight=2.0), GateLoss(gradient_weight=0.0)
    plain = without.by_image(prediction, inverse, sharp=True)
    assert torch.equal(with_term.by_image(prediction, inverse, sharp=False), plain)
    assert (with_term.by_image(prediction, inverse, sharp=True) > plain).all()


def test_gradients_are_matched_in_both_directions_and_at_four_scales():
    valid = torch.ones(1, 16, 16, dtype=torch.bool)
    ramp = torch.arange(16.0).expand(1, 16, 16)
    # Neighbours differ by 1, 2, 4 and 8 at the four scales, along one direction alone.
    assert float(gradient_matching(ramp, valid)) == pytest.approx(15 / 4)
    assert float(gradient_matching(ramp.mT, valid)) == pytest.approx(15 / 4)
    target = torch.rand(1, 32, 32, generator=torch.Generator().manual_seed(0)) + 0.1
    edge = torch.zeros_like(target)
    edge[:, :, 16:] = 0.5
    loss = GateLoss(affine_weight=0.0, gradient_weight=1.0)
    across = loss.by_image(target + edge, target, sharp=True)
    down = loss.by_image((target + edge).mT, target.mT, sharp=True)
    torch.testing.assert_close(across, down)
    assert (across > 0.01).all()


def test_the_loss_of_a_batch_does_not_depend_on_how_it_is_split():
    prediction, inverse = maps(0, batch=6)
    inverse[0, :15] = torch.nan  # images with different numbers of pixels
    loss = GateLoss(ratio_weight=0.5)
    whole = loss.by_image(prediction, inverse, sharp=True)
    parts = [loss.by_image(prediction[i : i + 2], inverse[i : i + 2], True) for i in (0, 2, 4)]
    torch.testing.assert_close(whole, torch.cat(parts))


def test_a_negative_weight_is_refused():
    with pytest.raises(ValueError, match='negative'):
        GateLoss(gradient_weight=-1.0)
