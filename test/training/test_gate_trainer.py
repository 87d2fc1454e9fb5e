"""Gate training: killed anywhere it ends with the same weights, and what is frozen stays so.

Run as a script, this file trains the tiny network in a process of its own, for the tests that kill
one or start two.
"""

import csv
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from briges_ros.cli.train import TARGETS, run
from briges_ros.errors import BrigesError
from briges_ros.inference.bundle import SegmentationInput
from briges_ros.network import dinov2_weights
from briges_ros.network.briges import Briges, state_sha256
from briges_ros.network.compact import CompactDepth, save_trained
from briges_ros.network.gate import LightGate
from briges_ros.network.segmentation import CompactSegmentation
from briges_ros.training import gate_features
from briges_ros.training.gate_config import GateConfig, ScoringFrames, TrainingFrames, read_config
from briges_ros.training.gate_features import Pick
from briges_ros.training.gate_network import GateNetwork, load_gates, open_network
from briges_ros.training.gate_trainer import GateTrainer

ROOT = Path(__file__).resolve().parents[2]
WIDTH = 8
SCORED = ('validation', 'held_out')
CONFIG = GateConfig(
    data=(
        TrainingFrames(kind='nyuv2', root='nyuv2', frames=(0, 6), paste=0.5),
        TrainingFrames(kind='nyuv2', root='nyuv2', frames=(4, 9), size=(56, 42), sharp=False),
    ),
    validation=ScoringFrames(kind='nyuv2', root='nyuv2', frames=(9, 10)),
    held_out=ScoringFrames(kind='nyuv2', root='nyuv2', split='held_out'),
    levels=(2, 3),
    size=(70, 56),
    views=2,
    batch=2,
    accumulate=2,
    steps=8,
    lr=1e-3,
    checkpoint_steps=2,
    score_steps=4,
    preview_steps=0,
)


class TinyEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.ModuleList(nn.Conv2d(3, WIDTH, 14, 14) for _ in range(4))

    def forward(self, image):
        return [patch(image) for patch in self.patches]


class TinyDecoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(4))
        self.head = nn.Conv2d(WIDTH, 1, 1)

    def forward(self, levels):
        x = sum(mix(level) for mix, level in zip(self.mix, levels, strict=True))
        return self.head(nn.functional.interpolate(x, scale_factor=4, mode='bilinear').relu())


def tiny_network(config=CONFIG):
    torch.manual_seed(0)
    encoder, decoder, segmentation = TinyEncoder(), TinyDecoder(), nn.Conv2d(3, WIDTH, 16, 16)
    if config.train == 'decoder':
        model = Briges(encoder, decoder).freeze()
        model.decoder.requires_grad_(True)
        return GateNetwork(model, None)
    gates = {level: LightGate(WIDTH, WIDTH, channels=8, heads=2) for level in config.levels}
    wanted = SegmentationInput((0.5,) * 3, (0.5,) * 3, patch=16)
    return GateNetwork(Briges(encoder, decoder, segmentation, gates).freeze(), wanted)


