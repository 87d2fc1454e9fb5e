"""`briges` as a user runs it: what it writes, and its one-line errors."""

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest

from briges_ros.cli import main as command_line


def briges(*arguments, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, '-m', 'briges_ros.cli.main', *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


def assert_one_line_error(result, *words) -> None:
    assert result.returncode == 2, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith('briges: ')]
    assert len(lines) == 1 and len(result.stderr.splitlines()) == 1, result.stderr
    for word in words:
        assert word in lines[0]


@pytest.fixture
def briges_here(monkeypatch, capfd, opened_once):
    """As `briges`, in this process and with engines that are open: for what is tried often."""

    def run(*arguments) -> subprocess.CompletedProcess:
        command = ['briges', *map(str, arguments)]
        monkeypatch.setattr(sys, 'argv', command)
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            command_line.main()
        said, complained = capfd.readouterr()
        return subprocess.CompletedProcess(command, end.value.code, said, complained)

    return run


@pytest.fixture(scope='module')
def kitti(data):
    return data / 'kitti_drive'


def test_a_drive_frame_with_lidar(bundle, kitti, tmp_path):
    result = briges(
        'depth',
        kitti / 'image' / '000040.jpg',
        '--camera',
        kitti / 'calibration.json',
        '--points',
        kitti / 'lidar' / '000040.npy',
        '-o',
        tmp_path / 'out',
    )
    assert result.returncode == 0, result.stderr
    assert 'METRIC' in result.stdout
    out = tmp_path / 'out'
    depth = np.load(out / '000040_depth.npy')
    assert depth.shape == (375, 1242) and depth.dtype == np.float32
    millimetres = cv2.imread(str(out / '000040_depth.png'), cv2.IMREAD_UNCHANGED)
    assert millimetres.dtype == np.uint16
    fits = np.isfinite(depth) & (depth < 65)
    np.testing.assert_allclose(millimetres[fits] / 1000, depth[fits], atol=6e-4)
    assert (millimetres[~np.isfinite(depth)] == 0).all()
    header = (out / '000040_cloud.ply').read_bytes()[:400]
    assert header.startswith(b'ply') and b'element vertex ' in header
    report = json.loads((out / '000040.json').read_text())
    assert report['state'] == 'METRIC' and report['cloud_points'] == np.isfinite(depth).sum()
    assert report['inliers'] > 100 and report['scale'] > 0
    assert cv2.imread(str(out / '000040_preview.png')) is not None


def test_without_a_sensor_it_says_so_and_gives_no_metres(briges_here, bundle, kitti, tmp_path):
    result = briges_here('depth', kitti / 'image' / '000041.jpg', '-o', tmp_path)
    assert result.returncode == 0, result.stderr
    assert 'no metres' in result.stdout and '--points' in result.stdout
    assert np.isnan(np.load(tmp_path / '000041_depth.npy')).all()
    assert np.isfinite(np.load(tmp_path / '000041_relative.npy')).all()
    report = json.loads((tmp_path / '000041.json').read_text())
    assert report['state'] == 'RELATIVE' and report['scale'] is None


def test_sparse_depth_as_png(briges_here, bundle, data, tmp_path):
    image = data / 'frames' / 'd09_tumdesk_rgb.png'
    raw = cv2.imread(str(data / 'frames' / 'd09_tumdesk_depth.png'), cv2.IMREAD_UNCHANGED)
    meta = json.loads((data / 'frames' / 'meta.json').read_text())
    scale = next(entry['depth_scale'] for entry in meta if entry['id'] == 'd09_tumdesk')
    millimetres = (raw * (1000.0 / scale)).astype(np.uint16)
    sparse = np.zeros_like(millimetres)
    sparse[::20, ::20] = millimetres[::20, ::20]
    cv2.imwrite(str(tmp_path / 'sparse.png'), sparse)
    result = briges_here('depth', image, '--sparse-depth', tmp_path / 'sparse.png', '-o', tmp_path)
    assert result.returncode == 0, result.stderr
    depth = np.load(tmp_path / 'd09_tumdesk_rgb_depth.npy')
    known = (millimetres > 0) & np.isfinite(depth)
    assert np.median(np.abs(depth[known] / (millimetres[known] / 1000) - 1)) < 0.15
    assert '60 degrees' in json.loads((tmp_path / 'd09_tumdesk_rgb.json').read_text())['camera']


def test_a_missing_image(briges_here, bundle, tmp_path):
    assert_one_line_error(
        briges_here('depth', 'nosuch.jpg', '-o', tmp_path), 'nosuch.jpg', 'not exist'
    )


def test_what_is_no_image(bundle, tmp_path):
    path = tmp_path / 'text.jpg'
    path.write_text('hello')
    assert_one_line_error(briges('depth', path, '-o', tmp_path), 'not an image')


def test_an_unknown_model(tmp_path, kitti):
    result = briges('depth', kitti / 'image' / '000041.jpg', '--model', 'x', '-o', tmp_path)
    assert_one_line_error(result, "'x'", 'briges export')


def test_points_without_a_camera(briges_here, bundle, kitti, tmp_path):
    lidar = kitti / 'lidar' / '000041.npy'
    result = briges_here('depth', kitti / 'image' / '000041.jpg', '--points', lidar, '-o', tmp_path)
    assert_one_line_error(result, '--camera')


