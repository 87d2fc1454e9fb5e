"""Every encoding of an image to RGB: against OpenCV, and against the picture it was made of."""

from __future__ import annotations

import sys
import tracemalloc
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from harness import header, image_message, padded
from hypothesis import given, settings
from hypothesis import strategies as st
from sensor_msgs.msg import CompressedImage, Image

from briges_ros.errors import BrigesError
from briges_ros.image_file import decode, picture_size
from briges_ros.ros.conversions import MessageError
from briges_ros.ros.image_encodings import compressed_to_rgb, image_to_rgb

WIDTH, HEIGHT = 64, 48


def smooth_picture() -> np.ndarray:
    """Colours that change slowly, so that what shares or interpolates them loses little."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(float)
    channels = [
        130 + 90 * np.sin(x / 19 + 1),
        120 + 70 * np.cos(y / 15),
        110 + 60 * np.sin((x + y) / 23),
    ]
    return np.stack(channels, -1).round().astype(np.uint8)


RGB = smooth_picture()
BAYER = ('rggb', 'bggr', 'gbrg', 'grbg')
COLOURS = {
    'rgb': RGB,
    'bgr': RGB[..., ::-1],
    'rgba': np.dstack([RGB, RGB[..., 0]]),
    'bgra': np.dstack([RGB[..., ::-1], RGB[..., 0]]),
    'mono': RGB[..., :1],
}


def mosaic(pattern: str) -> np.ndarray:
    """(H, W) of which the pixels of the top left corner show what the pattern names, row by row."""
    out = np.empty((HEIGHT, WIDTH), np.uint8)
    for index, colour in enumerate(pattern):
        row, column = divmod(index, 2)
        out[row::2, column::2] = RGB[row::2, column::2, 'rgb'.index(colour)]
    return out


def yuv() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(H, W) uint8 each: Y, Cb, Cr of ITU-R BT.601, Y from 16 to 235."""
    r, g, b = RGB.astype(float).transpose(2, 0, 1) / 255
    y = 0.299 * r + 0.587 * g + 0.114 * b
    planes = 16 + 219 * y, 128 + 224 * (b - y) / 1.772, 128 + 224 * (r - y) / 1.402
    return tuple(plane.round().astype(np.uint8) for plane in planes)


def packed_422(order: str) -> np.ndarray:
    """(H, W, 2): pairs of pixels as four bytes in the order of the letters y, u, v."""
    y, u, v = yuv()
    pairs = {'y': iter((y[:, ::2], y[:, 1::2])), 'u': iter((u[:, ::2],)), 'v': iter((v[:, ::2],))}
    return np.stack([next(pairs[letter]) for letter in order], -1).reshape(HEIGHT, WIDTH, 2)


def planes(shared: int, order: str) -> np.ndarray:
    """(rows, W): the rows of Y, then those of the colours as they follow each other."""
    y, u, v = (plane.reshape(-1, WIDTH) for plane in yuv())
    pair = {'u': u[::shared, ::shared], 'v': v[::shared, ::shared]}
    return np.vstack([y, np.stack([pair[letter] for letter in order], -1).reshape(-1, WIDTH)])


def planar_message(encoding: str, pixels: np.ndarray) -> Image:
    message = image_message(pixels, 1.0, encoding)
    message.height = HEIGHT
    return message


def distance(rgb: np.ndarray, expected: np.ndarray = RGB) -> int:
    assert rgb.dtype == np.uint8
    assert rgb.shape == expected.shape
    assert rgb.flags.c_contiguous
    return int(np.abs(rgb.astype(int) - expected).max())


padding = pytest.mark.parametrize('padding', [0, 5])
order = pytest.mark.parametrize('order', ['<', '>'])


def wide(values: np.ndarray, order: str) -> np.ndarray:
    """Values of 16 bits that have these as their high bytes, and something else below."""
    return (values.astype(np.uint16) * 256 + 37).astype(f'{order}u2')


