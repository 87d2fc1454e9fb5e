"""Data sets: every published layout on a tiny folder, values by hand, and refusals by name."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from briges_ros.errors import BrigesError
from briges_ros.training.augment import cut_objects, paste_objects
from briges_ros.training.datasets import DATASETS, Sample, open_dataset

H, W = 6, 8
NO_H5PY = 'Hypersim is read with h5py, which is not installed: make test brings it'
GREY = np.full((H, W, 3), 128, np.uint8)


def write(path: Path, pixels: np.ndarray) -> Path:
    """An image file; colours are RGB."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bgr = pixels[..., ::-1] if pixels.ndim == 3 and pixels.shape[2] == 3 else pixels
    assert cv2.imwrite(str(path), bgr)
    return path


def write_npy(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)
    return path


def write_hdf5(path: Path, array: np.ndarray) -> Path:
    h5py = pytest.importorskip('h5py', reason=NO_H5PY)
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, 'w') as file:
        file['dataset'] = array
    return path


def write_lists(root: Path, **lists: str) -> None:
    (root / 'splits').mkdir(exist_ok=True)
    for split, text in lists.items():
        (root / 'splits' / f'{split}.txt').write_text(text)


def raster(dtype: type, *first: float) -> np.ndarray:
    """(H, W) of ones but for the first values of the first row."""
    array = np.ones((H, W), dtype)
    array[0, : len(first)] = first
    return array


# folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    red = np.zeros((H, W, 3), np.uint8)
    red[..., 0] = 255
    for name in ('a/0', 'a/1', 'b/0'):
        write(tmp_path / f'rgb/{name}.png', red)
        write(tmp_path / f'depth/{name}.png', raster(np.uint16, 0, 2000, 500, 65535))
        write(tmp_path / f'labels/{name}.png', raster(np.uint8, 0, 7))
    meta = {'depth_scale': 1000, 'sky_value': 65535, 'sharp': True, 'camera': 'D435'}
    (tmp_path / 'meta.json').write_text(json.dumps(meta))
    return tmp_path


def test_the_folder_format(folder):
    frames = open_dataset('folder', folder)
    assert len(frames) == 3 and frames.sharp
    sample = frames[2]
    assert sample.name == 'b/0'
    assert sample.image.dtype == np.uint8 and sample.image[0, 0].tolist() == [255, 0, 0]
    assert sample.inverse.dtype == np.float32
    np.testing.assert_allclose(sample.inverse[0, :5], [np.nan, 0.5, 2.0, 0.0, 1000.0])
    assert sample.labels is not None and sample.labels[0, :3].tolist() == [0, 7, 1]


def test_the_folder_format_with_metres_in_arrays(tmp_path):
    write(tmp_path / 'rgb/0.jpg', GREY)
    write_npy(tmp_path / 'depth/0.npy', raster(np.float64, 0, np.nan, np.inf, -1, 4))
    frames = open_dataset('folder', tmp_path)
    assert not frames.sharp and frames[0].labels is None
    np.testing.assert_allclose(frames[0].inverse[0, :6], [np.nan, np.nan, 0, np.nan, 0.25, 1])


@pytest.mark.parametrize(
    ('meta', 'what'),
    [
        ({}, 'must give depth_scale'),
        ({'depth_scale': 0}, 'positive number'),
        ({'depth_scale': True}, 'positive number'),
        ({'depth_scale': 1, 'sky_value': '65535'}, 'sky_value'),
        ({'depth_scale': 1, 'sharp': 'yes'}, 'sharp'),
        ([], 'must hold an object'),
    ],
)
def test_a_wrong_meta_file_is_refused(folder, meta, what):
    (folder / 'meta.json').write_text(json.dumps(meta))
    with pytest.raises(BrigesError, match=rf'meta\.json.*{what}'):
        open_dataset('folder', folder)


# splits


def test_lists_split_by_name_and_by_folder(folder):
    write_lists(folder, held_out='# scores\na/1\nb/\n')
    names = [
        frame.name for frame in (open_dataset('folder', folder, 'held_out')[i] for i in (0, 1))
    ]
    assert names == ['a/1', 'b/0']
    train = open_dataset('folder', folder, 'train')
    assert len(train) == 1 and train[0].name == 'a/0'


