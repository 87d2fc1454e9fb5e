"""Any pair of published networks becomes a bundle that computes what torch computes."""

import copy
import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_published import alive, depth_config, sam2_config, sam_config, save_depth
from torch import nn
from transformers import Sam2VideoModel, SamModel

from briges_ros import DepthPipeline
from briges_ros.alignment.tracker import ScaleState
from briges_ros.cli import export as command
from briges_ros.cli.export import ExportJob
from briges_ros.errors import BrigesError
from briges_ros.inference.bundle import ModelBundle
from briges_ros.inference.preprocess import prepare
from briges_ros.inference.selfcheck import open_checked_engine
from briges_ros.network import export
from briges_ros.network.briges import state_sha256
from briges_ros.network.export import PublishedPair, open_pair
from briges_ros.network.gate import AttentionTemperature, LightGate, PaperGate
from briges_ros.network.graphs import LEVEL_NAMES

pytestmark = pytest.mark.filterwarnings('ignore')  # of the exporter about itself
PICTURE = np.random.default_rng(0).integers(0, 256, (90, 150, 3), dtype=np.uint8)


@pytest.fixture(scope='module')
def encoder_graphs():
    """Those of `exported_once`."""
    return {}


@pytest.fixture(autouse=True)
def exported_once(monkeypatch, encoder_graphs):
    """Export the depth encoder once: it is the same in all bundles here, and takes seconds."""
    exported = export.onnx_graph

    def once(module, inputs, dynamic, names):
        if tuple(names) != LEVEL_NAMES:
            return exported(module, inputs, dynamic, names)
        shapes = [(name, array.shape) for name, array in inputs.items()]
        key = f'{state_sha256(module)} {module} {shapes} {dynamic}'
        if key not in encoder_graphs:
            encoder_graphs[key] = exported(module, inputs, dynamic, names)
        return copy.deepcopy(encoder_graphs[key])

    monkeypatch.setattr(export, 'onnx_graph', once)


@pytest.fixture(scope='module')
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp('published')
    save_depth(folder / 'depth')
    save_depth(folder / 'metric', depth_config(kind='metric'))
    alive(SamModel(sam_config())).save_pretrained(folder / 'sam')
    alive(Sam2VideoModel(sam2_config())).save_pretrained(folder / 'sam2')
    return folder


def save_gates(path, kind, channels, levels=(1, 3)):
    torch.manual_seed(0)
    gates = nn.ModuleDict(
        {str(i): PaperGate(32) if kind == 'paper' else LightGate(32, channels) for i in levels}
    )
    with torch.no_grad():
        for parameter in gates.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    tensors = {f'gates.{name}': p.half().contiguous() for name, p in gates.state_dict().items()}
    save_file(tensors, str(path))
    return path


def torch_output(pair, inputs, temperature=AttentionTemperature()):  # noqa: B008
    network, _ = open_pair(pair)
    network.eval().set_temperature(temperature)
    with torch.no_grad():
        return network(*map(torch.from_numpy, inputs))[0, 0].numpy()


@pytest.mark.parametrize(
    ('segmentation', 'kind', 'channels'),
    [('sam', 'light', 16), ('sam', 'paper', 32), ('sam2', 'light', 256)],
)
def test_every_pair_is_exported_and_computes_what_torch_does(
    published, tmp_path, segmentation, kind, channels
):
    gates = save_gates(tmp_path / 'gate.safetensors', kind, channels)
    job = ExportJob(
        str(published / 'depth'),
        tmp_path / 'bundle',
        segmentation=str(published / segmentation),
        gates=gates,
        tau_cross=3.0,
        tau_self=1.5,
    )
    command.run(job)
    bundle = ModelBundle.load(tmp_path / 'bundle')
    assert (bundle.gate, bundle.tau_cross, bundle.tau_self) == (kind, 3.0, 1.5)
    assert {source['name'] for source in bundle.sources} == {'depth', segmentation, 'gates'}
    assert all(len(source['sha256']) == 64 for source in bundle.sources)
    assert str(published) not in (tmp_path / 'bundle' / 'model.json').read_text()
    inputs = prepare(PICTURE, bundle, 40)
    assert inputs[1].shape == (1, 3, 128, 128)
    pair = PublishedPair(job.model, job.segmentation, gates)
    expected = torch_output(pair, inputs, AttentionTemperature(3.0, 1.5))
    for backend in ('onnxruntime', 'openvino', 'torch'):
        engine, _ = open_checked_engine(bundle, backend, 'fp32')
        assert np.abs(engine.infer(*inputs) - expected).max() < 1e-3 * expected.std()
    # Neither the gates nor the temperature are without effect.
    plain = torch_output(PublishedPair(job.model), inputs[:1])
    assert np.abs(torch_output(pair, inputs) - expected).max() > 1e-3 * expected.std()
    assert np.abs(plain - expected).max() > 1e-2 * expected.std()


