"""Published networks, opened by us, compute what transformers computes; nothing else is opened.

Weights are random, saved in the published format by transformers itself. Its own initialisation
lets the signal vanish (std 0.02), so every weight is drawn anew, and the tests check that it lives.
"""

import http.server
import json
import re
import shutil
import threading

import huggingface_hub.constants
import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_published import (
    V1,
    V2,
    alive,
    depth_config,
    images,
    sam2_config,
    sam_config,
    save_depth,
)
from torch import nn
from transformers import (
    DepthAnythingConfig,
    Sam2VideoModel,
    Sam2VisionModel,
    SamModel,
    SamVisionModel,
)

from briges_ros.errors import BrigesError
from briges_ros.inference.bundle import file_sha256
from briges_ros.network import published
from briges_ros.network.depth_anything import METRIC, RELATIVE
from briges_ros.network.published import CATALOGUE, Entry, open_published

TOLERANCE = 1e-5  # of the output's spread


def silent(line):
    raise AssertionError(f'nothing is downloaded here: {line}')


def open_folder(folder, **options):
    return open_published(folder, report=silent, **options)


@pytest.fixture(scope='module')
def depth_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('published') / 'tiny-depth'
    save_depth(folder)
    return folder


@pytest.fixture
def own_folder(depth_folder, tmp_path):
    """A copy to break."""
    return shutil.copytree(depth_folder, tmp_path / 'broken')