def test_what_is_held_out_never_trains(folder):
    write_lists(folder, held_out='a/1\n', train='a\n')
    assert [open_dataset('folder', folder)[0].name] == ['a/0']
    assert len(open_dataset('folder', folder)) == 1
    write_lists(folder, train='a/1\n')
    with pytest.raises(BrigesError, match=r'held out by .*held_out\.txt'):
        open_dataset('folder', folder)


@pytest.mark.parametrize('text', ['a/2\n', 'a/1\naa\n', '\n# none\n'])
def test_a_list_with_a_typing_error_or_nothing_is_refused(folder, text):
    write_lists(folder, held_out=text)
    for split in ('train', 'held_out'):
        with pytest.raises(BrigesError, match=r'held_out\.txt lists'):
            open_dataset('folder', folder, split)


def test_held_out_frames_need_a_list(folder):
    with pytest.raises(BrigesError, match=r'held_out\.txt is missing'):
        open_dataset('folder', folder, 'held_out')


@pytest.mark.parametrize('kind', DATASETS)
def test_folders_without_frames_and_wrong_splits_are_refused(tmp_path, kind):
    with pytest.raises(BrigesError, match=str(tmp_path)) as caught:
        open_dataset(kind, tmp_path)
    assert any(pattern in str(caught.value) for pattern in ('holds no', '*.png'))
    with pytest.raises(BrigesError, match="no split 'test'; choose from train, held_out"):
        DATASETS[kind](tmp_path, 'test') if kind not in WITHOUT_FRAMES else fill_and_open(
            tmp_path, kind, 'test'
        )
    with pytest.raises(BrigesError, match='no such folder'):
        open_dataset(kind, tmp_path / 'elsewhere')


WITHOUT_FRAMES = ('folder', 'virtual_kitti2', 'tartanair')  # look for frames before the split


def fill_and_open(root: Path, kind: str, split: str) -> None:
    image = {
        'folder': 'rgb/0.png',
        'virtual_kitti2': 'Scene01/clone/frames/rgb/Camera_0/rgb_00000.jpg',
        'tartanair': 'office/Easy/P000/image_left/000000_left.png',
    }
    write(root / image[kind], GREY)
    DATASETS[kind](root, split)


def test_an_unknown_kind_lists_the_kinds(tmp_path):
    with pytest.raises(BrigesError, match=r"'nyu'; choose from .*nyuv2.*tartanair"):
        open_dataset('nyu', tmp_path)


# broken files


def test_a_missing_part_is_named_on_opening(folder):
    (folder / 'depth/a/1.png').unlink()
    with pytest.raises(BrigesError, match=r'depth/a/1\.png is missing'):
        open_dataset('folder', folder)
    write(folder / 'depth/a/1.png', raster(np.uint16))
    (folder / 'labels/b/0.png').unlink()
    with pytest.raises(BrigesError, match=r'labels/b/0\.png is missing'):
        open_dataset('folder', folder)


def test_sizes_that_differ_name_both_files(folder):
    write(folder / 'depth/a/0.png', np.ones((H, W + 1), np.uint16))
    with pytest.raises(BrigesError, match=r'depth/a/0\.png is 9 x 6 .*rgb/a/0\.png is 8 x 6'):
        open_dataset('folder', folder)[0]
    write(folder / 'labels/a/1.png', np.ones((H - 1, W), np.uint8))
    with pytest.raises(BrigesError, match=r'labels/a/1\.png is 8 x 5 .*rgb/a/1\.png is 8 x 6'):
        open_dataset('folder', folder)[1]


@pytest.mark.parametrize('part', ['rgb', 'depth', 'labels'])
@pytest.mark.parametrize('content', [b'', b'no image'])
def test_a_file_that_is_no_image_is_named(folder, part, content):
    (folder / part / 'a/0.png').write_bytes(content)
    with pytest.raises(BrigesError, match=rf'{part}/a/0\.png: missing or not an image'):
        open_dataset('folder', folder)[0]


