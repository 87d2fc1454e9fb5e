"""Int8 graphs are calibrated on images by the real NNCF, and come back from their skeletons."""

import json
import sys

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from tiny_published import save_depth

from briges_ros.cli import export as command
from briges_ros.cli.export import ExportJob
from briges_ros.errors import BrigesError
from briges_ros.inference.bundle import ModelBundle
from briges_ros.inference.engine import open_engine, precisions
from briges_ros.inference.preprocess import prepare
from briges_ros.inference.selfcheck import compare
from briges_ros.network import int8

pytest.importorskip('nncf', reason='nncf is not installed')
pytestmark = pytest.mark.filterwarnings('ignore')  # of NNCF and the exporter about themselves


@pytest.fixture(scope='module')
def photographs(tmp_path_factory):
    """A folder of images: smooth noise, which is more like a photograph than noise is."""
    folder = tmp_path_factory.mktemp('photographs')
    rng = np.random.default_rng(0)
    (folder / 'day').mkdir()
    for index in range(4):
        coarse = rng.integers(0, 256, (9, 15, 3), dtype=np.uint8)
        image = cv2.resize(coarse, (150, 90), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / 'day' / f'{index}.png'), image)
    (folder / 'notes.txt').write_text('no image')
    return folder


@pytest.fixture(scope='module')
def calibrated(tmp_path_factory, photographs):
    folder = tmp_path_factory.mktemp('calibrated')
    save_depth(folder / 'depth')
    job = ExportJob(str(folder / 'depth'), folder / 'bundle', calibrate=photographs)
    command.run(job)
    return ModelBundle.load(folder / 'bundle')


def picture(size=(90, 150)):
    return np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)


@pytest.mark.parametrize('backend', ['onnxruntime', 'openvino'])
def test_the_bundle_runs_in_int8_and_is_about_right(calibrated, backend):
    if 'int8' not in precisions(calibrated, backend):
        pytest.skip(f'{backend} has no int8 on this machine')
    engine = open_engine(calibrated, backend, 'int8')
    assert engine.precision == 'int8'
    errors = [c.relative_error for c in compare(engine, calibrated)]
    assert all(1e-4 < error < 0.2 for error in errors)  # not float32, and not far from it


def test_what_is_quantised_is_what_tensorrt_takes(calibrated):
    for path in calibrated.int8_graphs.values():
        graph = onnx.load(str(path)).graph
        arrays = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        quantise = [n for n in graph.node if n.op_type == 'QuantizeLinear']
        assert quantise
        for node in quantise:
            zero = arrays[node.input[2]]
            assert zero.dtype == np.int8 and not zero.any()
        assert TensorProto.UINT8 not in {v.type.tensor_type.elem_type for v in graph.value_info}


def test_skeletons_hold_no_weights_and_are_filled_again(calibrated, tmp_path):
    graphs = {name: onnx.load(str(path)) for name, path in calibrated.int8_graphs.items()}
    int8.write_skeletons(calibrated, graphs, tmp_path)
    for name, path in calibrated.int8_graphs.items():
        skeleton = tmp_path / int8.skeleton_file(name)
        empty = [t for t in onnx.load(str(skeleton)).graph.initializer if not t.raw_data]
        whole = {t.name: t for t in onnx.load(str(path)).graph.initializer}
        weights = {n for n in whole if n.startswith('q_output_') and 'weight' in n}
        assert weights and weights <= {t.name for t in empty}
        filled = int8.filled_skeleton(skeleton, calibrated.graphs[name])
        onnx.checker.check_model(filled)
        for tensor in filled.graph.initializer:
            ours = numpy_helper.to_array(tensor).astype(float)
            theirs = numpy_helper.to_array(whole[tensor.name]).astype(float)
            steps = 1 if tensor.data_type == TensorProto.INT8 else 0
            assert np.abs(ours - theirs).max(initial=0) <= steps


def test_a_skeleton_of_other_weights_is_refused(calibrated, tmp_path):
    graphs = {'gate_decoder': onnx.load(str(calibrated.int8_graphs['gate_decoder']))}
    int8.write_skeletons(calibrated, graphs, tmp_path)
    skeleton = tmp_path / int8.skeleton_file('gate_decoder')
    with pytest.raises(BrigesError, match=r'skeleton\.onnx wants .* the weights have none'):
        int8.filled_skeleton(skeleton, calibrated.graphs['depth_encoder'])


def test_new_graphs_take_the_place_of_the_old(calibrated, tmp_path):
    before = json.loads((calibrated.folder / 'model.json').read_text())
    graphs = {name: onnx.load(str(path)) for name, path in calibrated.int8_graphs.items()}
    int8.add_graphs(calibrated, graphs)
    assert json.loads((calibrated.folder / 'model.json').read_text()) == before
    graphs['gate_decoder'].doc_string = 'other'
    int8.add_graphs(calibrated, graphs)
    assert ModelBundle.load(calibrated.folder).sha256 != calibrated.sha256


def test_both_precisions_give_an_image_about_the_same_depth(calibrated):
    inputs = prepare(picture(), calibrated, 40)
    exact, fast = (open_engine(calibrated, 'onnxruntime', p) for p in ('fp32', 'int8'))
    assert np.corrcoef(exact.infer(*inputs).ravel(), fast.infer(*inputs).ravel())[0, 1] > 0.98


def test_a_folder_without_images(tmp_path, photographs):
    save_depth(tmp_path / 'depth')
    (tmp_path / 'empty').mkdir()
    job = ExportJob(str(tmp_path / 'depth'), tmp_path / 'bundle', calibrate=tmp_path / 'empty')
    with pytest.raises(BrigesError, match='empty holds no images'):
        command.run(job)
    assert not (tmp_path / 'bundle').exists()  # said before the export, not after it


def test_without_nncf_it_says_how_to_get_it(tmp_path, photographs, monkeypatch):
    save_depth(tmp_path / 'depth')
    monkeypatch.setitem(sys.modules, 'nncf', None)
    job = ExportJob(str(tmp_path / 'depth'), tmp_path / 'bundle', calibrate=photographs)
    with pytest.raises(BrigesError, match=r'needs nncf; run: pip install "briges_ros\[int8\]"'):
        command.run(job)
    assert not (tmp_path / 'bundle').exists()