@pytest.mark.parametrize('kind', ['relative', 'metric'])
@pytest.mark.parametrize('out_indices', [V1, V2])
def test_encoder_and_decoder_are_depth_anything(tmp_path, kind, out_indices):
    theirs = save_depth(tmp_path, depth_config(out_indices, kind))
    ours = open_folder(tmp_path).network
    assert ours.encoder.blocks == tuple(index - 1 for index in out_indices)
    assert ours.decoder.output == (METRIC if kind == 'metric' else RELATIVE)
    assert ours.decoder.max_depth == (20 if kind == 'metric' else 1)
    for h, w in [(70, 70), (56, 98), (98, 42), (28, 28)]:
        image = images(h, w)
        levels = ours.encoder(image)
        assert [tuple(level.shape) for level in levels] == [(2, 32, h // 14, w // 14)] * 4
        with torch.no_grad():
            expected = theirs(image).predicted_depth[:, None]
            hidden = theirs.backbone(image).feature_maps
        depth = ours.decoder(levels)
        assert depth.shape == (2, 1, h, w)
        spread = float(expected.std())
        assert spread > 0.05 * float(expected.mean()) > 0 and (expected > 0).float().mean() > 0.5
        assert float((depth - expected).abs().max()) < TOLERANCE * spread
        for level, tokens in zip(levels, hidden, strict=True):
            assert torch.allclose(level.flatten(2).transpose(1, 2), tokens[:, 1:], atol=1e-4)
        # A level in the wrong place is seen by this test.
        assert float((ours.decoder(levels[::-1]) - expected).abs().max()) > 0.01 * spread


@pytest.mark.filterwarnings('ignore')
def test_the_real_small_network_is_depth_anything_and_exports(tmp_path):
    backbone = {
        'model_type': 'dinov2',
        'image_size': 518,
        'hidden_size': 384,
        'num_attention_heads': 6,
        'out_indices': [3, 6, 9, 12],
        'reshape_hidden_states': False,
    }
    theirs = save_depth(tmp_path, DepthAnythingConfig(backbone_config=backbone))
    # The published file is as long to the byte: it has the same tensors under names as long.
    assert (tmp_path / 'model.safetensors').stat().st_size == 99_173_660
    # What older versions of transformers wrote besides, as in the published configuration.
    edit_config(tmp_path, backbone=None, use_pretrained_backbone=False, torch_dtype='float32')
    ours = open_folder(tmp_path).network
    assert ours.encoder.blocks == (2, 5, 8, 11)
    assert sum(p.numel() for p in ours.parameters()) == 24_785_089
    image = images(84, 126, count=1)
    with torch.no_grad():
        expected = theirs(image).predicted_depth[:, None]
    assert expected.std() > 0.05 * expected.mean() > 0
    assert (ours(image) - expected).abs().max() < TOLERANCE * expected.std()
    check_encoder_export(ours, example=(84, 126), sizes=[(56, 70)])
    check_decoder_export(ours, example=(84, 126), sizes=[(56, 70), (70, 42)])


class EncoderGraph(nn.Module):
    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, image):
        return tuple(self.encoder(image))


class DecoderGraph(nn.Module):
    def __init__(self, decoder):
        super().__init__()
        self.decoder = decoder

    def forward(self, level0, level1, level2, level3):
        return self.decoder([level0, level1, level2, level3])


def session(module, example, names, outputs, dynamic_shapes=None):
    program = torch.onnx.export(
        module.eval(),
        example,
        dynamo=True,
        opset_version=18,
        input_names=names,
        output_names=outputs,
        dynamic_shapes=dynamic_shapes,
        verbose=False,
    )
    return onnxruntime.InferenceSession(program.model_proto.SerializeToString())


ROWS, COLS = (torch.export.Dim(name, min=2, max=512) for name in ('rows', 'cols'))
LEVELS = [f'level{i}' for i in range(4)]


def check_encoder_export(network, example, sizes):
    shapes = {'image': {2: 14 * ROWS, 3: 14 * COLS}}
    image = images(*example, count=1)
    graph = session(EncoderGraph(network.encoder), (image,), ['image'], LEVELS, shapes)
    for size in [example, *sizes]:
        image = images(*size, count=1)
        exported = graph.run(None, {'image': image.numpy()})
        for expected, level in zip(network.encoder(image), exported, strict=True):
            assert np.abs(expected.numpy() - level).max() < 1e-3 * float(expected.std())


def check_decoder_export(network, example, sizes):
    shapes = {name: {2: ROWS, 3: COLS} for name in LEVELS}
    levels = tuple(network.encoder(images(*example, count=1)))
    graph = session(DecoderGraph(network.decoder), levels, LEVELS, ['depth'], shapes)
    for size in [example, *sizes]:
        levels = network.encoder(images(*size, count=1))
        (depth,) = graph.run(None, {n: x.numpy() for n, x in zip(LEVELS, levels, strict=True)})
        expected = network.decoder(levels).numpy()
        assert depth.shape == (1, 1, *size)
        assert np.abs(depth - expected).max() < 1e-4 * expected.std()


@pytest.mark.filterwarnings('ignore')
def test_an_encoder_exported_at_the_size_of_its_training_takes_any_size(depth_folder):
    # There its position embedding needs no resizing, and would be baked into the graph.
    sizes = [(42, 84), (98, 56), (28, 28)]
    check_encoder_export(open_folder(depth_folder).network, (70, 70), sizes)


@pytest.fixture(scope='module')
def sam_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('published') / 'tiny-sam'
    alive(SamModel(sam_config())).save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('before_neck', [False, True])
def test_sam_features_are_those_of_transformers_and_export(sam_folder, before_neck):
    opened = open_folder(sam_folder, before_neck=before_neck)
    theirs = SamVisionModel.from_pretrained(sam_folder).eval()
    image = images(128, 128)
    with torch.no_grad():
        output = theirs(image, output_hidden_states=True)
    expected = output.last_hidden_state
    if before_neck:
        expected = output.hidden_states[-1].permute(0, 3, 1, 2)
    ours = opened.network(image)
    assert ours.shape == (2, opened.network.channels, 8, 8) == (2, 32 if before_neck else 16, 8, 8)
    assert opened.network.size == 128
    assert expected.std() > 0.1 and expected.std(dim=(0, 2, 3)).min() > 0.01
    assert (ours - expected).abs().max() < TOLERANCE * expected.std()
    if not before_neck:  # the other graph is a part of this one
        check_fixed_export(opened.network, image)


def check_fixed_export(network, image):
    graph = session(network, (image[:1],), ['image'], ['segmentation'])
    (exported,) = graph.run(None, {'image': image[1:].numpy()})
    expected = network(image[1:]).numpy()
    assert np.abs(exported - expected).max() < 1e-4 * expected.std()


@pytest.mark.filterwarnings('ignore')
def test_sam2_features_are_those_of_transformers_and_export(tmp_path):
    whole = alive(Sam2VideoModel(sam2_config()))
    whole.save_pretrained(tmp_path)  # with the memory of a video, as it is published
    network = open_folder(tmp_path).network
    assert isinstance(network.vision, Sam2VisionModel)
    image = images(128, 128)
    with torch.no_grad():
        pyramid = whole.vision_encoder(image).fpn_hidden_states
        embedding = whole.get_image_features(image).fpn_hidden_states[-1]
    ours = network(image)
    assert ours.shape == pyramid[-1].shape == (2, network.channels, 8, 8) == (2, 256, 8, 8)
    assert network.size == 128
    assert ours.std() > 0.1
    assert (ours - pyramid[-1]).abs().max() < TOLERANCE * ours.std()
    # It is what SAM 2 takes as the image's embedding, (h w, B, 256) there.
    embedding = embedding.permute(1, 2, 0).reshape(ours.shape)
    assert (ours - embedding).abs().max() < TOLERANCE * ours.std()
    check_fixed_export(network, image)


def test_opening_needs_no_random_numbers_and_leaves_nothing_to_train(depth_folder):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    network = open_folder(depth_folder).network
    assert torch.equal(state, torch.get_rng_state())
    assert not network.training and not any(p.requires_grad for p in network.parameters())


def test_shards_are_put_together(tmp_path, depth_folder):
    save_depth(tmp_path, max_shard_size='100KB')
    assert not (tmp_path / 'model.safetensors').exists()
    opened, whole = open_folder(tmp_path), open_folder(depth_folder)
    assert len(opened.sources) == len(list(tmp_path.glob('*.safetensors'))) > 1
    image = images(56, 70)
    assert torch.equal(opened.network(image), whole.network(image))
    (tmp_path / opened.sources[1]['file']).unlink()
    with pytest.raises(BrigesError, match=re.escape(opened.sources[1]['file'])):
        open_folder(tmp_path)


def test_sources_say_what_was_opened_and_name_no_path(depth_folder):
    opened = open_folder(depth_folder)
    digest = file_sha256(depth_folder / 'model.safetensors')
    expected = {
        'name': 'tiny-depth',
        'file': 'model.safetensors',
        'sha256': digest,
        'licence': published.UNKNOWN_LICENCE,
    }
    assert opened.sources == [expected]
    assert (opened.name, opened.licence) == ('tiny-depth', published.UNKNOWN_LICENCE)


def test_a_copy_of_a_restricted_network_is_recognised(depth_folder, monkeypatch):
    digest = file_sha256(depth_folder / 'model.safetensors')
    entry = Entry('known', 'somebody/known', 'f' * 40, digest, 'CC-BY-NC-4.0', noncommercial=True)
    monkeypatch.setattr(published, 'ENTRIES', (entry,))
    with pytest.raises(BrigesError, match='known is licensed CC-BY-NC'):
        open_folder(depth_folder)
    opened = open_folder(depth_folder, accept_noncommercial=True)
    assert (opened.name, opened.licence) == ('known', 'CC-BY-NC-4.0')
    assert opened.sources[0]['hub_id'] == 'somebody/known'
    assert opened.sources[0]['revision'] == 'f' * 40


def edit_config(folder, **changes):
    path = folder / 'config.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refusal(folder, **options):
    with pytest.raises(BrigesError) as error:
        open_folder(folder, **options)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def test_another_network_than_the_configuration_says_is_refused(own_folder):
    edit_config(own_folder, fusion_hidden_size=20)
    line = refusal(own_folder)
    assert 'decoder.head.conv1.bias is [8] in the file and [10] in the network' in line


def test_missing_and_extra_tensors_are_named(own_folder):
    path = own_folder / 'model.safetensors'
    tensors = load_file(path)
    name = 'backbone.encoder.layer.2.attention.attention.query.weight'
    save_file({k: v for k, v in tensors.items() if k != name}, path)
    line = refusal(own_folder)
    assert 'layer.2.attention.' in line and 'missing in the file and [32, 32] in the net' in line
    save_file({**tensors, 'adapter.weight': torch.zeros(2)}, path)
    assert 'adapter.weight is [2] in the file and missing in the network' in refusal(own_folder)


@pytest.mark.parametrize(
    'changes',
    [
        {'model_type': 'dpt'},
        {'model_type': None},
        {'model_type': ['sam']},
        {'backbone_config': {'model_type': 'swin'}},
        {'backbone_config': {'model_type': 'nonsense'}},
        {'backbone_config': {'model_type': 'dinov2', 'out_indices': [1, 2]}},
        {'backbone_config': {'model_type': 'dinov2', 'apply_layernorm': False}},
        {'depth_estimation_type': 'angular'},
        {'neck_hidden_sizes': 'many'},
    ],
)
def test_configurations_of_something_else_are_refused(own_folder, changes):
    edit_config(own_folder, **changes)
    assert 'config.json describes no network that we know' in refusal(own_folder)


@pytest.mark.parametrize('text', ['', '[]', '{', '{}', '"model_type"', 'null'])
def test_a_broken_configuration_is_named(own_folder, text):
    (own_folder / 'config.json').write_text(text)
    assert 'config.json cannot be read' in refusal(own_folder)


def test_a_missing_configuration_is_named(own_folder):
    (own_folder / 'config.json').unlink()
    assert 'config.json cannot be read' in refusal(own_folder)


@pytest.mark.parametrize('text', ['', '{}', '[]', '{"weight_map": 3}'])
def test_a_broken_index_is_named(own_folder, text):
    (own_folder / 'model.safetensors.index.json').write_text(text)
    assert 'index.json cannot be read' in refusal(own_folder)


def test_an_index_reaches_nothing_outside_its_folder(own_folder, depth_folder):
    outside = depth_folder / 'model.safetensors'
    index = {'weight_map': {'a': f'../{depth_folder.name}/{outside.name}.elsewhere'}}
    (own_folder / 'model.safetensors.index.json').write_text(json.dumps(index))
    assert str(own_folder / 'model.safetensors.elsewhere') in refusal(own_folder)


def test_a_truncated_download_is_refused(own_folder):
    path = own_folder / 'model.safetensors'
    path.write_bytes(path.read_bytes()[:-100])
    assert 'model.safetensors is no whole safetensors file' in refusal(own_folder)


def test_a_folder_of_pickles_is_refused(own_folder):
    tensors = load_file(own_folder / 'model.safetensors')
    (own_folder / 'model.safetensors').unlink()
    torch.save(tensors, own_folder / 'pytorch_model.bin')
    assert 'pytorch_model.bin is a pickle' in refusal(own_folder)
    (own_folder / 'pytorch_model.bin').unlink()
    assert 'has no model.safetensors' in refusal(own_folder)


def test_only_sam_has_features_before_a_neck(depth_folder):
    assert 'depth_anything' in refusal(depth_folder, before_neck=True)


def test_an_unknown_name_gets_the_list(tmp_path):
    line = refusal('depth-anything-v9')
    assert 'depth-anything-v2-small' in line and 'sam2.1-hiera-tiny' in line
    assert 'neither a folder nor' in refusal(tmp_path / 'absent')


def test_the_catalogue_has_every_network_and_its_licence():
    assert len(CATALOGUE) == len(published.ENTRIES) == 19
    sizes = {'small', 'base', 'large'}
    for family in ('v1', 'v2', 'v2-metric-indoor', 'v2-metric-outdoor'):
        names = {f'depth-anything-{family}-{size}' for size in sizes}
        assert names <= set(CATALOGUE)
    for entry in CATALOGUE.values():
        assert entry.revision is None or re.fullmatch('[0-9a-f]{40}', entry.revision)
        assert entry.sha256 is None or re.fullmatch('[0-9a-f]{64}', entry.sha256)
        restricted = 'V2' in entry.hub_id and 'Small' not in entry.hub_id
        assert entry.noncommercial == restricted == (entry.licence == 'CC-BY-NC-4.0')
    for attribute in ('revision', 'sha256', 'hub_id'):
        known = [getattr(entry, attribute) for entry in published.ENTRIES]
        known = [value for value in known if value]
        assert len(set(known)) == len(known)


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the Hugging Face hub as a download needs: a listing and files, at one commit."""

    folder = None
    commit = 'c' * 40
    requests = None

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body=True):
        self.requests.append(self.path)
        path = self.path.partition('?')[0]
        content, headers = b'', {}
        if path.startswith('/api/') and '/tree/' in path:
            files = sorted(self.folder.iterdir())
            content = json.dumps(
                [
                    {'type': 'file', 'path': f.name, 'size': f.stat().st_size, 'oid': f.name}
                    for f in files
                ]
            ).encode()
            headers = {'Content-Type': 'application/json'}
        elif path.startswith('/api/'):
            content = json.dumps({'id': 'somebody/tiny', 'sha': self.commit}).encode()
            headers = {'Content-Type': 'application/json'}
        else:
            file = self.folder / path.rpartition('/')[2]
            content = file.read_bytes()
            headers = {'ETag': f'"{file_sha256(file)}"', 'X-Repo-Commit': self.commit}
        self.send_response(200)
        self.send_header('Content-Length', str(len(content)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub(depth_folder, tmp_path, monkeypatch):
    """A hub on this machine with one network, and an empty cache."""
    folder = shutil.copytree(depth_folder, tmp_path / 'hub')
    torch.save({}, folder / 'pytorch_model.bin')
    handler = type('Handler', (Hub,), {'folder': folder, 'requests': []})
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f'http://127.0.0.1:{server.server_port}'
    for name, value in [
        ('ENDPOINT', endpoint),
        ('HUGGINGFACE_CO_URL_TEMPLATE', endpoint + '/{repo_id}/resolve/{revision}/{filename}'),
        ('HF_HUB_CACHE', str(tmp_path / 'cache')),
        ('HF_HUB_OFFLINE', False),
    ]:
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    yield handler
    server.shutdown()
    server.server_close()


def publish(monkeypatch, **changes):
    values = {'name': 'tiny', 'hub_id': 'somebody/tiny', 'revision': None, 'sha256': None}
    entry = Entry(**{**values, **changes})
    monkeypatch.setattr(published, 'CATALOGUE', {entry.name: entry})


@pytest.mark.parametrize('revision', [None, 'c' * 40])
def test_a_download_shows_the_licence_and_fetches_no_pickle(
    hub, depth_folder, monkeypatch, revision
):
    publish(monkeypatch, revision=revision)
    lines = []

    def report(line):
        assert not hub.requests  # before anything is asked for
        lines.append(line)

    opened = open_published('tiny', report=report)
    assert lines == [f'tiny: somebody/tiny at {revision or "main"}, licence Apache-2.0']
    assert not any('pytorch_model' in path for path in hub.requests)
    assert opened.sources == [
        {
            'name': 'tiny',
            'hub_id': 'somebody/tiny',
            'revision': 'c' * 40,  # what "main" was
            'file': 'model.safetensors',
            'sha256': file_sha256(depth_folder / 'model.safetensors'),
            'licence': 'Apache-2.0',
        }
    ]
    image = images(56, 70)
    assert torch.equal(opened.network(image), open_folder(depth_folder).network(image))


def test_what_was_downloaded_once_needs_no_hub(hub, monkeypatch):
    publish(monkeypatch, revision='c' * 40)
    first = open_published('tiny', report=lambda line: None)
    monkeypatch.setattr(huggingface_hub.constants, 'ENDPOINT', 'http://127.0.0.1:9')
    assert open_published('tiny', report=lambda line: None).sources == first.sources


def test_a_restricted_network_is_not_even_asked_for(hub, monkeypatch):
    publish(monkeypatch, licence='CC-BY-NC-4.0', noncommercial=True)
    with pytest.raises(BrigesError, match=r'licensed CC-BY-NC.*--accept-noncommercial'):
        open_published('tiny', report=silent)
    assert not hub.requests
    opened = open_published('tiny', accept_noncommercial=True, report=lambda line: None)
    assert opened.licence == opened.sources[0]['licence'] == 'CC-BY-NC-4.0'


def test_a_hub_out_of_reach_says_what_to_do(hub, monkeypatch):
    publish(monkeypatch)
    monkeypatch.setattr(huggingface_hub.constants, 'ENDPOINT', 'http://127.0.0.1:9')
    with pytest.raises(BrigesError) as error:
        open_published('tiny', report=lambda line: None)
    line = str(error.value)
    assert len(line.splitlines()) == 1
    assert 'somebody/tiny cannot be downloaded' in line
    assert 'give their folder' in line and 'HF_ENDPOINT' in line


def test_a_download_that_is_not_what_was_pinned_is_refused(depth_folder, monkeypatch):
    pinned = Entry('pinned', 'somebody/network', 40 * 'a', 64 * '0')
    monkeypatch.setitem(CATALOGUE, 'pinned', pinned)
    monkeypatch.setattr(published, '_download', lambda entry: depth_folder)
    with pytest.raises(BrigesError, match='and pinned has 0000'):
        open_published('pinned', report=lambda line: None)
    monkeypatch.setitem(CATALOGUE, 'pinned', Entry('pinned', 'somebody/network', 40 * 'a', None))
    assert open_published('pinned', report=lambda line: None).sources[0]['name'] == 'pinned'