@pytest.mark.parametrize('share', [0.3, 0.7, 0.98])
def test_a_jpeg_that_breaks_off_is_not_taken_for_grey(tmp_path, share):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    image = write(tmp_path / 'rgb/0.jpg', noise)
    write_npy(tmp_path / 'depth/0.npy', np.ones((64, 64), np.float32))
    frames = open_dataset('folder', tmp_path)
    assert frames[0].image.std() > 10
    content = image.read_bytes()
    image.write_bytes(content[: int(share * len(content))])
    with pytest.raises(BrigesError, match=r'rgb/0\.jpg: the JPEG breaks off'):
        frames[0]


def test_a_coloured_picture_of_depth_is_not_depth(folder):
    write(folder / 'depth/a/0.png', GREY)
    with pytest.raises(BrigesError, match=r'depth/a/0\.png holds 3 channel'):
        open_dataset('folder', folder)[0]


def test_arrays_that_are_none_are_named(tmp_path):
    write(tmp_path / 'rgb/0.png', GREY)
    path = tmp_path / 'depth/0.npy'
    for wrong in (np.ones((H, W, 2)), np.array([[None] * W] * H), np.full((H, W), 'far')):
        write_npy(path, wrong)
        with pytest.raises(BrigesError, match=r'depth/0\.npy'):
            open_dataset('folder', tmp_path)[0]
    for content in (b'', b'\x93NUMPY broken', b'PK\x03\x04'):
        path.write_bytes(content)
        with pytest.raises(BrigesError, match=r'depth/0\.npy'):
            open_dataset('folder', tmp_path)[0]


# nyuv2


def test_nyuv2_classes_count_from_one_and_the_rest_is_unlabelled(tmp_path):
    for number in (0, 420):
        write(tmp_path / f'rgb/{number:04d}.jpg', GREY)
        write(tmp_path / f'depth/{number:04d}.png', raster(np.uint8, 0, 255, 127, 254))
        write(tmp_path / f'labels40/{number:04d}.png', raster(np.uint8, 0, 1, 38, 39))
    train, held_out = (open_dataset('nyuv2', tmp_path, s) for s in ('train', 'held_out'))
    assert len(train) == len(held_out) == 1 and train.sharp
    assert (train[0].name, held_out[0].name) == ('nyuv2/0000', 'nyuv2/0420')
    np.testing.assert_allclose(train[0].inverse[0, :4], [np.nan, np.nan, 0.2, 0.1002], rtol=1e-3)
    assert train[0].labels is not None and train[0].labels[0, :4].tolist() == [1, 2, 39, 0]
    (tmp_path / 'labels40/0000.png').unlink()
    with pytest.raises(BrigesError, match=r'labels40/0000\.png is missing'):
        open_dataset('nyuv2', tmp_path)


def test_nyuv2_says_which_split_is_empty(tmp_path):
    write(tmp_path / 'rgb/0000.jpg', GREY)
    with pytest.raises(BrigesError, match=r"rgb: none of its 1 frames .*'held_out'"):
        open_dataset('nyuv2', tmp_path, 'held_out')
    write(tmp_path / 'rgb/kitchen.jpg', GREY)
    with pytest.raises(BrigesError, match=r'kitchen\.jpg'):
        open_dataset('nyuv2', tmp_path)


# KITTI

DRIVE = '2011_09_26_drive_0002_sync'
VAL = '2011_09_28_drive_0037_sync'


def benchmark_frame(root: Path, folder: str, drive: str, number: int, suffix: str = 'png') -> None:
    depth = raster(np.uint16, 0, 2560, 128, 65535)
    write(root / folder / drive / f'proj_depth/groundtruth/image_02/{number:010d}.png', depth)
    write(root / drive[:10] / drive / f'image_02/data/{number:010d}.{suffix}', GREY)


@pytest.fixture
def kitti(tmp_path: Path) -> Path:
    benchmark_frame(tmp_path, 'train', DRIVE, 5)
    benchmark_frame(tmp_path, 'train', DRIVE, 6, 'jpg')
    benchmark_frame(tmp_path, 'val', VAL, 7)
    return tmp_path


