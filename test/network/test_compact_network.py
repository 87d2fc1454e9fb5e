"""The compact network: the encoder is DINOv2, adapters start as nothing, export says the same."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from briges_ros import DepthPipeline
from briges_ros.cli import export
from briges_ros.cli.export import ExportJob
from briges_ros.errors import BrigesError
from briges_ros.inference.bundle import ModelBundle
from briges_ros.inference.engine import EngineError, open_engine
from briges_ros.inference.preprocess import prepare
from briges_ros.inference.selfcheck import check_engine, open_checked_engine
from briges_ros.network import dinov2, dinov2_weights, segmentation
from briges_ros.network.briges import Briges, state_sha256
from briges_ros.network.compact import (
    CompactDepth,
    load_compact,
    load_compact_briges,
    save_trained,
)
from briges_ros.network.compose import (
    GATE,
    SEGMENTATION,
    SEGMENTATION_INPUT,
    WEIGHTS,
    compose_compact,
    skeleton_file,
)
from briges_ros.network.dpt import DptDecoder
from briges_ros.network.gate import AttentionTemperature, LightGate
from briges_ros.network.segmentation import CompactSegmentation
from briges_ros.network.skeleton import write_selfchecks, write_skeletons

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


def test_adapters_of_lower_blocks_are_added_to_weights_that_have_none(weights, tmp_path):
    upper, path = CompactDepth(6), tmp_path / WEIGHTS
    with torch.no_grad():
        for adapter in upper.adapters:
            adapter.normal_(std=0.02)
    save_trained(dict(upper.trained_parameters()), path, {})
    image = torch.randn(1, 3, 56, 70, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, grown = load_compact(path)(image), load_compact(path, 0)
        torch.testing.assert_close(grown(image), before)
        assert grown.trunk(image).shape == (1, 1, 21, 384)
        grown.encoder.blocks[0].fc1.up.normal_(std=0.02)
        after = grown(image)
        assert not torch.allclose(after, before, rtol=1e-2)
        save_trained(dict(grown.trained_parameters()), path, {})
        again = load_compact(path)  # as many adapters as the file has
    assert again.first_adapted_block == 0
    torch.testing.assert_close(again(image), after, rtol=1e-2, atol=1e-2)
    with pytest.raises(BrigesError, match=r'blocks\.0\..* is \[.*\] in the file and missing'):
        load_compact(path, 6)


@pytest.mark.parametrize(('h', 'w'), [(13, 44), (21, 28), (4, 4), (5, 7)])
def test_the_decoder_takes_any_grid(h, w):
    decoder = DptDecoder(384)
    levels = [torch.randn(2, 384, h, w) for _ in range(4)]
    assert decoder(levels).shape == (2, 1, 8 * h, 8 * w)


LEVELS = (1, 3)


def save_gates(gates: nn.ModuleDict, folder: Path) -> None:
    save_trained(nn.ModuleDict({'gates': gates}).state_dict(), folder / GATE, {})


@pytest.fixture(scope='module')
def source(tmp_path_factory, weights):
    """What ships of a model with gates: random weights, and a gate that changes a lot.

    The skeletons are written before, from weights of which many are equal (zero biases, gates that
    are still closed): they must serve any weights.
    """
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp('source')
    depth, encoder = CompactDepth(), CompactSegmentation().fuse()
    gates = nn.ModuleDict({str(level): LightGate(384) for level in LEVELS})
    for parameter in [*encoder.parameters(), *depth.decoder.parameters(), *gates.parameters()]:
        if parameter.ndim == 1:
            nn.init.zeros_(parameter)
    save_trained(dict(depth.trained_parameters()), folder / WEIGHTS, {})
    save_trained(encoder.state_dict(), folder / SEGMENTATION, {})
    save_gates(gates, folder)
    write_skeletons(folder)
    with torch.no_grad():
        for adapter in depth.adapters:
            adapter.normal_(std=0.02)
        for module in (*encoder.modules(), *depth.decoder.modules(), *gates.modules()):
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                module.reset_parameters()
            elif isinstance(module, nn.LayerNorm):
                module.weight.normal_(1.0, 0.2)
                module.bias.normal_(std=0.2)
        for name, parameter in gates.named_parameters():
            if 'query' in name:
                parameter *= 8  # attention that is sharp, so that a temperature matters
            elif 'expand.2' in name:
                parameter *= 16  # an error of bf16 cannot hide the gate
    save_trained(dict(depth.trained_parameters()), folder / WEIGHTS, {})
    save_trained(encoder.state_dict(), folder / SEGMENTATION, {})
    save_gates(gates, folder)
    write_selfchecks(folder)
    return folder


@pytest.fixture(scope='module')
def network(source) -> Briges:
    return load_compact_briges(source)


@pytest.fixture(scope='module')
def gated(source, tmp_path_factory) -> ModelBundle:
    return ModelBundle.load(compose_compact(source, tmp_path_factory.mktemp('gated')))


@pytest.fixture(scope='module')
def plain(source, tmp_path_factory) -> ModelBundle:
    return ModelBundle.load(compose_compact(source, tmp_path_factory.mktemp('plain'), 'none'))


EXACT = 1e-4  # relative error of float32
IMAGE_SIZES = [(480, 640), (57, 33), (3, 700)]


def picture(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(ours).max())


def in_torch(network: Briges, inputs: tuple[np.ndarray, ...]) -> np.ndarray:
    with torch.no_grad():
        return network(*map(torch.from_numpy, inputs))[0, 0].numpy()


@pytest.mark.parametrize('backend', ['openvino', 'onnxruntime', 'torch'])
def test_a_gated_bundle_says_what_torch_says_at_every_size(gated, plain, network, backend):
    pytest.importorskip(backend, reason=f'{backend} is not installed')
    assert gated.gate == 'light' and set(gated.graphs) > set(plain.graphs)
    engine = open_engine(gated, backend, 'fp32')
    baseline = open_engine(plain, backend, 'fp32')
    assert check_engine(engine, gated).relative_error < EXACT
    for size in IMAGE_SIZES:
        inputs = prepare(picture(size), gated, token_budget=300)
        result = engine.infer(*inputs)
        assert relative_error(in_torch(network, inputs), result) < EXACT
        assert relative_error(result, baseline.infer(inputs[0])) > 0.1  # the gate is not idle


@pytest.mark.parametrize('backend', ['openvino', 'onnxruntime', 'torch'])
def test_gate_none_is_the_plain_network(source, plain, backend):
    pytest.importorskip(backend, reason=f'{backend} is not installed')
    assert plain.gate == 'none' and plain.segmentation_input is None
    reference = load_compact(source / WEIGHTS)
    engine = open_engine(plain, backend, 'fp32')
    assert check_engine(engine, plain).relative_error < EXACT
    for size in IMAGE_SIZES:
        (image,) = prepare(picture(size), plain, token_budget=300)
        with torch.no_grad():
            ours = reference(torch.from_numpy(image))[0].numpy()
        assert relative_error(ours, engine.infer(image)) < EXACT


def test_a_source_without_gates_gives_the_same_plain_bundle(source, plain, tmp_path):
    old = tmp_path / 'old'
    shutil.copytree(source, old)
    for path in [old / GATE, old / SEGMENTATION, *old.glob('*light*'), *old.glob('segm*')]:
        path.unlink(missing_ok=True)
    bundle = ModelBundle.load(compose_compact(old, tmp_path / 'bundle'))
    assert (bundle.folder / 'model.json').read_text() == (plain.folder / 'model.json').read_text()


def test_the_temperature_folded_in_is_that_of_torch(source, gated, network, tmp_path):
    folder = compose_compact(source, tmp_path / 'bundle', tau_cross=3.0, tau_self=1.5)
    bundle = ModelBundle.load(folder)
    assert (bundle.tau_cross, bundle.tau_self) == (3.0, 1.5)
    engine, untempered = open_engine(bundle, 'onnxruntime'), open_engine(gated, 'onnxruntime')
    assert check_engine(engine, bundle).relative_error < 1e-4  # its reference is tempered too
    inputs = prepare(picture((375, 1242)), bundle)
    result = engine.infer(*inputs)
    try:
        network.set_temperature(AttentionTemperature(3.0, 1.5))
        reference = in_torch(network, inputs)
        network.set_temperature(AttentionTemperature(3.0, 1.0))
        cross_alone = in_torch(network, inputs)
    finally:
        network.set_temperature(AttentionTemperature())
    assert relative_error(reference, result) < 1e-4
    assert relative_error(cross_alone, result) > 1e-3  # both count, and by so much
    assert relative_error(untempered.infer(*inputs), result) > 1e-3


def test_a_gated_bundle_goes_through_the_pipeline(gated, plain):
    pipeline = DepthPipeline.load(gated.folder, 'onnxruntime')
    image = picture((123, 457))
    frame = pipeline(image)
    assert frame.relative.shape == (123, 457) and np.isfinite(frame.relative).all()
    np.testing.assert_array_equal(frame.relative, pipeline(image).relative)
    other = DepthPipeline.load(plain.folder, 'onnxruntime')(image)
    assert relative_error(frame.relative, other.relative) > 0.1


@pytest.mark.parametrize('backend', ['openvino', 'onnxruntime', 'torch'])
def test_the_segmentation_of_a_key_frame_serves_the_next(gated, network, backend):
    engine = open_engine(gated, backend, 'fp32')
    black = np.zeros((60, 80, 3), np.uint8)
    first, second = (prepare(image, gated, 100) for image in (black, picture((120, 160))))
    with pytest.raises(ValueError, match='needs a segmentation input'):
        engine.infer(first[0])
    engine.infer(*first)
    # The next frame has another picture, of the same size as the network sees it.
    assert second[0].shape == first[0].shape
    mixed = engine.infer(second[0])
    error = relative_error(in_torch(network, (second[0], first[1])), mixed)
    assert error < EXACT
    assert relative_error(engine.infer(*second), mixed) > 10 * error  # with its own segmentation
    check_engine(engine, gated)
    before = engine.infer(*first)
    engine.sibling().infer(*second)  # another camera's, which keeps its own
    np.testing.assert_array_equal(before, engine.infer(first[0]))


def test_key_frames_go_through_the_pipeline(gated):
    pipeline = DepthPipeline.load(
        gated.folder, 'onnxruntime', token_budget=60, segmentation_every_n_frames=3
    )
    seen = []
    infer = pipeline.engine.infer
    pipeline.engine.infer = lambda *inputs: (seen.append(len(inputs)), infer(*inputs))[1]
    image, other = picture((60, 80)), picture((80, 60))
    for stamp in range(5):
        pipeline(image, stamp=float(stamp))
    assert seen == [2, 1, 1, 2, 1]
    pipeline(other, stamp=5.0)  # another camera
    pipeline(image, stamp=6.0)
    pipeline(image)  # pictures on their own
    pipeline(image)
    pipeline(image, stamp=7.0)  # the last one with a stamp was not the last one
    pipeline(image, stamp=8.0)
    pipeline.token_budget = 30
    pipeline(image, stamp=9.0)
    pipeline.segmentation_every_n_frames = 1
    pipeline(image, stamp=10.0)
    assert seen[5:] == [2, 2, 2, 2, 2, 1, 2, 2]
    with pytest.raises(ValueError, match='segmentation_every_n_frames must be 1 or more'):
        DepthPipeline(gated, pipeline.engine, segmentation_every_n_frames=0)


def test_a_segmentation_serves_the_same_scene_only(gated):
    pipeline = DepthPipeline.load(
        gated.folder, 'onnxruntime', token_budget=60, segmentation_every_n_frames=100
    )
    seen = []
    infer = pipeline.engine.infer

    def recorded(*inputs):
        seen.append(len(inputs))
        if image.max() == 0:
            raise EngineError('this image is too much')
        return infer(*inputs)

    pipeline.engine.infer = recorded
    image = picture((60, 80))
    for stamp in (100.0, 100.5, 101.6, 101.7, 3.0, 3.1):  # the camera stalls; time begins again
        pipeline(image, stamp=stamp)
    assert seen == [2, 1, 2, 1, 2, 1]
    pipeline.check_engine()  # its segmentation is that of the reference now
    pipeline(image, stamp=3.2)
    pipeline(image, stamp=3.3)
    assert seen[6:] == [2, 2, 1]
    image = np.zeros_like(image)
    with pytest.raises(EngineError):
        pipeline(image, stamp=3.4)
    image = picture((60, 80))
    pipeline(image, stamp=3.5)
    assert seen[9:] == [1, 2]


def test_the_self_check_is_kept_and_can_be_made_again(gated):
    pipeline = DepthPipeline.load(gated.folder, 'onnxruntime')
    first = pipeline.selfcheck
    assert 0 <= first.relative_error < 1e-3
    pipeline.check_engine()
    assert pipeline.selfcheck is not first

    def dead(*_):
        raise EngineError('the driver was reset')

    pipeline.engine.run_graph = dead
    with pytest.raises(EngineError, match='the driver was reset'):
        pipeline.check_engine()


def test_a_model_of_your_own_is_exported_from_its_folder(source, network, tmp_path):
    own = tmp_path / 'own'
    own.mkdir()
    for name in (WEIGHTS, SEGMENTATION, GATE):
        shutil.copy(source / name, own)
    export.run(ExportJob(str(own), tmp_path / 'bundle'))
    bundle = ModelBundle.load(tmp_path / 'bundle')
    assert (bundle.name, bundle.gate) == ('own', 'light')
    inputs = prepare(picture((123, 457)), bundle)
    engine, _ = open_checked_engine(bundle, 'onnxruntime')
    assert relative_error(in_torch(network, inputs), engine.infer(*inputs)) < 1e-4
    with pytest.raises(BrigesError, match=r'put segmentation\.safetensors and gate\.safetensors'):
        export.run(ExportJob(str(own), tmp_path / 'bundle', gates=own / GATE))


def test_gates_are_refused_beside_weights_that_they_were_not_trained_with(source, tmp_path):
    frozen = load_compact(source / WEIGHTS)
    digests = {'depth_encoder': state_sha256(frozen.encoder)}
    own = tmp_path / 'own'
    own.mkdir()
    for name in (WEIGHTS, SEGMENTATION):
        shutil.copy(source / name, own)
    gates = load_file(source / GATE)
    save_file(gates, own / GATE, {'frozen': json.dumps(digests)})
    assert load_compact_briges(own).gate_kind == 'light'
    frozen.adapters[0].data += 1e-3
    save_trained(dict(frozen.trained_parameters()), own / WEIGHTS, {})
    with pytest.raises(BrigesError, match=r'gate\.safetensors was trained with another depth_enc'):
        load_compact_briges(own)
    save_file(gates, own / GATE, {'frozen': '[1]'})
    with pytest.raises(BrigesError, match='no table of digests'):
        load_compact_briges(own)


def test_the_composer_knows_the_segmentation_encoder():
    assert SEGMENTATION_INPUT.patch == segmentation.STRIDE
    assert SEGMENTATION_INPUT.mean == segmentation.MEAN
    assert SEGMENTATION_INPUT.std == segmentation.STD


def test_what_ships_is_small_and_names_no_folder_of_the_machine(source):
    assert sum(path.stat().st_size for path in source.iterdir()) < 30e6
    skeletons = sorted(path.name for path in source.glob('*.skeleton.onnx'))
    assert skeletons == [
        'depth_encoder.skeleton.onnx',
        'gate_decoder.light.skeleton.onnx',
        'gate_decoder.skeleton.onnx',
        'segmentation_encoder.skeleton.onnx',
    ]
    for name in skeletons:
        content = (source / name).read_bytes()
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


def test_a_gate_on_a_level_that_the_graph_has_none_for_is_refused(source, tmp_path):
    other = tmp_path / 'other'
    shutil.copytree(source, other)
    levels = {str(level): LightGate(384) for level in (*LEVELS, 2)}
    save_gates(nn.ModuleDict(levels), other)
    with pytest.raises(BrigesError, match=r'no place for gates\.2\.'):
        compose_compact(other, tmp_path / 'bundle')
    assert not (tmp_path / 'bundle' / 'model.json').exists()


PARTS = [WEIGHTS, SEGMENTATION, GATE, 'selfcheck.light.npz', 'gate_decoder.light.skeleton.onnx']


@pytest.mark.parametrize('name', [*PARTS, 'segmentation_encoder.skeleton.onnx'])
def test_a_missing_part_is_named(source, tmp_path, name):
    partial = tmp_path / 'partial'
    shutil.copytree(source, partial)
    (partial / name).unlink()
    with pytest.raises(BrigesError, match=name):
        compose_compact(partial, tmp_path / 'bundle', 'light')


def test_half_a_file_of_weights_is_refused(source, tmp_path):
    broken = tmp_path / 'broken'
    shutil.copytree(source, broken)
    (broken / GATE).write_bytes((source / GATE).read_bytes()[:1000])
    with pytest.raises(BrigesError, match=r'gate\.safetensors is no whole'):
        compose_compact(broken, tmp_path / 'bundle')


@pytest.mark.parametrize(
    ('settings', 'words'),
    [
        (('heavy', 1.0, 1.0), "unknown gate 'heavy'"),
        (('none', 3.0, 1.0), 'needs a gate'),
        (('light', 0.0, 1.0), 'must be positive'),
        (('light', 1.0, float('nan')), 'must be positive'),
    ],
)
def test_impossible_settings_are_refused(source, tmp_path, settings, words):
    with pytest.raises(BrigesError, match=words):
        compose_compact(source, tmp_path, *settings)
    assert not list(tmp_path.iterdir())


def test_weights_of_another_network_are_refused(tmp_path, weights):
    path = tmp_path / 'weights.safetensors'
    save_trained({'decoder.head.0.bias': torch.zeros(32)}, path, {})
    with pytest.raises(BrigesError, match=r'decoder\.fusion\S* is missing in the file'):
        load_compact(path)


def test_the_export_command_passes_its_options_on(source, gated, tmp_path, monkeypatch, capsys):
    shutil.copytree(source, tmp_path / 'models' / 'compact')
    monkeypatch.setenv('BRIGES_MODELS', str(tmp_path / 'models'))
    export.run(ExportJob('compact', tmp_path / 'a', gate='light', tau_cross=2.0))
    bundle = ModelBundle.load(tmp_path / 'a')
    assert (bundle.gate, bundle.tau_cross, bundle.tau_self) == ('light', 2.0, 1.0)
    export.run(ExportJob('compact', tmp_path / 'a'))
    again = ModelBundle.load(tmp_path / 'a')
    assert again.graphs.keys() == gated.graphs.keys() and again.tau_cross == 1.0
    assert again.sha256 == gated.sha256
    assert 'exported' in capsys.readouterr().out