@padding
@order
@pytest.mark.parametrize('name', COLOURS)
@pytest.mark.parametrize('bits', [8, 16])
def test_channels(name: str, bits: int, order: str, padding: int) -> None:
    pixels = COLOURS[name] if bits == 8 else wide(COLOURS[name], order)
    message = image_message(np.ascontiguousarray(pixels), 1.0, f'{name}{bits}')
    message.is_bigendian = int(order == '>')
    rgb = image_to_rgb(padded(message, padding))
    assert distance(rgb, np.repeat(RGB[..., :1], 3, 2) if name == 'mono' else RGB) == 0


@padding
@pytest.mark.parametrize('pattern', BAYER)
def test_bayer(pattern: str, padding: int) -> None:
    pixels = mosaic(pattern)
    rgb = image_to_rgb(padded(image_message(pixels, 1.0, f'bayer_{pattern}8'), padding))
    # OpenCV's newer names follow those of ROS.
    assert (
        distance(rgb, cv2.cvtColor(pixels, getattr(cv2, f'COLOR_Bayer{pattern.upper()}2RGB'))) == 0
    )
    # Its border is copied from the inside.
    assert distance(rgb[2:-2, 2:-2].copy(), RGB[2:-2, 2:-2]) <= 3


@padding
@order
@pytest.mark.parametrize('pattern', BAYER)
def test_bayer_of_16_bits(pattern: str, order: str, padding: int) -> None:
    pixels = wide(mosaic(pattern), order)
    message = image_message(pixels, 1.0, f'bayer_{pattern}16')
    message.is_bigendian = int(order == '>')
    rgb = image_to_rgb(padded(message, padding))
    code = getattr(cv2, f'COLOR_Bayer{pattern.upper()}2RGB')
    expected = cv2.cvtColor(pixels.astype(np.uint16), code) >> 8
    assert distance(rgb, expected) <= 1


@padding
@pytest.mark.parametrize(
    ('encoding', 'order', 'code'),
    [
        ('uyvy', 'uyvy', cv2.COLOR_YUV2RGB_UYVY),
        ('yuv422', 'uyvy', cv2.COLOR_YUV2RGB_UYVY),
        ('yuyv', 'yuyv', cv2.COLOR_YUV2RGB_YUYV),
        ('yuv422_yuy2', 'yuyv', cv2.COLOR_YUV2RGB_YUYV),
    ],
)
def test_yuv_422(encoding: str, order: str, code: int, padding: int) -> None:
    pixels = packed_422(order)
    rgb = image_to_rgb(padded(image_message(pixels, 1.0, encoding), padding))
    assert distance(rgb, cv2.cvtColor(pixels, code)) == 0
    assert distance(rgb) <= 6


@padding
@pytest.mark.parametrize(
    ('encoding', 'order', 'code'),
    [('nv12', 'uv', cv2.COLOR_YUV2RGB_NV12), ('nv21', 'vu', cv2.COLOR_YUV2RGB_NV21)],
)
def test_semiplanar(encoding: str, order: str, code: int, padding: int) -> None:
    pixels = planes(2, order)
    rgb = image_to_rgb(padded(planar_message(encoding, pixels), padding))
    assert distance(rgb, cv2.cvtColor(pixels, code)) == 0
    assert distance(rgb) <= 8