def test_the_kitti_benchmark_in_its_own_folders(kitti):
    train, held_out = (open_dataset('kitti_depth', kitti, s) for s in ('train', 'held_out'))
    assert len(train) == 2 and not train.sharp
    assert train[1].name == f'kitti/{DRIVE}/image_02/0000000006'
    assert [held_out[0].name] == [f'kitti/{VAL}/image_02/0000000007']
    np.testing.assert_allclose(train[0].inverse[0, :4], [np.nan, 0.1, 2.0, 256 / 65535], rtol=1e-6)


IMAGE_LINE = f'2011_09_26/{DRIVE}/image_02/data/0000000005.png'
DEPTH_LINE = f'{DRIVE}/proj_depth/groundtruth/image_02/0000000005.png'


@pytest.mark.parametrize(
    'line', [f'{IMAGE_LINE} {DEPTH_LINE} 721.5377', IMAGE_LINE, f'2011_09_26/{DRIVE} 5 l']
)
def test_the_forms_of_eigens_lists(kitti, line):
    write_lists(
        kitti, held_out=f'{line}\n{IMAGE_LINE} None 721.5377\n', train=f'{VAL[:10]}/{VAL} 7 l'
    )
    held_out = open_dataset('kitti_depth', kitti, 'held_out')
    assert len(held_out) == 1
    assert held_out[0].name == f'kitti/{DRIVE}/image_02/0000000005'
    assert held_out[0].inverse[0, 1] == pytest.approx(0.1)
    assert open_dataset('kitti_depth', kitti)[0].name.startswith(f'kitti/{VAL}')


def test_a_drive_with_held_out_frames_never_trains(kitti):
    write_lists(kitti, held_out=f'{IMAGE_LINE}\n')
    with pytest.raises(BrigesError, match='all drives that would train are held out'):
        open_dataset('kitti_depth', kitti)


@pytest.mark.parametrize('line', ['0000000005', f'{DRIVE}/image_02/data/5.png', 'a b c d'])
def test_a_line_that_makes_no_sense_is_quoted(kitti, line):
    write_lists(kitti, held_out=f'{line}\n')
    with pytest.raises(BrigesError, match=rf'held_out\.txt: cannot make out .{line}'):
        open_dataset('kitti_depth', kitti, 'held_out')


def test_a_listed_frame_that_is_not_there_is_named(kitti):
    write_lists(kitti, held_out=f'2011_09_26/{DRIVE} 8 l\n')
    with pytest.raises(BrigesError, match=r'image_02/data/0000000008\.png is missing'):
        open_dataset('kitti_depth', kitti, 'held_out')
    write_lists(kitti, held_out=f'{IMAGE_LINE} None\n')
    with pytest.raises(BrigesError, match='no line of it has ground truth'):
        open_dataset('kitti_depth', kitti, 'held_out')


def test_kitti_depth_of_eight_bits_is_refused(kitti):
    write(kitti / 'train' / DEPTH_LINE, raster(np.uint8))
    with pytest.raises(BrigesError, match=r'0000000005\.png holds 1 channel.* of uint8'):
        open_dataset('kitti_depth', kitti)[0]


def test_the_parts_of_a_kitti_drive_are_named(tmp_path):
    write(tmp_path / 'image/000000.jpg', GREY)
    with pytest.raises(BrigesError, match='none is left'):
        open_dataset('kitti_drive', tmp_path, 'held_out')
    with pytest.raises(BrigesError, match=r'lidar/000000\.npy is missing'):
        open_dataset('kitti_drive', tmp_path)
    write_npy(tmp_path / 'lidar/000000.npy', np.array([[0, 0, 4, 1], [1, 0, 2]][:1], np.float32))
    with pytest.raises(BrigesError, match=r'calibration\.json'):
        open_dataset('kitti_drive', tmp_path)
    K = [[10, 0, 4], [0, 10, 3], [0, 0, 1]]
    calibration = {'K': K, 'T_camera_lidar': np.eye(4).tolist()}
    (tmp_path / 'calibration.json').write_text(json.dumps(calibration))
    frames = open_dataset('kitti_drive', tmp_path)
    assert frames[0].inverse[3, 4] == 0.25 and np.isfinite(frames[0].inverse).sum() == 1
    assert not frames.sharp
    write_npy(tmp_path / 'lidar/000000.npy', np.ones((5, 2), np.float32))
    with pytest.raises(BrigesError, match=r'lidar/000000\.npy'):
        frames[0]


