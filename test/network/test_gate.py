"""The Bridging Gate and the network around it, on the numbers and formulas of the paper."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from briges_ros.network.briges import Briges, state_sha256
from briges_ros.network.gate import (
    Attention,
    AttentionTemperature,
    GateCore,
    LightGate,
    PaperGate,
    align_segmentation,
    set_temperature,
)


def parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ('gate', 'width', 'millions'),
    [(PaperGate, 768, 56.7), (PaperGate, 1024, 100.8), (LightGate, 384, 12.7)],
)
def test_four_gates_have_the_published_number_of_parameters(gate, width, millions):
    with torch.device('meta'):
        assert round(4 * parameters(gate(width)) / 1e6, 1) == millions


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12), st.integers(1, 12))
def test_an_untrained_light_gate_is_not_there_whatever_the_sizes(h, w, hs, ws):
    level, segmentation = torch.randn(2, 24, h, w), torch.randn(2, 10, hs, ws)
    gate = LightGate(24, segmentation_width=10, channels=16)
    assert torch.equal(gate(level, segmentation), level)
    nn.init.normal_(gate.expand[-1].weight)
    changed = gate(level, segmentation)
    assert changed.shape == level.shape and not torch.equal(changed, level)


def test_the_light_gate_learns_from_its_first_step():
    gate = LightGate(24, segmentation_width=10, channels=16)
    gate(torch.randn(1, 24, 3, 4), torch.randn(1, 10, 6, 8)).square().mean().backward()
    assert gate.expand[-1].weight.grad.abs().sum() > 0


def test_the_light_gate_tells_one_place_from_another_by_its_segmentation():
    gate = LightGate(24, segmentation_width=10, channels=16)
    nn.init.normal_(gate.expand[-1].weight)
    level = torch.ones(1, 24, 4, 9)  # every depth token alike, so attention alone is alike, too
    segmentation = torch.zeros(1, 10, 8, 18)
    segmentation[..., :6] = torch.randn(1, 10, 1, 1)
    left, _, right = gate(level, segmentation)[0, :, 2].split(3, dim=1)
    assert (left[:, 1] - right[:, 1]).abs().max() > 0.1


def test_the_paper_gate_is_its_formula():
    gate = PaperGate(32, heads=4)
    level, segmentation = torch.randn(1, 32, 3, 5), torch.randn(1, 32, 4, 4)
    core = gate.core

    def attend(attention, x, y):
        q, k, v = (
            linear(t).reshape(1, -1, 4, 8).transpose(1, 2)
            for linear, t in ((attention.query, x), (attention.key, y), (attention.value, y))
        )
        weights = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(8), dim=-1)
        return attention.project((weights @ v).transpose(1, 2).flatten(2))

    aligned = nn.functional.interpolate(segmentation, size=(6, 10), mode='bilinear')
    y = nn.functional.max_pool2d(aligned, 2).flatten(2).transpose(1, 2)
    x = level.flatten(2).transpose(1, 2)
    x = x + attend(core.cross, core.norm_query(x), core.norm_segmentation(y))
    x = x + core.mlp1(core.norm_mlp1(x))
    x = x + attend(core.self_attention, core.norm_self(x), core.norm_self(x))
    x = x + core.mlp2(core.norm_mlp2(x))
    expected = x.transpose(1, 2).reshape(1, 32, 3, 5)
    torch.testing.assert_close(gate(level, segmentation), expected, atol=1e-5, rtol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.25, 20))
def test_temperature_divides_the_logits(tau):
    attention = Attention(16, 2)
    x, y = torch.randn(1, 5, 16), torch.randn(1, 7, 16)
    attention.tau = tau
    scaled = attention(x, y)
    attention.tau = 1.0
    with torch.no_grad():  # the same by dividing the queries, which is how it is exported
        attention.query.weight /= tau
        attention.query.bias /= tau
    torch.testing.assert_close(attention(x, y), scaled, atol=1e-5, rtol=1e-4)


def test_a_high_temperature_attends_to_all_alike():
    attention = Attention(16, 2)
    x, y = 10 * torch.randn(1, 5, 16), 10 * torch.randn(1, 7, 16)
    attention.tau = 1e6
    mean = attention.project(attention.value(y).mean(1, keepdim=True)).expand(1, 5, 16)
    torch.testing.assert_close(attention(x, y), mean, atol=1e-3, rtol=1e-3)


def test_temperature_reaches_every_gate_and_each_attention_has_its_own():
    gates = nn.ModuleList(LightGate(24, 10, 16) for _ in range(2))
    set_temperature(gates, AttentionTemperature(cross=3.0, self_attention=1.5))
    cores = [m for m in gates.modules() if isinstance(m, GateCore)]
    assert [(c.cross.tau, c.self_attention.tau) for c in cores] == [(3.0, 1.5)] * 2


@pytest.mark.parametrize('tau', [0.0, -1.0, math.nan, math.inf])
def test_a_senseless_temperature_is_refused(tau):
    with pytest.raises(ValueError, match='positive'):
        AttentionTemperature(cross=tau)


def test_alignment_doubles_the_depth_grid():
    assert align_segmentation(torch.randn(1, 4, 64, 64), 21, 28).shape == (1, 4, 42, 56)


class Encoder(nn.Module):
    def __init__(self, width, step, levels):
        super().__init__()
        self.patch = nn.Conv2d(3, width, step, step)
        self.norm = nn.BatchNorm2d(width)
        self.levels = levels

    def forward(self, image):
        x = self.norm(self.patch(image))
        return [x + i for i in range(4)] if self.levels else x


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(96, 1, 1)

    def forward(self, levels):
        return self.head(torch.cat(levels, 1))


def network(levels=(1, 3)):
    return Briges(
        Encoder(24, 14, True),
        Decoder(),
        Encoder(10, 16, False),
        {level: LightGate(24, 10, 16) for level in levels},
    )


def test_untrained_the_network_is_the_frozen_one_bit_for_bit():
    model = network().freeze().eval()
    plain = Briges(model.depth_encoder, model.decoder)
    image, segmentation_image = torch.randn(1, 3, 42, 56), torch.randn(1, 3, 48, 64)
    assert torch.equal(model(image, segmentation_image), plain(image))
    assert (model.gate_kind, plain.gate_kind) == ('light', 'none')


def test_only_named_levels_are_bridged():
    model = network(levels=(3,))
    nn.init.normal_(model.gates['3'].expand[-1].weight)
    levels = [torch.randn(1, 24, 3, 4) for _ in range(4)]
    bridged = model.bridge(levels, torch.randn(1, 10, 3, 4))
    assert [torch.equal(a, b) for a, b in zip(levels, bridged, strict=True)] == [True] * 3 + [False]


def test_training_the_gates_leaves_the_frozen_parts_alone():
    model = network().freeze()
    before = {name: state_sha256(part) for name, part in model.frozen_parts().items()}
    gates = state_sha256(model.gates)
    model.train()
    assert model.gates.training and not model.depth_encoder.norm.training
    optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
    for _ in range(2):
        model(torch.randn(2, 3, 28, 28), torch.randn(2, 3, 32, 32)).square().mean().backward()
        optimizer.step()
    assert {name: state_sha256(part) for name, part in model.frozen_parts().items()} == before
    assert state_sha256(model.gates) != gates


def test_the_digest_sees_one_changed_bit_and_a_changed_name():
    layer = nn.Linear(3, 3)
    before = state_sha256(layer)
    with torch.no_grad():
        layer.weight[0, 0] = torch.nextafter(layer.weight[0, 0], torch.tensor(9.0))
    assert state_sha256(layer) != before
    assert state_sha256(nn.Sequential(layer)) != state_sha256(layer)


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(ValueError, match='need a segmentation encoder'):
        Briges(Encoder(24, 14, True), Decoder(), None, {0: LightGate(24)})
    with pytest.raises(ValueError, match='0 to 3'):
        network(levels=(4,))
    with pytest.raises(ValueError, match='no multiple'):
        PaperGate(30, heads=16)
    with pytest.raises(ValueError, match='needs segmentation features'):
        network().bridge([torch.zeros(1, 24, 2, 2)] * 4, None)