@pytest.mark.parametrize('padding', [0, 6])
def test_nv24(padding: int) -> None:
    y, u, v = yuv()
    colours = np.stack([u, v], -1).reshape(HEIGHT, 2 * WIDTH)  # a row of them takes two of Y
    wider = np.pad(y, ((0, 0), (0, padding))), np.pad(colours, ((0, 0), (0, 2 * padding)))
    message = planar_message(
        'nv24', np.vstack([rows.reshape(-1, WIDTH + padding) for rows in wider])
    )
    message.width = WIDTH
    assert distance(image_to_rgb(message)) <= 3
    # What shares no colour agrees with OpenCV's conversion of the same that does.
    flat = np.repeat(np.repeat(planes(2, 'uv')[HEIGHT:].reshape(-1, WIDTH // 2, 2), 2, 0), 2, 1)
    shared = np.vstack([yuv()[0], flat.reshape(-1, WIDTH)])
    expected = cv2.cvtColor(planes(2, 'uv'), cv2.COLOR_YUV2RGB_NV12)
    assert distance(image_to_rgb(planar_message('nv24', shared)), expected) <= 1


def test_planes_whose_step_counts_them_all() -> None:
    message = planar_message('nv12', planes(2, 'uv'))
    expected = image_to_rgb(message)
    message.step = WIDTH * 3 // 2  # data / height
    np.testing.assert_array_equal(image_to_rgb(message), expected)


def test_rgb8_is_not_copied() -> None:
    message = image_message(RGB, 1.0)
    memory = np.frombuffer(message.data, np.uint8)
    assert np.shares_memory(image_to_rgb(message), memory)


# What cannot be used


@pytest.mark.parametrize(
    ('fields', 'says'),
    [
        ({'encoding': 'jpeg'}, "'jpeg' is not supported: publish one of rgb8, bgr8"),
        ({'encoding': ''}, "encoding '' is not supported"),
        ({'encoding': '8UC3'}, "'8UC3' does not say what the channels mean: publish bgr8"),
        ({'width': 0}, '0 x 48'),
        ({'height': 0}, '64 x 0'),
        ({'encoding': 'nv12', 'width': 0}, '0 x 48'),
        ({'step': 191}, 'takes 192'),
        ({'step': 193}, 'step \\* height is 9264'),
        ({'data': b''}, 'data holds 0 bytes'),
        ({'encoding': 'rgba8'}, 'takes 256'),
        ({'encoding': 'rgb16'}, 'takes 384'),
        ({'encoding': 'nv21'}, 'data holds 9216 bytes and step is 192, but .* take 72 rows of 64'),
        ({'encoding': 'uyvy', 'width': 63}, '63 x 48, but pixels of uyvy share .* cells of 2 x 1'),
        ({'encoding': 'nv12', 'height': 47}, '64 x 47, but pixels of nv12 .* cells of 2 x 2'),
        ({'height': 2**31}, 'data holds 9216 bytes'),
    ],
)
def test_bad_images_are_refused(fields: dict[str, object], says: str) -> None:
    message = image_message(RGB, 1.0)
    for name, value in fields.items():
        setattr(message, name, value)
    with pytest.raises(MessageError, match=says):
        image_to_rgb(message)


ENCODINGS = st.sampled_from(
    [
        *(f'{name}{bits}' for name in COLOURS for bits in (8, 16)),
        *(f'bayer_{pattern}{bits}' for pattern in BAYER for bits in (8, 16)),
        *('uyvy', 'yuv422', 'yuyv', 'yuv422_yuy2', 'nv12', 'nv21', 'nv24'),
        *('8UC3', '32FC1', 'yuv420', 'RGB8', 'rgb8 ', ''),
    ]
)
SIZES = st.integers(0, 9) | st.sampled_from([2**16, 2**31, 2**32 - 1])
# Bytes for a row and rows for an image as most encodings have them, or not.
FACTORS = st.sampled_from([1, 1.5, 2, 3, 4, 6, 8])


@settings(max_examples=500, deadline=None)
@given(
    encoding=ENCODINGS,
    width=SIZES,
    height=SIZES,
    bytes_=FACTORS,
    planes=st.sampled_from([1, 1, 1.5, 3]),
    padding=st.integers(-2, 4),
    surplus=st.sampled_from([0, 0, 0, -1, 7]),
    big=st.integers(0, 255),
)
def test_any_fields(
    encoding: str,
    width: int,
    height: int,
    bytes_: float,
    planes: float,
    padding: int,
    surplus: int,
    big: int,
) -> None:
    step = min(max(0, int(width * bytes_) + padding), 2**32 - 1)
    size = max(0, int(step * height * planes) + surplus)
    message = Image(encoding=encoding, width=width, height=height, step=step, is_bigendian=big)
    message.data = bytes(min(size, 1000))
    try:
        rgb = image_to_rgb(message)
    except MessageError as error:
        assert '\n' not in str(error)
    else:
        assert rgb.shape == (height, width, 3)
        assert rgb.dtype == np.uint8


def test_other_encodings_go_through_cv_bridge(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real one is not to be had here."""
    message = Image(header=header(1.0), height=2, width=3, encoding='vendor10', step=4)

    def convert(given: Image, encoding: str) -> np.ndarray:
        assert (given, encoding) == (message, 'rgb8')
        return convert.result()

    bridge = SimpleNamespace(CvBridge=lambda: SimpleNamespace(imgmsg_to_cv2=convert))
    monkeypatch.setitem(sys.modules, 'cv_bridge', bridge)
    convert.result = lambda: np.full((2, 3, 3), 7, np.uint8)
    assert (image_to_rgb(message) == 7).all()
    convert.result = lambda: np.zeros((2, 3), np.uint8)
    with pytest.raises(MessageError, match="'vendor10' is not supported"):
        image_to_rgb(message)

    def fail() -> None:
        raise RuntimeError('Unrecognized image encoding [vendor10]\nand more')

    convert.result = fail
    with pytest.raises(
        MessageError, match=r"cv_bridge: 'Unrecognized image encoding \[vendor10\]'\)$"
    ):
        image_to_rgb(message)


# Compressed


def compressed(pixels: np.ndarray, coding: str, name: str) -> CompressedImage:
    """As compressed_image_transport does it: OpenCV takes the last channel for red."""
    data = cv2.imencode(f'.{coding}', pixels)[1].tobytes()
    return CompressedImage(format=name, data=data)


@pytest.mark.parametrize(
    'name', ['', 'png', 'bgr8; png compressed bgr8', 'rgb8; png compressed bgr8', 'rgb8; png']
)
def test_png(name: str) -> None:
    assert distance(compressed_to_rgb(compressed(RGB[..., ::-1], 'png', name))) == 0


@pytest.mark.parametrize(
    'name', ['jpeg', 'jpg', 'bgr8; jpeg compressed bgr8', 'rgb8; jpeg compressed bgr8']
)
def test_jpeg(name: str) -> None:
    assert distance(compressed_to_rgb(compressed(RGB[..., ::-1], 'jpeg', name))) <= 8


def test_channels_compressed_in_the_other_order() -> None:
    message = compressed(RGB, 'png', 'rgb8; png compressed rgb8')
    assert distance(compressed_to_rgb(message)) == 0


@pytest.mark.parametrize('name', ['png', 'mono8; png compressed mono8'])
def test_grey_and_16_bits(name: str) -> None:
    grey = np.repeat(RGB[..., :1], 3, 2)
    assert distance(compressed_to_rgb(compressed(RGB[..., 0], 'png', name)), grey) == 0
    deep = wide(RGB[..., 0], '=')
    assert distance(compressed_to_rgb(compressed(deep, 'png', name)), grey) == 0


@pytest.mark.parametrize('pattern', BAYER)
@pytest.mark.parametrize('bits', [8, 16])
def test_compressed_mosaic(pattern: str, bits: int) -> None:
    pixels = mosaic(pattern)
    expected = image_to_rgb(image_message(pixels, 1.0, f'bayer_{pattern}8'))
    name = f'bayer_{pattern}{bits}; png compressed '
    pixels = pixels if bits == 8 else wide(pixels, '=')
    assert distance(compressed_to_rgb(compressed(pixels, 'png', name)), expected) == 0
    name = f'bayer_{pattern}{bits}; png compressed bgr8'  # colours were made before
    assert distance(compressed_to_rgb(compressed(RGB[..., ::-1], 'png', name))) == 0


def test_exif_does_not_turn_the_image() -> None:
    """A camera_info would not fit it."""
    jpeg = cv2.imencode('.jpg', RGB[..., ::-1])[1].tobytes()
    turned = b'Exif\0\0' + b'MM\0*\0\0\0\x08' + b'\0\x01' + b'\x01\x12\0\x03\0\0\0\x01\0\x06\0\0'
    segment = b'\xff\xe1' + (len(turned) + 6).to_bytes(2, 'big') + turned + b'\0\0\0\0'
    message = CompressedImage(format='jpeg', data=jpeg[:2] + segment + jpeg[2:])
    assert cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_COLOR).shape[0] == WIDTH
    assert distance(compressed_to_rgb(message)) <= 8


@pytest.mark.parametrize(
    ('data', 'says'),
    [
        (b'', 'is empty'),
        (b'no picture', "10 bytes of format 'jpeg' cannot be decoded"),
        (cv2.imencode('.bmp', RGB)[1].tobytes(), 'publish a complete JPEG or PNG'),
        (cv2.imencode('.png', RGB)[1].tobytes()[:-20], 'cannot be decoded: publish a complete'),
        (cv2.imencode('.jpg', RGB)[1].tobytes()[:-20], 'cannot be decoded: publish a complete'),
    ],
)
def test_bad_compressed_images_are_refused(data: bytes, says: str) -> None:
    with pytest.raises(MessageError, match=says):
        compressed_to_rgb(CompressedImage(format='jpeg', data=data))


@pytest.mark.parametrize('coding', ['jpg', 'png'])
def test_a_size_beyond_reason_is_refused_before_it_is_decoded(coding: str) -> None:
    data = cv2.imencode(f'.{coding}', np.zeros((0x0102, 0x0103, 3), np.uint8))[1].tobytes()
    old, new = ((0x0102, 0x0103), (0x8001, 0x8002))
    if coding == 'jpg':  # height, width
        marks = [b''.join(value.to_bytes(2, 'big') for value in size) for size in (old, new)]
    else:  # width, height
        marks = [b''.join(value.to_bytes(4, 'big') for value in size[::-1]) for size in (old, new)]
    assert data.count(marks[0]) == 1
    message = CompressedImage(format=coding, data=data.replace(*marks))
    with pytest.raises(MessageError, match='claims 32770 x 32769 pixels'):
        compressed_to_rgb(message)


@settings(max_examples=60, deadline=None)
@given(kept=st.floats(0, 0.999), coding=st.sampled_from(['jpg', 'png']))
def test_what_breaks_off_is_refused(kept: float, coding: str) -> None:
    """OpenCV would fill the rest with grey, which has a depth too."""
    whole = cv2.imencode(f'.{coding}', RGB)[1].tobytes()
    # The last chunk of a PNG is empty: without it all pixels are there.
    data = whole[: int(kept * (len(whole) - (12 if coding == 'png' else 0)))]
    with pytest.raises(MessageError):
        compressed_to_rgb(CompressedImage(format=coding, data=data))


@settings(max_examples=150, deadline=None)
@given(
    coding=st.sampled_from(['jpg', 'png']),
    name=st.sampled_from(['', 'jpeg', 'bayer_rggb8; jpeg compressed', ';', 'rgb8; compressed rgb']),
    flips=st.lists(st.tuples(st.floats(0, 0.999), st.integers(1, 255)), max_size=4),
)
def test_any_bytes(coding: str, name: str, flips: list[tuple[float, int]]) -> None:
    data = bytearray(cv2.imencode(f'.{coding}', RGB[:8, :8])[1].tobytes())
    for place, change in flips:
        data[int(place * len(data))] ^= change
    try:
        rgb = compressed_to_rgb(CompressedImage(format=name, data=bytes(data)))
    except MessageError:
        return
    assert rgb.ndim == 3
    assert rgb.shape[2] == 3
    assert rgb.dtype == np.uint8


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, 'big') + content


HEAD = b'\x08' + (9000).to_bytes(2, 'big') * 2 + b'\x01\x01\x11\x00'  # of a frame: its size
PIECES = {
    'jpg': st.sampled_from(
        [
            b'\xff',
            b'\xff\x00',
            b'\xff\x01',
            b'\xff\xd0',
            b'\xff\xd8',
            b'\xff\xd9',
            b'\x00',
            b'\x11',
            segment(254, HEAD),
            segment(254, segment(192, HEAD)),
            segment(192, HEAD),
            segment(225, b'\xff\xd8' + segment(192, HEAD)),
            segment(196, b''),
            b'\xff\xd0\x00\x08',
        ]
    ),
    'png': st.sampled_from(
        [
            b'\x00',
            b'\x00\x00\x00\x04tEXt',
            b'\x00\x00\x00\x04tEXta\x00bc\x0f\x93\x95\x86',
            b'\x00\x00\x00\x00IEND',
            b'\x00\x00\x00\rIHDR' + bytes([0, 0, 35, 40] * 2) + b'\x08\x02\x00\x00\x00',
        ]
    ),
}


@settings(max_examples=400, deadline=None)
@given(
    coding=st.sampled_from(['jpg', 'png']),
    data=st.data(),
    places=st.lists(st.sampled_from([2, 8, 20, 33, 37]) | st.integers(0, 200), max_size=3),
)
def test_the_size_that_is_checked_is_the_size_that_is_decoded(
    coding: str, data: st.DataObject, places: list[int]
) -> None:
    """Whatever stands in the head of a file, beside its size."""
    content = cv2.imencode(f'.{coding}', RGB[:8, :8])[1].tobytes()
    for place in places:
        content = content[:place] + data.draw(PIECES[coding]) + content[place:]
    try:
        pixels = decode(content, cv2.IMREAD_COLOR)
    except BrigesError:
        return
    height, width = pixels.shape[:2]
    assert picture_size(content) in (None, (width, height))


def test_a_size_cannot_hide_from_the_check() -> None:
    """No segment follows a restart marker: what it would skip is the head of a comment."""
    small = segment(0xC0, b'\x08' + (8).to_bytes(2, 'big') * 2 + b'\x01\x01\x11\x00')
    comment = segment(0xFE, small)
    whole = cv2.imencode('.jpg', RGB)[1].tobytes()
    trick = whole[:2] + b'\xff\xd0' + (2 + 4).to_bytes(2, 'big') + comment + whole[2:]
    assert cv2.imdecode(np.frombuffer(trick, np.uint8), cv2.IMREAD_COLOR).shape == RGB.shape
    assert picture_size(trick) in (None, (WIDTH, HEIGHT))


def test_a_jpeg_of_many_scans_is_refused() -> None:
    """Each of them takes the decoder as long as the whole image."""
    flags = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]
    content = cv2.imencode('.jpg', RGB, flags)[1].tobytes()
    assert compressed_to_rgb(CompressedImage(format='jpeg', data=content)).shape == RGB.shape
    scan = content[content.rindex(b'\xff\xda') : -2]
    bomb = content[:-2] + scan * 200 + content[-2:]
    with pytest.raises(MessageError, match='cannot be decoded'):
        compressed_to_rgb(CompressedImage(format='jpeg', data=bomb))


def test_a_picture_of_many_pixels_takes_no_memory() -> None:
    """A few bytes that claim gigabytes, which a decoder takes before it finds them missing."""
    data = cv2.imencode('.png', np.zeros((0x0102, 0x0103), np.uint8))[1].tobytes()
    old, new = (b''.join(n.to_bytes(4, 'big') for n in s) for s in ((0x0103, 0x0102), (60000,) * 2))
    message = CompressedImage(format='png', data=data.replace(old, new))
    tracemalloc.start()
    with pytest.raises(MessageError, match='claims 60000 x 60000 pixels'):
        compressed_to_rgb(message)
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()