# rendered sets


@pytest.fixture
def hypersim(tmp_path: Path) -> Path:
    pytest.importorskip('h5py', reason=NO_H5PY)
    distance = np.full((H, W), 2.0, np.float16)
    distance[0, 1] = np.nan
    for scene in ('ai_001_001', 'ai_001_002'):
        images = tmp_path / scene / 'images'
        write(images / 'scene_cam_00_final_preview/frame.0003.tonemap.jpg', GREY)
        geometry = images / 'scene_cam_00_geometry_hdf5'
        write_hdf5(geometry / 'frame.0003.depth_meters.hdf5', distance)
        write_hdf5(geometry / 'frame.0003.render_entity_id.hdf5', raster(np.int32, -1, 900, 70000))
    return tmp_path


def test_hypersim_distances_become_depths(hypersim):
    frames = open_dataset('hypersim', hypersim)
    assert len(frames) == 2 and frames.sharp
    sample = frames[0]
    assert sample.name == 'hypersim/ai_001_001/cam_00/frame.0003'
    # 8 pixels wide: f = 886.81 * 8 / 1024 = 6.92820; the corner is 3.5 and 2.5 pixels off axis.
    focal = 6.92820
    corner = 2.0 * focal / np.sqrt(3.5**2 + 2.5**2 + focal**2)
    assert 1 / sample.inverse[0, 0] == pytest.approx(corner, rel=1e-4)
    assert 1 / sample.inverse[H - 1, W - 1] == pytest.approx(corner, rel=1e-4)
    centre = 2.0 * focal / np.sqrt(2 * 0.5**2 + focal**2)
    assert 1 / sample.inverse[2, 3] == pytest.approx(centre, rel=1e-4)
    assert np.isnan(sample.inverse[0, 1])


def test_the_published_formula_at_the_published_size():
    from briges_ros.training.datasets.hypersim import planar_depth

    depth = planar_depth(np.full((768, 1024), 3.0))
    # 60 degrees across: at mid-height the outermost ray is nearly 30 degrees off axis.
    assert depth[384, 0] == pytest.approx(3.0 * np.cos(np.radians(30)), rel=1e-3)
    x, y = 100 - 511.5, 700 - 383.5
    assert depth[700, 100] == pytest.approx(3 * 886.81 / np.sqrt(x * x + y * y + 886.81**2))


def test_hypersim_labels_are_classes_or_else_objects(hypersim):
    objects = open_dataset('hypersim', hypersim)[0].labels
    assert objects is not None and objects[0, :4].tolist() == [0, 2, 3, 1]
    for scene in ('ai_001_001', 'ai_001_002'):
        geometry = hypersim / scene / 'images/scene_cam_00_geometry_hdf5'
        write_hdf5(geometry / 'frame.0003.semantic.hdf5', raster(np.int16, -1, 40, 2))
    classes = open_dataset('hypersim', hypersim)[0].labels
    assert classes is not None and classes[0, :4].tolist() == [0, 40, 2, 1]


def test_hypersims_own_split(hypersim):
    (hypersim / 'metadata_images_split_scene_v1.csv').write_text(
        'scene_name,camera_name,frame_id,included_in_public_release,exclude_reason,'
        'split_partition_name\n'
        'ai_001_001,cam_00,3,True,,train\nai_001_002,cam_00,3,True,,val\n'
        'ai_001_003,cam_00,3,True,,train\n'
    )
    train, held_out = (open_dataset('hypersim', hypersim, s) for s in ('train', 'held_out'))
    assert len(train) == len(held_out) == 1
    assert 'ai_001_001' in train[0].name and 'ai_001_002' in held_out[0].name
    (hypersim / 'metadata_images_split_scene_v1.csv').write_text('scene,camera\na,b\n')
    with pytest.raises(BrigesError, match=r'scene_v1\.csv: not the table'):
        open_dataset('hypersim', hypersim)