def trainer(data, work, config=CONFIG):
    return GateTrainer(config, tiny_network(config), data, work, 'cpu')


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    """With several, sums may round differently from one run to the next."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data') / 'nyuv2'
    rng = np.random.default_rng(0)
    for part in ('rgb', 'depth'):
        (folder / part).mkdir(parents=True)
    for number in [*range(10), 420, 421]:
        picture = cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), (96, 72))
        cv2.imwrite(str(folder / f'rgb/{number:04d}.jpg'), picture)
        cv2.imwrite(str(folder / f'depth/{number:04d}.png'), picture[..., 0] // 2 + 60)
    return folder.parent


@pytest.fixture(scope='module')
def whole(data, one_thread, tmp_path_factory):
    """An uninterrupted training: (work folder, its trainer, its summary)."""
    work = tmp_path_factory.mktemp('whole')
    trained = trainer(data, work)
    return work, trained, trained.train()


def process(*arguments, prefix=()):
    """Run this file as a script."""
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}
    return subprocess.run(
        [sys.executable, *prefix, __file__, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def log_of(work):
    return (work / 'log.csv').read_text()


def test_killed_while_caching_in_a_step_and_while_saving_it_ends_the_same(data, whole, tmp_path):
    for where in ('caching', 'step', 'saving'):
        ended = process(data, tmp_path, where)
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        if where == 'caching':
            assert (next(tmp_path.glob('features/*/done'))).read_text() == '8'
            assert not (tmp_path / 'checkpoint.pt').exists()
        if where == 'saving':
            assert (tmp_path / 'checkpoint.partial').exists()
    resumed = trainer(data, tmp_path)
    assert resumed.step == 4  # of the checkpoint before the one that was being written
    resumed.train()
    folder, uninterrupted, _ = whole
    assert resumed.step == uninterrupted.step == CONFIG.steps
    for kind in ('ema', 'trained'):
        theirs = getattr(uninterrupted, kind)
        for name, tensor in getattr(resumed, kind).items():
            assert torch.equal(tensor, theirs[name]), name
    assert log_of(tmp_path) == log_of(folder)
    for cache in (folder / 'features').glob('*/*.npy'):
        assert (
            cache.read_bytes()
            == (tmp_path / 'features' / cache.parent.name / cache.name).read_bytes()
        )


def test_two_processes_compute_what_one_does(data, whole, tmp_path):
    torchrun = ('-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2')
    ended = process(data, tmp_path, 'nowhere', prefix=torchrun)
    assert ended.returncode == 0, ended.stderr
    folder, uninterrupted, _ = whole
    ours, theirs = (list(csv.DictReader((f / 'log.csv').open())) for f in (tmp_path, folder))
    assert len(ours) == CONFIG.steps
    for one, other in zip(ours, theirs, strict=True):
        assert float(one['loss']) == pytest.approx(float(other['loss']), abs=1e-6)
    weights = torch.load(tmp_path / 'checkpoint.pt', weights_only=True)['trained']
    for name, tensor in uninterrupted.trained.items():
        if name.endswith('key.bias'):  # attention ignores it: its gradient is rounding alone
            continue
        torch.testing.assert_close(weights[name], tensor.detach(), atol=1e-5, rtol=0)


def test_only_the_gates_are_trained_and_the_summary_says_so(whole):
    folder, trained, summary = whole
    fresh = tiny_network().model
    for name, part in fresh.frozen_parts().items():
        assert state_sha256(part) == summary['frozen_before'][name] == summary['frozen_after'][name]
    assert state_sha256(fresh.gates) != state_sha256(trained.model.gates)
    written_down = json.loads((folder / 'release' / 'summary.json').read_text())
    assert written_down == json.loads(json.dumps(summary))
    scores = summary['held_out']
    assert scores['trained']['frames'] == scores['frozen']['frames'] == 2
    assert scores['trained']['abs_rel'] != scores['frozen']['abs_rel']
    losses = [float(row['loss']) for row in csv.DictReader((folder / 'log.csv').open())]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    assert list((folder / 'tensorboard').iterdir())


def test_what_is_released_loads_into_the_same_network_alone(whole, tmp_path):
    folder, trained, _ = whole
    path = folder / 'release' / 'gate.safetensors'
    model = tiny_network().model
    load_gates(path, model)
    for name, tensor in trained.ema.items():
        assert torch.equal(model.state_dict()[name], tensor.half().float())
    with safe_open(path, 'pt') as file:
        metadata = file.metadata()
    assert json.loads(metadata['frozen']) == trained.frozen and metadata['steps'] == '8'
    with pytest.raises(BrigesError, match=r'0\.core\.cross\.key\.bias is missing in the file'):
        load_gates(path, tiny_network(replace(CONFIG, levels=(0, 2, 3))).model)
    tensors = load_file(path)
    tensors['gates.3.extra'] = torch.zeros(1)
    save_file(tensors, tmp_path / 'extra.safetensors')
    with pytest.raises(BrigesError, match=r'3\.extra is \[1\] in the file and missing'):
        load_gates(tmp_path / 'extra.safetensors', model)


def test_a_frozen_part_that_moves_is_noticed(data, tmp_path, whole):
    config = replace(CONFIG, steps=1, cache_folder=str(whole[0] / 'features'))
    moved = trainer(data, tmp_path, config)
    with torch.no_grad():
        moved.model.decoder.head.bias += 1e-3
    with pytest.raises(BrigesError, match='the frozen decoder changed'):
        moved.train()
    assert not (tmp_path / 'release' / 'gate.safetensors').exists()


def test_a_loss_that_is_not_finite_names_the_frame_and_keeps_the_checkpoint(
    data, tmp_path, whole, monkeypatch
):
    broken = trainer(data, tmp_path, replace(CONFIG, cache_folder=str(whole[0] / 'features')))
    encode = gate_features.CachedViews.encode

    def spoiled(self, loaded):
        batch = encode(self, loaded)
        if broken.step == 5:
            batch.levels[2][1] = torch.inf
        return batch

    monkeypatch.setattr(gate_features.CachedViews, 'encode', spoiled)
    group, picks = next(broken._batches(5))
    name = broken._names(group, picks)[1]
    with pytest.raises(BrigesError, match=rf'step 6, from {name}; \S*checkpoint.pt is the last'):
        broken.train()
    state = torch.load(tmp_path / 'checkpoint.pt', weights_only=True)
    assert state['step'] == 4
    assert all(torch.isfinite(tensor).all() for tensor in state['trained'].values())


def test_ctrl_c_saves_after_the_step_and_goes_on(data, tmp_path, whole):
    ended = process(data, tmp_path, 'interrupt')
    assert ended.returncode == 130, ended.stderr
    assert 'stopped at step 3 of 8; the same command goes on from there' in ended.stdout
    resumed = trainer(data, tmp_path)
    assert resumed.step == 3
    resumed.train()
    assert log_of(tmp_path) == log_of(whole[0])


def test_features_are_cached_once_and_anew_when_what_they_depend_on_changes(data, whole):
    folder = whole[0] / 'features'
    config = replace(CONFIG, cache_folder=str(folder), steps=1)

    def caches(config, network=None):
        network = network or tiny_network(config)
        GateTrainer(config, network, data, whole[0] / 'other', 'cpu')
        return set(folder.iterdir())

    before = set(folder.iterdir())
    assert len(before) == 4  # two groups, validation, held out
    assert caches(replace(config, lr=1.0, levels=(0,), segmentation_features='blank')) == before
    assert len(caches(replace(config, smallest_crop=0.8)) - before) == 2
    other = tiny_network()
    with torch.no_grad():
        other.model.segmentation_encoder.bias += 1.0
    assert len(caches(config, other) - before) == 6  # all four, and two from above


@pytest.mark.parametrize('what', ['right', 'blank', 'shuffled'])
def test_cached_and_live_features_agree_and_can_be_blank_or_shuffled(data, tmp_path, whole, what):
    config = replace(CONFIG, segmentation_features=what, cache_folder=str(whole[0] / 'features'))
    cached = trainer(data, tmp_path / 'cached', config)
    live = trainer(data, tmp_path / 'live', replace(config, cache=False))
    group, picks = next(cached._batches(0))
    picks = [replace(pick, view=pick.view % 2) for pick in picks]  # live views never repeat
    ours, theirs = (
        t.groups[group].views.encode(t.groups[group].views.load(picks)) for t in (cached, live)
    )
    for one, other in zip(ours.levels, theirs.levels, strict=True):
        torch.testing.assert_close(one, other, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(ours.segmentation, theirs.segmentation, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(ours.inverse, theirs.inverse, atol=1e-3, rtol=1e-3, equal_nan=True)
    views = cached.groups[group].views
    own = views.encode(
        views.load([replace(p, segmentation_of=p.frame) for p in picks])
    ).segmentation
    if what == 'right':
        assert torch.equal(ours.segmentation, own)
    elif what == 'blank':
        assert not ours.segmentation.any()
    else:
        assert all(pick.segmentation_of != pick.frame for pick in picks)
        others = [Pick(p.segmentation_of, p.view, p.segmentation_of) for p in picks]
        assert torch.equal(ours.segmentation, views.encode(views.load(others)).segmentation)
        assert not torch.allclose(ours.segmentation, own)


def test_the_decoder_alone_can_be_trained_for_comparison(data, tmp_path):
    config = replace(CONFIG, train='decoder', steps=2, validation=None)
    trained = trainer(data, tmp_path, config)
    summary = trained.train()
    fresh = tiny_network(config).model
    assert set(summary['frozen_before']) == {'depth_encoder'}
    assert state_sha256(fresh.decoder) != state_sha256(trained.model.decoder)
    assert summary['weights']['file'] == 'decoder.safetensors'
    load_gates(tmp_path / 'release' / 'decoder.safetensors', fresh)
    assert not (tmp_path / 'release' / 'gate.safetensors').exists()
    assert torch.equal(fresh.decoder.head.weight, trained.ema['decoder.head.weight'].half().float())
    assert summary['held_out']['trained'] != summary['held_out']['frozen']


def test_another_device_may_scale_gradients_or_not(data, tmp_path, whole, monkeypatch):
    config = replace(
        CONFIG, precision='amp', steps=4, cache_folder=str(whole[0] / 'features'), validation=None
    )
    without = trainer(data, tmp_path, config)  # CPUs have no need of it
    without.step = 2
    without._save_checkpoint()
    assert torch.load(tmp_path / 'checkpoint.pt', weights_only=True)['scaler'] == {}
    monkeypatch.setattr(GateTrainer, '_amp_type', lambda self: torch.float16)
    scaled = trainer(data, tmp_path, config)
    assert scaled.step == 2 and scaled.scaler.get_scale() == 2.0**16  # as at the start
    scaled.scaler.scale(torch.ones(()))  # it has a scale from the first loss on
    scaled.scaler.update(8.0)
    scaled._save_checkpoint()
    assert trainer(data, tmp_path, config).scaler.get_scale() == 8.0
    monkeypatch.undo()
    again = trainer(data, tmp_path, config)
    assert again.step == 2 and not again.scaler.is_enabled()


def test_frames_that_train_are_not_scored_by_another_path(data, tmp_path):
    (tmp_path / 'link').symlink_to(data / 'nyuv2')
    for other in (str(data / 'nyuv2'), str(tmp_path / 'link'), f'../{data.name}/nyuv2'):
        for part in ('validation', 'held_out'):
            scored = ScoringFrames(kind='nyuv2', root=other, frames=(8, 10))
            config = replace(CONFIG, **{'validation': None, 'held_out': None, part: scored})
            with pytest.raises(BrigesError, match=f'{part} shares frames with data'):
                trainer(data, tmp_path / 'work', config)
    scored = ScoringFrames(kind='nyuv2', root=str(data / 'nyuv2'), frames=(9, 10))
    with pytest.raises(BrigesError, match='validation shares frames with held_out'):
        trainer(data, tmp_path / 'work', replace(CONFIG, held_out=scored))
    assert not (tmp_path / 'work').exists()


def test_a_work_folder_of_another_experiment_is_refused(data, whole):
    with pytest.raises(BrigesError, match=r'checkpoint.pt belongs to other settings \(lr\)'):
        trainer(data, whole[0], replace(CONFIG, lr=1.0))
    other = tiny_network()
    with torch.no_grad():
        other.model.decoder.head.bias += 1.0
    with pytest.raises(BrigesError, match=r'other settings \(frozen\)'):
        GateTrainer(CONFIG, other, data, whole[0], 'cpu')


def test_too_few_frames_for_a_batch_and_too_many_asked_for_are_refused(data, tmp_path):
    with pytest.raises(BrigesError, match='enough frames for a batch of 50'):
        trainer(data, tmp_path, replace(CONFIG, batch=50, cache=False))
    frames = TrainingFrames(kind='nyuv2', root='nyuv2', frames=(0, 99))
    with pytest.raises(BrigesError, match=r'\[0, 99\] of nyuv2 nyuv2, which has 10'):
        trainer(data, tmp_path, replace(CONFIG, data=(frames,), validation=None))


def test_an_untrained_light_gate_is_the_frozen_compact_model(tmp_path):
    try:
        dinov2_weights.weights_path()
    except BrigesError as error:
        pytest.skip(str(error))
    torch.manual_seed(0)
    compact = CompactDepth().eval()
    segmentation = CompactSegmentation().fuse()
    save_trained(dict(compact.trained_parameters()), tmp_path / 'weights.safetensors', {})
    save_file(segmentation.state_dict(), tmp_path / 'segmentation.safetensors')
    config = replace(
        CONFIG,
        depth=str(tmp_path / 'weights.safetensors'),
        segmentation=str(tmp_path / 'segmentation.safetensors'),
    )
    network = open_network(config)
    assert sum(p.numel() for p in network.model.parameters() if p.requires_grad) == sum(
        p.numel() for p in network.model.gates.parameters()
    )
    with torch.no_grad():
        image, other = torch.randn(1, 3, 42, 56), torch.randn(1, 3, 48, 64)
        levels = network.model.depth_encoder(image)
        features = network.model.segmentation_encoder(other)
        assert features.shape == (1, 256, 3, 4)
        for level, gated in zip(levels, network.model.bridge(levels, features), strict=True):
            assert torch.equal(level, gated)
    save_file({'a': torch.zeros(1)}, tmp_path / 'segmentation.safetensors')
    with pytest.raises(BrigesError, match=r'segmentation\.safetensors does not fit'):
        open_network(config)


@pytest.fixture(scope='module')
def published(tmp_path_factory):
    """Tiny networks with random weights, in the published format: (depth, SAM)."""
    transformers = pytest.importorskip('transformers')
    folder = tmp_path_factory.mktemp('published')
    torch.manual_seed(0)
    depth = transformers.DepthAnythingConfig(
        backbone_config={
            'model_type': 'dinov2',
            'image_size': 70,
            'hidden_size': 32,
            'num_hidden_layers': 4,
            'num_attention_heads': 2,
            'out_indices': [1, 2, 3, 4],
            'reshape_hidden_states': False,
        },
        reassemble_hidden_size=32,
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        head_hidden_size=8,
    )
    model = transformers.DepthAnythingForDepthEstimation(depth)
    for parameter in model.parameters():  # its own initialisation lets the signal vanish
        nn.init.normal_(parameter, 0.05, 0.1)
    model.save_pretrained(folder / 'depth')
    sam = transformers.SamConfig(
        vision_config={
            'hidden_size': 32,
            'output_channels': 16,
            'num_hidden_layers': 1,
            'num_attention_heads': 2,
            'image_size': 64,
            'global_attn_indexes': [0],
            'mlp_dim': 32,
        },
        prompt_encoder_config={'hidden_size': 16, 'image_size': 64},
        mask_decoder_config={'hidden_size': 16, 'num_attention_heads': 2, 'mlp_dim': 16},
    )
    transformers.SamModel(sam).save_pretrained(folder / 'sam')
    return folder / 'depth', folder / 'sam'


@pytest.mark.parametrize(
    ('gate', 'train', 'parameters'),
    [
        ('paper', 'gates', 4 * (24 * 32**2 + 2 * (4 * 32 + 5 * 32) + 5 * 2 * 32)),
        ('light', 'gates', None),
        ('paper', 'decoder', None),
    ],
)
def test_published_networks_train_without_a_cache(
    data, tmp_path, published, gate, train, parameters
):
    depth, sam = published
    config = replace(
        CONFIG,
        depth=str(depth),
        segmentation=str(sam),
        gate=gate,
        train=train,
        levels=(0, 1, 2, 3),
        cache=False,
        steps=2,
        validation=None,
    )
    network = open_network(config)
    assert network.segmentation_input is None or network.segmentation_input.size == (64, 64)
    before = state_sha256(getattr(network.model, train))
    summary = GateTrainer(config, network, data, tmp_path, 'cpu').train()
    assert summary['parameters'] == (parameters or summary['parameters'])
    assert state_sha256(getattr(network.model, train)) != before
    assert not (tmp_path / 'features').exists()


def test_the_paper_gate_wants_encoders_of_one_width(published, tmp_path):
    depth, sam = published
    segmentation = CompactSegmentation().fuse()
    save_file(segmentation.state_dict(), tmp_path / 'segmentation.safetensors')
    config = replace(CONFIG, depth=str(depth), gate='paper')
    with pytest.raises(BrigesError, match='paper gate needs encoders of one width'):
        open_network(replace(config, segmentation=str(tmp_path / 'segmentation.safetensors')))
    with pytest.raises(BrigesError, match='is no depth network'):
        open_network(replace(config, depth=str(sam), segmentation=str(sam)))


def written(tmp_path, **settings):
    path = tmp_path / 'experiment.yaml'
    path.write_text(yaml.safe_dump({'data': [{'kind': 'nyuv2', 'root': 'nyuv2'}], **settings}))
    return path


@pytest.mark.parametrize(
    ('settings', 'complaint'),
    [
        ({'stepz': 3}, 'unknown key stepz; known are .*steps'),
        ({'loss': {'fom': 'median'}}, r'unknown key loss\.fom'),
        ({'data': [{'kind': 'nyuv2', 'root': 'a', 'repeat': 2}]}, r'unknown key data\[0\]\.repeat'),
        ({'data': [{'kind': 'nyuv2'}]}, r"data\[0\].*missing.*'root'"),
        ({'data': []}, 'data must name at least one'),
        ({'steps': 'many'}, "steps must be int, not 'many'"),
        ({'steps': 0}, 'steps must be positive'),
        ({'cache': 1}, 'cache must be bool'),
        ({'gate': 'heavy'}, "gate must be one of light, paper, not 'heavy'"),
        ({'levels': [4]}, 'levels are 0 to 3'),
        ({'size': [400, 294]}, 'size must be multiples of 14'),
        ({'size': [392]}, 'size must be a list of 2 values'),
        ({'loss': {'gradient_weight': -1}}, 'loss.no weight may be negative'),
        ({'data': [{'kind': 'nyuv2', 'root': 'a', 'split': 'held_out'}]}, 'held-out frames'),
        ({'validation': {'kind': 'nyuv2', 'root': 'b', 'split': 'held_out'}}, 'must not be the'),
        ({'validation': {'kind': 'nyuv2', 'root': 'nyuv2', 'frames': [0, 9]}}, 'shares frames'),
        ({'held_out': {'kind': 'nyuv2', 'root': 'nyuv2', 'split': 'train'}}, 'shares frames'),
        ({'held_out': {'kind': 'folder', 'root': 'nyuv2', 'split': 'held_out'}}, 'shares frames'),
        (
            {part: {'kind': 'nyuv2', 'root': 'b', 'frames': [3, 5]} for part in SCORED},
            'validation shares frames with held_out',
        ),
    ],
)
def test_a_wrong_setting_is_refused_with_its_file_and_key(tmp_path, settings, complaint):
    path = written(tmp_path, **settings)
    with pytest.raises(BrigesError, match=complaint) as caught:
        read_config(GateConfig, path)
    assert str(caught.value).startswith(f'{path}: ')


@pytest.mark.parametrize('root', ['nyuv2/', './nyuv2', 'a/../nyuv2', 'nyuv2//.'])
@pytest.mark.parametrize('part', SCORED)
def test_a_folder_spelt_in_another_way_is_the_same_folder(tmp_path, root, part):
    scored = {'kind': 'nyuv2', 'root': root, 'frames': [0, 3]}
    with pytest.raises(BrigesError, match=f'{part} shares frames with data'):
        read_config(GateConfig, written(tmp_path, **{part: scored}))


def test_frames_set_apart_and_other_folders_are_accepted(tmp_path):
    def frames(root, *ends, split='train'):
        return {'kind': 'nyuv2', 'root': root, 'frames': list(ends), 'split': split}

    first = frames('./a', 0, 5)
    config = read_config(
        GateConfig,
        written(tmp_path, data=[first], validation=frames('a/', 5, 7), held_out=frames('a', 7, 9)),
    )
    assert config.validation.root == 'a/'
    config = read_config(
        GateConfig,
        written(
            tmp_path,
            data=[first],
            validation=frames('nyuv2/a', 0, 5),
            held_out=frames('a', 0, 5, split='held_out'),
        ),
    )
    assert config.located(tmp_path).validation.root == str(tmp_path / 'nyuv2' / 'a')


def test_numbers_without_a_point_are_numbers(tmp_path):
    path = tmp_path / 'experiment.yaml'
    path.write_text('data: [{kind: nyuv2, root: nyuv2}]\nlr: 1e-4\nloss: {ratio_weight: 2}\n')
    config = read_config(GateConfig, path)
    assert config.lr == 1e-4 and config.loss.ratio_weight == 2.0


@pytest.mark.parametrize('path', sorted((ROOT / 'config' / 'training').glob('gate_*.yaml')))
def test_the_experiments_that_ship_can_be_read(path):
    config = read_config(GateConfig, path)
    assert config.weight_decay == 1e-5 and config.clip == 1.0 and config.constant == 0.7
    if config.gate == 'paper':
        assert config.lr == 5e-5 and config.loss.gradient_weight == 2.0


def test_the_ablations_differ_in_nothing_but_what_they_ablate():
    folder = ROOT / 'config' / 'training'
    gate, blank, decoder = (
        read_config(GateConfig, folder / f'gate_compact{name}.yaml')
        for name in ('', '_blank', '_decoder')
    )
    assert replace(blank, segmentation_features='right') == gate
    assert replace(decoder, train='gates', levels=gate.levels) == gate


def test_the_rate_is_constant_and_then_goes_to_zero():
    config = replace(CONFIG, steps=100, lr=1.0)
    rates = [config.learning_rate(step) for step in range(100)]
    assert rates[:71] == [1.0] * 71 and rates[85] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(1 / 30)
    assert all(a > b for a, b in pairwise(rates[70:]))
    warm = replace(config, warmup_steps=10)
    assert [warm.learning_rate(step) for step in (0, 4, 9, 10)] == [0.1, 0.5, 1.0, 1.0]


def test_the_command_names_its_targets_and_wants_an_experiment(tmp_path):
    with pytest.raises(BrigesError, match=f'there are: {", ".join(TARGETS)}'):
        run('gates', tmp_path, None, None, None, False, None)
    with pytest.raises(BrigesError, match='gate training needs an experiment'):
        run('gate', tmp_path, None, None, None, False, None)


def test_a_device_or_a_work_folder_that_is_not_there_is_said_in_one_line(data, tmp_path):
    with pytest.raises(BrigesError, match="no device 'teapot'"):
        GateTrainer(CONFIG, tiny_network(), data, tmp_path / 'work', 'teapot')
    (tmp_path / 'file').write_text('')
    with pytest.raises(BrigesError, match='the same command goes on'):
        run('segmentation', data, tmp_path / 'file' / 'work', None, 'cpu', False, None)


def kill_myself(*_arguments):
    os.kill(os.getpid(), signal.SIGKILL)


def main(data, work, where):
    """Train, and end this process on the way; killed, nothing of it gets a chance to tidy up."""
    if where == 'caching':
        half, chunks = gate_features._half, []

        def third_chunk_dies(*arguments):
            chunks.append(1)
            return kill_myself() if len(chunks) == 3 else half(*arguments)

        gate_features._half = third_chunk_dies
    running = trainer(data, work)
    if where == 'step':
        clip = nn.utils.clip_grad_norm_
        # After the gradients and before the weights, past the checkpoint of step 2.
        nn.utils.clip_grad_norm_ = lambda *a: kill_myself() if running.step == 3 else clip(*a)
    if where == 'interrupt':
        step = running._train_step

        def press(*arguments):
            if running.step == 2:
                os.kill(os.getpid(), signal.SIGINT)
            return step(*arguments)

        running._train_step = press
    if where == 'saving':
        save = torch.save

        def half_a_file_dies(state, path):
            if state['step'] == 6:
                Path(path).write_bytes(b'PK half a file')
                kill_myself()
            save(state, path)

        torch.save = half_a_file_dies
    running.train()


if __name__ == '__main__':
    torch.set_num_threads(1)
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
    except KeyboardInterrupt:
        sys.exit(130)  # as `briges` does
