"""The compact network: the encoder is DINOv2, adapters start as nothing, export says the same."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from briges_ros.errors import BrigesError
from briges_ros.inference.bundle import ModelBundle
from briges_ros.network import dinov2, dinov2_weights
from briges_ros.network.compact import CompactDepth, load_compact, save_trained
from briges_ros.network.compose import WEIGHTS, compose_compact, skeleton_file
from briges_ros.network.dpt import DptDecoder
from briges_ros.network.skeleton import write_skeletons

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def weights():
    try:
        return dinov2_weights.weights_path()
    except BrigesError as error:
        pytest.skip(str(error))


@pytest.fixture(scope='module')
def encoder(weights):
    return dinov2.load_dinov2(weights)


def test_the_encoder_equals_the_graph_its_weights_came_in(encoder, weights):
    model = onnx.load(str(weights))
    last = [node for node in model.graph.node if node.name.startswith('/backbone/layernorm/')][-1]
    output = onnx.helper.make_tensor_value_info(last.output[0], onnx.TensorProto.FLOAT, None)
    model.graph.output.append(output)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    image = np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)
    (theirs,) = session.run([last.output[0]], {session.get_inputs()[0].name: image})
    ours = encoder(torch.from_numpy(image))[-1].flatten(2).transpose(1, 2).numpy()
    assert np.abs(theirs[:, 1:] - ours).max() < 1e-4
    assert sum(p.numel() for p in encoder.parameters()) == 22_055_808


def test_a_corrupt_weights_file_is_refused(monkeypatch, weights):
    monkeypatch.setattr(dinov2_weights, 'WEIGHTS_SHA256', '0' * 64)
    with pytest.raises(BrigesError, match='sha256'):
        dinov2_weights.weights_path()


def test_untrained_adapters_change_nothing_and_merging_trained_ones_either(weights):
    encoder = dinov2.load_dinov2(weights)
    image = torch.randn(1, 3, 56, 70, generator=torch.Generator().manual_seed(0))
    plain = encoder(image)
    adapters = encoder.add_adapters(rank=4, first_block=6)
    for before, after in zip(plain, encoder(image), strict=True):
        assert torch.equal(before, after)
    with torch.no_grad():
        for adapter in adapters:
            adapter.normal_(std=0.05)
    trained = encoder(image)
    assert torch.equal(plain[1], trained[1])  # block 5 is in the frozen trunk
    assert not torch.allclose(plain[2], trained[2], atol=1e-3)
    encoder.merge_adapters()
    for before, after in zip(trained, encoder(image), strict=True):
        torch.testing.assert_close(before, after, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(('h', 'w'), [(13, 44), (21, 28), (4, 4), (5, 7)])
def test_the_decoder_takes_any_grid(h, w):
    decoder = DptDecoder(384)
    levels = [torch.randn(2, 384, h, w) for _ in range(4)]
    assert decoder(levels).shape == (2, 1, 8 * h, 8 * w)


@pytest.fixture(scope='module')
def source(tmp_path_factory, weights):
    """What ships of a model, with random weights and adapters that do something."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp('source')
    model = CompactDepth()
    with torch.no_grad():
        for adapter in model.adapters:
            adapter.normal_(std=0.02)
    save_trained(dict(model.trained_parameters()), folder / WEIGHTS, {})
    write_skeletons(folder)
    return folder


def test_a_composed_bundle_says_what_torch_says_at_every_size(source, tmp_path):
    folder = compose_compact(source, tmp_path / 'bundle')
    reference = load_compact(source / WEIGHTS)
    encoder = onnxruntime.InferenceSession(str(folder / 'depth_encoder.onnx'))
    decoder = onnxruntime.InferenceSession(str(folder / 'gate_decoder.onnx'))
    names = [value.name for value in decoder.get_inputs()]
    for size in [(252, 336), (182, 616), (70, 56)]:
        image = np.random.default_rng(0).normal(size=(1, 3, *size)).astype(np.float32)
        levels = encoder.run(None, {'image': image})
        (theirs,) = decoder.run(None, dict(zip(names, levels, strict=True)))
        with torch.no_grad():
            ours = reference(torch.from_numpy(image)).numpy()
        assert np.abs(theirs[:, 0] - ours).max() < 1e-3 * ours.std()
    assert ModelBundle.load(folder).gate == 'none'


def test_what_ships_is_small_and_names_no_folder_of_the_machine(source):
    assert (source / WEIGHTS).stat().st_size < 10e6
    for graph in ('depth_encoder', 'gate_decoder'):
        content = (source / skeleton_file(graph)).read_bytes()
        assert len(content) < 200e3
        assert str(ROOT).encode() not in content


def test_parts_that_do_not_fit_are_refused_and_leave_no_bundle(source, tmp_path):
    mixed = tmp_path / 'mixed'
    shutil.copytree(source, mixed)
    shutil.copy(mixed / skeleton_file('gate_decoder'), mixed / skeleton_file('depth_encoder'))
    save_trained({'decoder.head.0.bias': torch.zeros(3)}, mixed / WEIGHTS, {})
    with pytest.raises(BrigesError, match='the graph wants'):
        compose_compact(mixed, tmp_path / 'bundle')
    assert not (tmp_path / 'bundle' / 'model.json').exists()


@pytest.mark.parametrize('name', [WEIGHTS, 'selfcheck.npz', 'gate_decoder.skeleton.onnx'])
def test_a_missing_part_is_named(source, tmp_path, name):
    partial = tmp_path / 'partial'
    shutil.copytree(source, partial)
    (partial / name).unlink()
    with pytest.raises(BrigesError, match=name):
        compose_compact(partial, tmp_path / 'bundle')


def test_weights_of_another_network_are_refused(tmp_path, weights):
    path = tmp_path / 'weights.safetensors'
    save_trained({'decoder.head.0.bias': torch.zeros(32)}, path, {})
    with pytest.raises(RuntimeError, match='lacks'):
        load_compact(path)