def test_points_in_the_wrong_frame(briges_here, bundle, kitti, tmp_path):
    calibration = json.loads((kitti / 'calibration.json').read_text())
    del calibration['T_camera_lidar']
    camera = tmp_path / 'camera.json'
    camera.write_text(json.dumps(calibration))
    result = briges_here(
        'depth',
        kitti / 'image' / '000041.jpg',
        '--camera',
        camera,
        '--points',
        kitti / 'lidar' / '000041.npy',
        '-o',
        tmp_path,
    )
    assert_one_line_error(result, 'fall in the image', 'T_camera_sensor')


@pytest.mark.parametrize('content', ['', '[]', '{"width": 3}', 'K: [', '{"width": 0, "K": [1]}'])
def test_what_is_no_camera_file(briges_here, bundle, kitti, tmp_path, content):
    camera = tmp_path / 'camera.yaml'
    camera.write_text(content)
    result = briges_here(
        'depth', kitti / 'image' / '000041.jpg', '--camera', camera, '-o', tmp_path
    )
    assert_one_line_error(result, 'camera.yaml')


def test_sparse_depth_of_another_size(briges_here, bundle, kitti, tmp_path):
    np.save(tmp_path / 'sparse.npy', np.ones((10, 10), np.float32))
    result = briges_here(
        'depth',
        kitti / 'image' / '000041.jpg',
        '--sparse-depth',
        tmp_path / 'sparse.npy',
        '-o',
        tmp_path,
    )
    assert_one_line_error(result, '(10, 10)')


def test_an_archive_for_an_array(briges_here, bundle, kitti, tmp_path):
    np.savez(tmp_path / 'sparse.npz', depth=np.ones((375, 1242), np.float32))
    (tmp_path / 'sparse.npz').rename(tmp_path / 'sparse.npy')
    sparse = tmp_path / 'sparse.npy'
    result = briges_here(
        'depth', kitti / 'image' / '000041.jpg', '--sparse-depth', sparse, '-o', tmp_path
    )
    assert_one_line_error(result, 'sparse.npy', 'numpy.save')


def test_extrinsics_that_are_no_pose(briges_here, bundle, kitti, tmp_path):
    calibration = json.loads((kitti / 'calibration.json').read_text())
    calibration['T_camera_lidar'] = (2 * np.eye(4)).tolist()
    camera = tmp_path / 'camera.json'
    camera.write_text(json.dumps(calibration))
    image = kitti / 'image' / '000041.jpg'
    result = briges_here('depth', image, '--camera', camera, '-o', tmp_path)
    assert_one_line_error(result, 'camera.json', 'rigid')


def test_images_of_one_name_do_not_overwrite_each_other(briges_here, bundle, kitti, tmp_path):
    image = kitti / 'image' / '000041.jpg'
    assert_one_line_error(briges_here('depth', image, image, '-o', tmp_path), 'same name')
    assert not list(tmp_path.iterdir())


def test_an_image_of_one_pixel(briges_here, bundle, tmp_path):
    cv2.imwrite(str(tmp_path / 'one.png'), np.full((1, 1, 3), 128, np.uint8))
    result = briges_here('depth', tmp_path / 'one.png', '-o', tmp_path)
    assert result.returncode == 0, result.stderr
    assert np.load(tmp_path / 'one_depth.npy').shape == (1, 1)


def test_everything_beyond_range(briges_here, bundle, kitti, tmp_path):
    result = briges_here(
        'depth',
        kitti / 'image' / '000041.jpg',
        '--camera',
        kitti / 'calibration.json',
        '--points',
        kitti / 'lidar' / '000041.npy',
        '--max-range',
        0.2,
        '-o',
        tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert not np.isfinite(np.load(tmp_path / '000041_depth.npy')).any()


def test_one_bad_image_does_not_stop_the_others(bundle, kitti, tmp_path):
    result = briges('depth', 'nosuch.jpg', kitti / 'image' / '000041.jpg', '-o', tmp_path)
    assert result.returncode == 2
    assert 'nosuch.jpg' in result.stderr and '1 of 2 images failed' in result.stderr
    assert (tmp_path / '000041_depth.npy').is_file()


@pytest.mark.parametrize('command', [[], ['depth'], ['export'], ['train'], ['demo'], ['models']])
def test_help_teaches(briges_here, command):
    result = briges_here(*command, '--help')
    assert result.returncode == 0 and 'Usage' in result.stdout


def test_models_and_check(bundle):
    assert 'compact' in briges('models').stdout
    result = briges('check')
    assert result.returncode == 0 and 'passed' in result.stdout


@pytest.mark.parametrize(
    'arguments',
    [['depth'], ['nosuch'], ['depth', 'x.jpg'], ['depth', 'x.jpg', '-o', 'y', '--max-range', '0']],
)
def test_wrong_usage_is_one_line_too(arguments):
    assert_one_line_error(briges(*arguments), 'briges --help')


def test_no_arguments_show_the_help():
    result = briges()
    assert result.returncode == 0 and 'Usage' in result.stdout


@pytest.mark.parametrize(('option', 'shape'), [('--points', (0, 3)), ('--sparse-depth', None)])
def test_a_sensor_that_saw_nothing(briges_here, bundle, kitti, tmp_path, option, shape):
    empty = np.full(shape or (375, 1242), np.nan, np.float32)
    np.save(tmp_path / 'empty.npy', empty)
    result = briges_here(
        'depth',
        kitti / 'image' / '000041.jpg',
        '--camera',
        kitti / 'calibration.json',
        option,
        tmp_path / 'empty.npy',
        '-o',
        tmp_path,
    )
    assert_one_line_error(result, 'empty.npy', 'at all')