def test_broken_hdf5_is_named(hypersim):
    h5py = pytest.importorskip('h5py', reason=NO_H5PY)
    folder = hypersim / 'ai_001_001/images/scene_cam_00_geometry_hdf5'
    path = folder / 'frame.0003.depth_meters.hdf5'
    frames = open_dataset('hypersim', hypersim)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BrigesError, match=r'frame\.0003\.depth_meters\.hdf5'):
        frames[0]
    with h5py.File(path, 'w') as file:
        file['depth'] = np.ones((H, W))
    with pytest.raises(BrigesError, match=r'depth_meters\.hdf5: .*"dataset"'):
        frames[0]


def test_without_h5py_the_error_says_what_to_install(hypersim, monkeypatch):
    frames = open_dataset('hypersim', hypersim)
    monkeypatch.setitem(sys.modules, 'h5py', None)
    with pytest.raises(BrigesError, match='pip install h5py'):
        frames[0]


def test_virtual_kitti_2(tmp_path):
    for scene in ('Scene01', 'Scene02'):
        for variation in ('clone', '15-deg-left'):
            frames = tmp_path / scene / variation / 'frames'
            write(frames / 'rgb/Camera_0/rgb_00012.jpg', GREY)
            write(frames / 'rgb/Camera_1/rgb_00012.jpg', GREY)
            depth = raster(np.uint16, 65535, 65534, 250, 0)
            write(frames / 'depth/Camera_0/depth_00012.png', depth)
    write_lists(tmp_path, held_out='Scene02\n')
    train = open_dataset('virtual_kitti2', tmp_path)
    assert len(train) == 2 and train.sharp
    assert train[0].name == 'virtual_kitti2/Scene01/15-deg-left/00012'
    np.testing.assert_allclose(
        train[0].inverse[0, :5], [0, 1 / 655.34, 0.4, np.nan, 100], rtol=1e-6
    )
    assert len(open_dataset('virtual_kitti2', tmp_path, 'held_out')) == 2


@pytest.mark.parametrize('archive', ['', 'office/'])
def test_tartanair(tmp_path, archive):
    flight = tmp_path / archive / 'office/Hard/P002'
    write(flight / 'image_left/000007_left.png', GREY)
    write(flight / 'image_right/000007_right.png', GREY)
    depth = raster(np.float32, 10000, 1000, 999, 0.5)
    write_npy(flight / 'depth_left/000007_left_depth.npy', depth)
    frames = open_dataset('tartanair', tmp_path)
    assert len(frames) == 1 and frames.sharp
    assert frames[0].name == f'tartanair/{archive}office/Hard/P002/000007'
    np.testing.assert_allclose(frames[0].inverse[0, :4], [0, 0, 1 / 999, 2], rtol=1e-6)
    (flight / 'depth_left/000007_left_depth.npy').unlink()
    with pytest.raises(BrigesError, match=r'000007_left_depth\.npy is missing'):
        open_dataset('tartanair', tmp_path)


def test_tartanair_v2(tmp_path):
    flight = tmp_path / 'House/Data_easy/P000'
    write(flight / 'image_lcam_front/000003_lcam_front.png', GREY)
    depth = raster(np.float32, 65504, 3.1415927, 20)
    packed = depth[..., None].view(np.uint8)
    write(flight / 'depth_lcam_front/000003_lcam_front_depth.png', packed)
    frames = open_dataset('tartanair', tmp_path)
    assert [frames[0].name] == ['tartanair/House/Data_easy/P000/000003']
    np.testing.assert_allclose(frames[0].inverse[0, :3], [0, 1 / 3.1415927, 0.05], rtol=1e-6)


# the real frames


def test_the_real_nyuv2_labels(data):
    frames = open_dataset('nyuv2', data / 'nyuv2', 'held_out')
    counts = np.zeros(256, int)
    top, bottom = [], []
    for index in range(0, len(frames), 12):
        labels = frames[index].labels
        assert labels is not None and labels.shape == frames[index].inverse.shape
        counts += np.bincount(labels.ravel(), minlength=256)
        rows = np.nonzero(labels == 22)[0], np.nonzero(labels == 2)[0]
        top.extend(rows[0])
        bottom.extend(rows[1])
    assert counts[40:].sum() == 0 and counts[1:40].sum() > 0.6 * counts.sum()
    assert counts[1:40].argmax() == 0  # walls are most of an interior
    assert np.mean(top) < 100 and np.mean(bottom) > 220  # ceilings up, floors down, of 357 rows


