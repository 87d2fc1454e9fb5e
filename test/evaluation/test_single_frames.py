"""The reader of the single frames."""

import json

import cv2
import numpy as np
import pytest

from briges_ros.errors import BrigesError
from briges_ros.evaluation.frames import SingleFrames


@pytest.fixture
def folder(tmp_path):
    depth = np.full((6, 8), 1500, np.uint16)
    depth[0, 0] = 0
    image = np.zeros((6, 8, 3), np.uint8)
    image[..., 2] = 200  # BGR
    cv2.imwrite(str(tmp_path / 'a.png'), image)
    cv2.imwrite(str(tmp_path / 'a_depth.png'), depth)
    entry = {
        'id': 'a',
        'kind': 'rgbd',
        'rgb': 'a.png',
        'depth': 'a_depth.png',
        'depth_scale': 1000.0,
        'K_fx_fy_cx_cy': [7.0, 7.5, 4.0, 3.0],
    }
    write_meta(tmp_path, entry)
    return tmp_path


def write_meta(folder, *entries):
    (folder / 'meta.json').write_text(json.dumps(entries))


def test_a_frame(folder):
    frames = SingleFrames(folder)
    assert len(frames) == 1 and frames.names == ['a']
    frame = frames[0]
    assert frame.kind == 'rgbd' and frame.image[0, 0].tolist() == [200, 0, 0]
    assert np.isnan(frame.depth[0, 0]) and frame.depth[1, 1] == np.float32(1.5)
    assert frame.depth.dtype == np.float32
    assert frame.camera.K[1, 1] == 7.5 and frame.camera.width == 8


def as_jpeg(folder, thumbnail=b''):
    """Give frame a a noisy JPEG, its head with a thumbnail; return its path and content."""
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    pixels = cv2.imencode('.jpg', noise, [cv2.IMWRITE_JPEG_PROGRESSIVE, int(bool(thumbnail))])[1]
    content = pixels.tobytes()
    if thumbnail:
        segment = b'\xff\xe1' + (len(thumbnail) + 2).to_bytes(2, 'big') + thumbnail
        content = content[:2] + segment + b'\xff' + content[2:]  # with a fill byte
    path = folder / 'a.jpg'
    path.write_bytes(content)
    entry = json.loads((folder / 'meta.json').read_text())[0]
    write_meta(folder, {**entry, 'rgb': path.name})
    return path, content


@pytest.mark.parametrize('thumbnail', [b'', b'Exif' + 200 * b'\0' + b'\xff\xd8 \xff\xd9'])
def test_a_jpeg_that_breaks_off_is_not_taken_for_grey(folder, thumbnail):
    path, content = as_jpeg(folder, thumbnail)
    assert SingleFrames(folder)[0].image.std() > 10
    path.write_bytes(content + 2000 * b'\0')  # what some cameras append
    assert SingleFrames(folder)[0].image.std() > 10
    # In the head, behind the thumbnail, within the pixels, within the end marker.
    for left in (2, 4, len(thumbnail) + 8, len(content) - 40, len(content) - 2, len(content) - 1):
        path.write_bytes(content[:left])
        with pytest.raises(BrigesError, match=r'a\.jpg: the JPEG breaks off'):
            SingleFrames(folder)[0]


@pytest.mark.parametrize('part', ['a.png', 'a_depth.png'])
@pytest.mark.parametrize('share', [0.0, 0.5, 0.9])
def test_a_png_that_breaks_off_is_refused(folder, part, share):
    content = (folder / part).read_bytes()
    (folder / part).write_bytes(content[: int(share * len(content))])
    with pytest.raises(BrigesError, match=rf'{part}: missing or not an image'):
        SingleFrames(folder)[0]


def test_the_real_ones(data):
    frames = SingleFrames(data / 'frames')
    entries = json.loads((data / 'frames' / 'meta.json').read_text())
    assert len(frames) == len(entries)
    frame, entry = frames[3], entries[3]
    assert frame.kind == 'lidar' and frame.image.shape[1::-1] == tuple(entry['size_wh'])
    assert np.isfinite(frame.depth).mean() == pytest.approx(entry['valid'], abs=0.01)
    assert np.nanmedian(frame.depth) == pytest.approx(entry['median_m'], rel=0.01)


def test_what_is_wrong_is_named(folder, tmp_path):
    with pytest.raises(BrigesError, match='nowhere'):
        SingleFrames(tmp_path / 'nowhere')
    entry = json.loads((folder / 'meta.json').read_text())[0]
    for change, word in (
        ({'rgb': 'b.png'}, r'b\.png'),
        ({'depth': 'meta.json'}, r'meta\.json'),
        ({'depth_scale': 'x'}, 'frame a'),
        ({'K_fx_fy_cx_cy': [1, 2]}, 'frame a'),
    ):
        write_meta(folder, {**entry, **change})
        with pytest.raises(BrigesError, match=word):
            SingleFrames(folder)[0]
    write_meta(folder, {key: value for key, value in entry.items() if key != 'kind'})
    with pytest.raises(BrigesError, match='kind'):
        SingleFrames(folder)[0]
    cv2.imwrite(str(folder / 'a_depth.png'), np.ones((5, 8), np.uint16))
    write_meta(folder, entry)
    with pytest.raises(BrigesError, match=r'a_depth\.png'):
        SingleFrames(folder)[0]
    (folder / 'meta.json').write_text('[{"name": 1}]')
    with pytest.raises(BrigesError, match='id'):
        SingleFrames(folder)
