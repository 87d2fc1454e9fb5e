"""Bundles load whole or not at all, and say what is wrong."""

import io
import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from briges_ros.inference import selfcheck
from briges_ros.inference.bundle import BundleError, ModelBundle, file_sha256, find_bundle
from briges_ros.inference.engine import EngineError, GraphEngine
from briges_ros.inference.selfcheck import check_engine, open_checked_engine

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


def with_reference(copy, content: bytes) -> ModelBundle:
    """The bundle with another self-check, and the digest of that."""
    path = copy / 'selfcheck.npz'
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    rewrite(copy, lambda v: v['selfcheck'].update(sha256=file_sha256(path)))
    return ModelBundle.load(copy)


def zipped(arrays: dict[str, bytes], way: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', way) as archive:
        for name, content in arrays.items():
            archive.writestr(f'{name}.npy', content)
    return file.getvalue()


def array_file(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def claiming(shape: str) -> bytes:
    """An array of 64 numbers whose header says something else."""
    content = array_file(np.zeros((8, 8), np.float32))
    claim = content.replace(b'(8, 8), }', f'{shape}, }}'.encode())
    return claim[:8] + (len(claim) - 256 - 10).to_bytes(2, 'little') + claim[10:]


class Bomb:
    """Runs when it is unpickled."""

    def __init__(self, trace):
        self._trace = trace

    def __reduce__(self):
        return Path.touch, (self._trace,)


GOOD = np.arange(64, dtype=np.float32).reshape(8, 8)
NAMES = ('image', 'level0', 'inverse_depth')
REFERENCES = {
    'no arrays that are wanted': lambda _: zipped({'other': array_file(GOOD)}),
    'no level': lambda _: zipped(dict.fromkeys(('image', 'inverse_depth'), array_file(GOOD))),
    'empty': lambda _: b'',
    'no archive': lambda _: b'PK' + bytes(100),
    'cut off': lambda _: zipped(dict.fromkeys(NAMES, array_file(GOOD)))[:-30],
    'an array, no archive': lambda _: array_file(GOOD),
    'pickle': lambda trace: zipped(dict.fromkeys(NAMES, array_file(np.array([Bomb(trace)])))),
    'terabytes': lambda _: zipped(dict.fromkeys(NAMES, claiming('(999999999999,)'))),
    'more than there is': lambda _: zipped(dict.fromkeys(NAMES, claiming('(9, 9)'))),
    'negative': lambda _: zipped(dict.fromkeys(NAMES, claiming('(-8, 8)'))),
    'overflow': lambda _: zipped(dict.fromkeys(NAMES, claiming('(4294967296, 4294967296)'))),
    'code for a shape': lambda _: zipped(dict.fromkeys(NAMES, claiming('__import__("os")'))),
    'unpacks to much': lambda _: zipped(
        dict.fromkeys(NAMES, array_file(np.zeros(50_000, np.float32))), zipfile.ZIP_DEFLATED
    ),
    'text': lambda _: zipped(dict.fromkeys(NAMES, array_file(np.array(['a', 'b'])))),
    'one value': lambda _: zipped(dict.fromkeys(NAMES, array_file(np.ones((8, 8), np.float32)))),
    'not finite': lambda _: zipped(
        dict.fromkeys(NAMES, array_file(np.full((8, 8), np.inf, np.float32)))
    ),
}


@pytest.mark.parametrize('name', REFERENCES)
def test_a_reference_that_cannot_be_read(copy, name, tmp_path, opened_once, monkeypatch):
    monkeypatch.setattr(selfcheck, '_LARGEST_REFERENCE', 100_000)
    trace = tmp_path / 'trace'
    bundle = with_reference(copy, REFERENCES[name](trace))
    engine = GraphEngine('none', 'fp32', bundle, {})
    with pytest.raises(BundleError, match=r'selfcheck\.npz cannot be read'):
        check_engine(engine, bundle)
    assert not trace.exists()


@pytest.mark.parametrize('content', [b'', b'\0' * 100, b'\x08\x07' * 50])
@pytest.mark.parametrize('backend', ['onnxruntime', 'openvino'])
def test_a_graph_that_is_none_is_refused_by_the_engine(copy, content, backend, opened_once):
    """Though its digest is right: the bundle was made of it."""
    if backend == 'openvino':
        pytest.importorskip('openvino')
    path = copy / 'depth_encoder.onnx'
    path.unlink()
    path.write_bytes(content)
    rewrite(copy, lambda v: v['graphs']['depth_encoder'].update(sha256=file_sha256(path)))
    with pytest.raises(EngineError, match=r'does not load .*depth_encoder\.onnx') as info:
        open_checked_engine(ModelBundle.load(copy), backend, 'fp32')
    assert '\n' not in str(info.value)


@pytest.mark.parametrize(
    'name', ['../../etc/passwd', '/etc/passwd', 'sub/../../passwd', '~/passwd']
)
def test_a_bundle_cannot_reach_outside_its_folder(copy, name):
    (copy.parent / 'passwd').write_text('root')
    for change in (
        lambda v: v['selfcheck'].update(file=name),
        lambda v: v['graphs']['gate_decoder'].update(data_file=name, data_sha256='0'),
    ):
        rewrite(copy, change)
        with pytest.raises(BundleError, match='passwd is missing') as info:
            ModelBundle.load(copy)
        assert str(copy / 'passwd') in str(info.value)


@pytest.mark.parametrize('name', ['', '.', '..', '/', 'graphs/..', 'a\0b', 'x' * 5000])
def test_a_name_that_is_no_file(copy, name):
    rewrite(copy, lambda v: v['selfcheck'].update(file=name))
    with pytest.raises(BundleError) as info:
        ModelBundle.load(copy)
    assert 'briges export' in str(info.value)


def test_a_link_counts_by_what_it_holds(copy, tmp_path):
    """It may lead out of the folder, as in a download cache, to what has the right digest."""
    secret = tmp_path / 'secret'
    secret.write_text('not of the bundle')
    graph = copy / 'gate_decoder.onnx'
    graph.unlink()
    graph.symlink_to(secret)
    with pytest.raises(BundleError, match='corrupt') as info:
        ModelBundle.load(copy)
    assert 'not of the bundle' not in str(info.value)


@pytest.mark.parametrize('kind', ['folder', 'device', 'pipe', 'circle'])
def test_what_is_no_regular_file_is_not_read(copy, kind):
    """Of a device or a pipe the reading might not end."""
    path = copy / 'gate_decoder.onnx'
    path.unlink()
    {
        'folder': lambda: path.mkdir(),
        'device': lambda: path.symlink_to('/dev/zero'),
        'pipe': lambda: os.mkfifo(path),
        'circle': lambda: path.symlink_to(path),
    }[kind]()
    with pytest.raises(BundleError, match=r'gate_decoder\.onnx is missing'):
        ModelBundle.load(copy)


VALUES = st.sampled_from(
    [
        None,
        True,
        0,
        -1,
        10**400,
        1e999,
        -1e999,
        float('nan'),
        1e-320,
        '',
        'x',
        [],
        [1],
        {},
        {'a': 1},
    ]
)


def places(values, path=()):
    """Where values are in a JSON document."""
    items = values.items() if isinstance(values, dict) else enumerate(values)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, (dict, list)):
            yield from places(value, (*path, key))


def test_any_description_is_one_or_is_refused(copy, opened_once):
    good = (copy / 'model.json').read_text()

    @settings(
        max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
    )
    @given(st.sampled_from(list(places(json.loads(good)))), VALUES)
    def load(path, value):
        def change(at):
            for key in path[:-1]:
                at = at[key]
            at[path[-1]] = value

        (copy / 'model.json').write_text(good)
        rewrite(copy, change)
        try:
            bundle = ModelBundle.load(copy)
        except BundleError as error:
            assert str(copy) in str(error)
            return
        assert bundle.patch > 0 and bundle.token_budget > 0
        assert np.isfinite([*bundle.mean, *bundle.std]).all()

    load()


@pytest.mark.parametrize(
    'text', ['', 'null', '[]', '1', '[' * 100_000, '{"a":' * 100_000, '\ufeff{}', '{}x', '1e999']
)
def test_a_text_that_is_no_description(copy, text):
    (copy / 'model.json').write_text(text)
    with pytest.raises(BundleError, match='briges export'):
        ModelBundle.load(copy)