def test_the_real_kitti_drive(data):
    frames = open_dataset('kitti_drive', data / 'kitti_drive', 'held_out')
    assert len(frames) == 20
    sample = frames[0]
    assert sample.image.shape == (375, 1242, 3)
    depth = 1 / sample.inverse[sample.inverse > 0]
    assert 0.01 < np.isfinite(sample.inverse).mean() < 0.2
    assert 3 < depth.min() < 15 and 40 < depth.max() < 130


# pasted objects


def scene(seed: int, with_labels: bool) -> Sample:
    """A wall, a floor and a few boxes before them, some pixels unknown and some sky."""
    rng = np.random.default_rng(seed)
    rows, cols = 120, 160
    inverse = np.full((rows, cols), rng.uniform(0.1, 0.3), np.float32)
    inverse[80:] = np.linspace(0.3, 0.6, 40, dtype=np.float32)[:, None]
    labels = np.ones((rows, cols), np.uint8)
    labels[80:] = 2
    inverse[:4] = 0.0
    for label in (5, 7):
        y, x = int(rng.integers(6, 70)), int(rng.integers(2, 120))
        box = np.s_[y : y + int(rng.integers(15, 30)), x : x + int(rng.integers(15, 30))]
        inverse[box] = rng.uniform(0.7, 1.2)
        labels[box] = label
    inverse[rng.random((rows, cols)) < 0.003] = np.nan
    image = rng.integers(0, 256, (rows, cols, 3), dtype=np.uint8)
    return Sample(f's{seed}', image, inverse, labels if with_labels else None)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.booleans(), st.booleans())
def test_pasting_brings_nearer_and_touches_nothing_else(seed, sample_labels, donor_labels):
    sample, donor = scene(seed, sample_labels), scene(seed + 1, donor_labels)
    before = sample.image.copy(), sample.inverse.copy()
    result = paste_objects(sample, donor, np.random.default_rng(seed))
    was, now = sample.inverse, result.inverse
    pasted = ~((was == now) | (np.isnan(was) & np.isnan(now)))
    np.testing.assert_array_equal(result.image[~pasted], sample.image[~pasted])
    assert np.isfinite(now[pasted]).all()
    assert not (now[pasted] <= np.nan_to_num(was[pasted])).any()  # nearer, never farther
    assert (result.labels is None) == (sample.labels is None)
    if result.labels is not None:
        np.testing.assert_array_equal(result.labels[~pasted], sample.labels[~pasted])
        assert set(result.labels[pasted]) <= ({5, 7} if donor_labels else {0})
    np.testing.assert_array_equal(sample.image, before[0])  # the original is left alone
    np.testing.assert_array_equal(sample.inverse, before[1])


@pytest.mark.parametrize('with_labels', [True, False])
def test_objects_are_found_and_pasted(with_labels):
    pasted = 0
    for seed in range(20):
        donor = scene(seed + 100, with_labels)
        for cutout in cut_objects(donor):
            assert np.nanmin(cutout.inverse[cutout.mask]) >= 0.6  # a box, no wall, no floor
        sample = scene(seed, with_labels)
        result = paste_objects(sample, donor, np.random.default_rng(seed))
        same = paste_objects(sample, donor, np.random.default_rng(seed))
        np.testing.assert_array_equal(result.image, same.image)  # a function of the seed
        pasted += result is not sample
    assert pasted >= 10


def test_a_frame_that_has_no_objects_changes_nothing():
    sample, flat = scene(0, True), scene(1, True)
    flat = Sample('flat', flat.image, np.full_like(flat.inverse, 0.5), flat.labels)
    assert paste_objects(sample, flat, np.random.default_rng(0)) is sample


def test_pasting_between_real_frames(data):
    frames = open_dataset('nyuv2', data / 'nyuv2', 'train')
    rng = np.random.default_rng(0)
    pasted = 0
    for index in range(0, len(frames) - 7, 90):
        sample, donor = frames[index], frames[index + 7]
        result = paste_objects(sample, donor, rng)
        known = np.isfinite(sample.inverse)
        assert (result.inverse[known] >= sample.inverse[known]).all()
        pasted += result is not sample
    assert pasted >= 3
