"""Bundles load whole or not at all, and say what is wrong."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from briges_ros.inference.bundle import BundleError, ModelBundle, file_sha256, find_bundle
from briges_ros.inference.engine import GraphEngine
from briges_ros.inference.selfcheck import check_engine

SEGMENTATION = {'patch': 16, 'mean': [0.5, 0.5, 0.5], 'std': [0.5, 0.5, 0.5]}


@pytest.fixture
def copy(bundle, tmp_path) -> Path:
    """A bundle to break; the graphs are links, so that it costs nothing."""
    folder = tmp_path / 'mine'
    folder.mkdir()
    for path in [*bundle.graphs.values(), *bundle.int8_graphs.values(), bundle.selfcheck]:
        (folder / path.name).symlink_to(path.resolve())
    shutil.copy(bundle.folder / 'model.json', folder)
    return folder


def rewrite(folder: Path, change) -> None:
    path = folder / 'model.json'
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_loads_by_path_and_by_name(copy, monkeypatch):
    by_path = ModelBundle.load(copy)
    monkeypatch.setenv('BRIGES_MODELS', str(copy.parent))
    by_name = ModelBundle.load('mine')
    assert by_path == by_name
    assert by_path.patch == 14 and by_path.token_budget > 0
    assert by_path.sources and all('sha256' in source for source in by_path.sources)


def test_an_unknown_name_lists_where_it_looked(monkeypatch, tmp_path):
    monkeypatch.setenv('BRIGES_MODELS', str(tmp_path))
    with pytest.raises(BundleError, match='no model bundle named') as info:
        find_bundle('nosuch')
    assert str(tmp_path) in str(info.value) and 'briges export' in str(info.value)


@pytest.mark.parametrize('name', ['', 'no/such/folder'])
def test_a_path_without_a_bundle_is_refused(name):
    with pytest.raises(BundleError):
        find_bundle(name)


def test_a_missing_graph(copy):
    (copy / 'gate_decoder.onnx').unlink()
    with pytest.raises(BundleError, match=r'gate_decoder\.onnx is missing'):
        ModelBundle.load(copy)


def test_one_flipped_bit_in_a_graph(copy):
    path = copy / 'gate_decoder.onnx'
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    path.write_bytes(content)
    with pytest.raises(BundleError, match='corrupt'):
        ModelBundle.load(copy)


def test_a_truncated_description(copy):
    path = copy / 'model.json'
    path.write_text(path.read_text()[:200])
    with pytest.raises(BundleError, match='cannot be read'):
        ModelBundle.load(copy)


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda v: v.pop('graphs'), 'graphs'),
        (lambda v: v.update(format=99), 'format 99'),
        (lambda v: v.update(format=1), 'format 1, .* briges export'),
        (lambda v: v.update(output='metres'), 'unknown output'),
        (lambda v: v.update(gate='light'), 'segmentation_input'),
        (lambda v: v.update(gate='heavy', segmentation_input=SEGMENTATION), 'unknown gate'),
        (lambda v: v.pop('attention_temperature'), 'attention_temperature'),
        (lambda v: v.update(attention_temperature={'cross': 0, 'self': 1}), 'must be positive'),
        (lambda v: v.update(attention_temperature={'cross': 1}), 'model.json'),
        (lambda v: v['input'].update(mean=[1.0]), 'model.json'),
        (lambda v: v['input'].update(patch='big'), 'model.json'),
        (lambda v: v.update(graphs=[]), 'model.json'),
        (lambda v: v.update(int8_graphs=[]), 'model.json'),
        (lambda v: v['input'].update(token_budget=0), 'must be positive'),
        (lambda v: v['input'].update(std=[0, 1, 1]), 'must be positive'),
    ],
)
def test_a_description_that_is_not_one(copy, change, words):
    rewrite(copy, change)
    with pytest.raises(BundleError, match=words):
        ModelBundle.load(copy)


def test_int8_graphs_come_all_or_none(copy):
    assert set(ModelBundle.load(copy).int8_graphs) == {'depth_encoder', 'gate_decoder'}
    rewrite(copy, lambda v: v['int8_graphs'].pop('gate_decoder'))
    with pytest.raises(BundleError, match=r"graphs \['depth_encoder'\], expected .*'gate_decoder'"):
        ModelBundle.load(copy)
    rewrite(copy, lambda v: v.pop('int8_graphs'))
    assert not ModelBundle.load(copy).int8_graphs


def test_an_int8_graph_is_checked_too(copy):
    path = copy / 'gate_decoder.int8.onnx'
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-1])
    with pytest.raises(BundleError, match=r'int8\.onnx is corrupt'):
        ModelBundle.load(copy)


def test_a_gate_without_its_segmentation_graph(copy):
    rewrite(copy, lambda v: v.update(gate='light', segmentation_input=SEGMENTATION))
    with pytest.raises(BundleError, match=r"expected .*'segmentation_encoder'.*briges export"):
        ModelBundle.load(copy)


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        ({'patch': None}, 'either size or patch'),
        ({'size': [1024, 1024]}, 'either size or patch'),
        ({'patch': 0}, 'must be positive'),
        ({'patch': None, 'size': [0, 1024]}, 'must be positive'),
        ({'patch': None, 'size': [1024]}, 'model.json'),
        ({'patch': 'big'}, 'model.json'),
        ({'std': [0.5, 0.0, 0.5]}, 'must be positive'),
        ({'mean': None}, 'model.json'),
    ],
)
def test_a_segmentation_input_that_is_none(copy, change, words):
    wrong = {**SEGMENTATION, **change}
    rewrite(copy, lambda v: v.update(gate='light', segmentation_input=wrong))
    with pytest.raises(BundleError, match=words) as info:
        ModelBundle.load(copy)
    assert 'briges export' in str(info.value)


@pytest.mark.parametrize('arrays', [['other'], ['image', 'inverse_depth']])
def test_a_reference_that_cannot_be_read(copy, arrays):
    path = copy / 'selfcheck.npz'
    path.unlink()
    np.savez(path, **dict.fromkeys(arrays, np.zeros((8, 8))))
    rewrite(copy, lambda v: v['selfcheck'].update(sha256=file_sha256(path)))
    bundle = ModelBundle.load(copy)
    engine = GraphEngine('none', 'fp32', bundle, {})
    with pytest.raises(BundleError, match=r'selfcheck\.npz cannot be read'):
        check_engine(engine, bundle)


def test_a_bundle_cannot_reach_outside_its_folder(copy):
    rewrite(copy, lambda v: v['selfcheck'].update(file='../../etc/passwd'))
    with pytest.raises(BundleError, match='passwd is missing') as info:
        ModelBundle.load(copy)
    assert str(copy / 'passwd') in str(info.value)