def test_without_gates_it_is_plain_depth_anything(published, tmp_path):
    command.run(ExportJob(str(published / 'depth'), tmp_path / 'bundle'))
    bundle = ModelBundle.load(tmp_path / 'bundle')
    assert (bundle.gate, bundle.output, bundle.token_budget) == (
        'none',
        'relative_inverse_depth',
        1369,
    )
    frame = DepthPipeline.load(tmp_path / 'bundle', token_budget=40)(PICTURE)
    assert frame.relative.shape == PICTURE.shape[:2] and np.isfinite(frame.relative).all()
    assert frame.scale.state is ScaleState.RELATIVE and np.isnan(frame.depth).all()


def test_a_metric_network_gives_metres_as_a_prior(published, tmp_path):
    command.run(ExportJob(str(published / 'metric'), tmp_path / 'bundle'))
    bundle = ModelBundle.load(tmp_path / 'bundle')
    assert bundle.output == 'metric_depth'
    frame = DepthPipeline.load(tmp_path / 'bundle', token_budget=40, max_range=50.0)(PICTURE)
    assert frame.scale.state is ScaleState.PRIOR
    known = frame.depth[np.isfinite(frame.depth)]
    assert known.size > 0 and known.min() > 0 and known.max() <= 20.5  # the head's own range


def test_weights_too_large_for_one_file_lie_beside_it_and_are_checked(
    published, tmp_path, monkeypatch
):
    monkeypatch.setattr(export, 'LARGEST_FILE', 1000)
    command.run(ExportJob(str(published / 'depth'), tmp_path / 'bundle'))
    bundle = ModelBundle.load(tmp_path / 'bundle')
    data = tmp_path / 'bundle' / 'depth_encoder.onnx.data'
    assert data.stat().st_size > 1000
    open_checked_engine(bundle, 'onnxruntime')
    damaged = bytearray(data.read_bytes())
    damaged[100] ^= 1
    data.write_bytes(damaged)
    with pytest.raises(BrigesError, match=r'onnx\.data is corrupt'):
        ModelBundle.load(tmp_path / 'bundle')


def test_a_graph_that_computes_something_else_is_not_released(published, tmp_path, monkeypatch):
    exported = export.onnx_graph

    def wrong(module, inputs, dynamic, names):
        graph = exported(module, inputs, dynamic, names)
        weight = max(graph.graph.initializer, key=lambda tensor: len(tensor.raw_data))
        values = np.frombuffer(weight.raw_data, np.float32) * np.float32(1.5)
        weight.raw_data = values.tobytes()
        return graph

    monkeypatch.setattr(export, 'onnx_graph', wrong)
    with pytest.raises(BrigesError, match='differs from torch'):
        command.run(ExportJob(str(published / 'depth'), tmp_path / 'bundle'))
    assert not (tmp_path / 'bundle' / 'model.json').exists()


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'segmentation': 'sam'}, 'give both'),
        ({'gates': 'gate'}, 'give both'),
        ({'model': 'sam'}, 'no depth network'),
        ({'segmentation': 'depth', 'gates': 'gate'}, 'is a depth network'),
        ({'segmentation': 'sam2', 'gates': 'gate'}, 'gates.1'),  # gates for another width
        ({'gate': 'light'}, '--gates FILE'),
        ({'tau_cross': 2.0}, 'needs gates'),
        ({'tau_cross': -1.0}, 'positive'),
        ({'model': 'compact', 'segmentation': 'sam'}, 'brings its own'),
        ({'model': 'nothing'}, 'neither a folder nor a published network'),
    ],
)
def test_what_does_not_fit_is_refused(published, tmp_path, changes, words):
    gates = save_gates(tmp_path / 'gate.safetensors', 'light', 16)
    places = {name: str(published / name) for name in ('depth', 'sam', 'sam2')} | {'gate': gates}
    job = replace(
        ExportJob(places['depth'], tmp_path / 'bundle'),
        **{
            key: value if key == 'gate' else places.get(value, value)
            for key, value in changes.items()
        },
    )
    with pytest.raises(BrigesError, match=words):
        command.run(job)
    assert not (tmp_path / 'bundle' / 'model.json').exists()


def test_the_command_line_says_it_in_one_line(published, tmp_path):
    shutil.copytree(published / 'depth', tmp_path / 'broken')
    (tmp_path / 'broken' / 'config.json').write_text(json.dumps({'model_type': 'llama'}))
    done = subprocess.run(
        [sys.executable, '-m', 'briges_ros.cli.main', 'export', str(tmp_path / 'broken')],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.count('\n') == 1 and "'llama' is not depth_anything" in done.stderr
