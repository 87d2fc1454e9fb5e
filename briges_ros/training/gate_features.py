"""Views of training frames as the gates see them: features of the frozen encoders.

What is frozen never changes, so its output is computed once for each of a few fixed views of every
frame and memory-mapped afterwards (`CachedViews`), or in every step where that would not fit on a
disk (`LiveViews`). Both give the same batches.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress
from torch import Tensor, nn

from briges_ros.errors import BrigesError
from briges_ros.inference.bundle import SegmentationInput
from briges_ros.inference.preprocess import IMAGENET_MEAN, IMAGENET_STD, network_input
from briges_ros.network.briges import LEVELS, Briges, state_sha256
from briges_ros.training.augment import paste_objects, random_crop, random_light, shrink_inverse
from briges_ros.training.checkpoint import write_whole
from briges_ros.training.datasets import Dataset, Sample, frames_sha256
from briges_ros.training.gate_config import PATCH

LAYOUT = 1  # of the cached files and of how views are made; a change makes old caches useless
CHUNK = 8  # views between two flushes
FREE_SPACE = 1 << 30  # bytes that a cache leaves on its disk

T = TypeVar('T')
U = TypeVar('U')


@dataclass(frozen=True)
class ViewSettings:
    """How views are made of frames.

    Attributes:
        width, height: of the depth encoder's input, multiples of 14.
        views: augmented views per frame; 0 = the plain frame, for scoring.
        smallest_crop: side of the smallest random crop, relative to the largest that fits.
        paste: share of the views before which objects of another frame are put.
        seed: of everything random.
    """

    width: int
    height: int
    views: int = 0
    smallest_crop: float = 1.0
    paste: float = 0.0
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Batch:
    """What one step of training takes.

    Attributes:
        levels: four maps (B, d, h, w).
        segmentation: (B, C, hs, ws); None for a network without gates.
        inverse: (B, H', W') true 1/z in 1/m at the decoder's resolution, NaN = unknown.
    """

    levels: list[Tensor]
    segmentation: Tensor | None
    inverse: Tensor


@dataclass(frozen=True)
class Pick:
    """One view of a frame, and the frame whose segmentation goes with it (None = blank)."""

    frame: int
    view: int
    segmentation_of: int | None


class Views(Protocol):
    """Views of a data set.

    `load` reads from disk and may run in a thread; `encode` works on the device.
    """

    @property
    def source(self) -> ViewSource: ...

    def load(self, picks: list[Pick]) -> Any: ...

    def encode(self, loaded: Any) -> Batch: ...


class ViewSource:
    """Makes views and their features.

    Args:
        name: of the data set, for people.
        dataset: the frames.
        settings: how views are made.
        network: whose encoders are run.
        segmentation_input: of its segmentation encoder; None if it has none.
        device: where it lies.
    """

    def __init__(
        self,
        name: str,
        dataset: Dataset,
        settings: ViewSettings,
        network: Briges,
        segmentation_input: SegmentationInput | None,
        device: torch.device,
    ) -> None:
        self.name = name
        self.dataset = dataset
        self.settings = settings
        self.network = network
        self.segmentation_input = segmentation_input
        self.device = device
        rows, columns = settings.height // PATCH, settings.width // PATCH
        self.segmentation_size = (
            None if segmentation_input is None else segmentation_input.pixels(columns, rows)
        )
        with torch.no_grad():
            levels = self.depth_features(torch.zeros(1, 3, settings.height, settings.width))
            self.output_size = tuple(network.decoder(levels).shape[2:])
            self.level_shape = tuple(levels[0].shape[1:])
            self.segmentation_shape: tuple[int, ...] | None = None
            if self.segmentation_size is not None:
                width, height = self.segmentation_size
                features = self.segmentation_features(torch.zeros(1, 3, height, width))
                self.segmentation_shape = tuple(features.shape[1:])

    def view(self, frame: int, view: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """One view: image (h, w, 3) uint8 at the resolution of its frame, and inverse depth."""
        return self._augmented(self.dataset[frame], frame, view)

    def _augmented(
        self, sample: Sample, frame: int, view: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        settings = self.settings
        if not settings.views:
            return sample.image, sample.inverse
        rng = np.random.default_rng([settings.seed, frame, view])
        if settings.paste and rng.random() < settings.paste:
            donor = self.dataset[int(rng.integers(len(self.dataset)))]
            sample = paste_objects(sample, donor, rng)
        aspect = settings.width / settings.height
        image, inverse = random_crop(sample, aspect, settings.smallest_crop, rng)
        return random_light(image, rng), inverse

    def depth_image(self, image: NDArray[np.uint8]) -> Tensor:
        """A view as the depth encoder takes it, (1, 3, H, W)."""
        size = self.settings.width, self.settings.height
        return torch.from_numpy(network_input(image, *size, IMAGENET_MEAN, IMAGENET_STD))

    def segmentation_image(self, image: NDArray[np.uint8]) -> Tensor:
        """A view as the segmentation encoder takes it, (1, 3, Hs, Ws)."""
        assert self.segmentation_input is not None and self.segmentation_size is not None
        wanted = self.segmentation_input
        return torch.from_numpy(
            network_input(image, *self.segmentation_size, wanted.mean, wanted.std)
        )

    def label(self, inverse: NDArray[np.float32]) -> NDArray[np.float32]:
        """Inverse depth of a view at the decoder's resolution."""
        height, width = self.output_size
        if inverse.shape[0] >= height and inverse.shape[1] >= width:
            return shrink_inverse(np.ascontiguousarray(inverse), width, height)
        resized: NDArray[np.float32] = cv2.resize(
            np.ascontiguousarray(inverse), (width, height), interpolation=cv2.INTER_NEAREST
        )
        return resized

    def depth_features(self, image: Tensor) -> list[Tensor]:
        """(B, 3, H, W) on any device -> four maps on ours."""
        levels: list[Tensor] = self.network.depth_encoder(image.to(self.device))
        assert len(levels) == LEVELS
        return levels

    def segmentation_features(self, image: Tensor) -> Tensor:
        """(B, 3, Hs, Ws) on any device -> one map on ours."""
        assert self.network.segmentation_encoder is not None
        return self.network.segmentation_encoder(image.to(self.device))


class LiveViews:
    """Views whose features are computed when they are needed; every visit is a new view."""

    def __init__(self, source: ViewSource) -> None:
        self.source = source

    def load(self, picks: list[Pick]) -> tuple[Tensor, Tensor | None, Tensor]:
        """Images of both encoders (B, 3, ...), and inverse depth."""
        source = self.source
        views = [source.view(pick.frame, pick.view) for pick in picks]
        segmentation = None
        if source.segmentation_size is not None and picks[0].segmentation_of is not None:
            segmentation = torch.cat(
                [
                    source.segmentation_image(
                        image
                        if pick.segmentation_of == pick.frame
                        else source.view(pick.segmentation_of or 0, pick.view)[0]
                    )
                    for pick, (image, _) in zip(picks, views, strict=True)
                ]
            )
        return (
            torch.cat([source.depth_image(image) for image, _ in views]),
            segmentation,
            torch.from_numpy(np.stack([source.label(inverse) for _, inverse in views])),
        )

    @torch.no_grad()
    def encode(self, loaded: tuple[Tensor, Tensor | None, Tensor]) -> Batch:
        """Run the encoders."""
        image, segmentation_image, inverse = loaded
        source = self.source
        segmentation = None
        if segmentation_image is not None:
            segmentation = source.segmentation_features(segmentation_image)
        elif source.segmentation_shape is not None:
            shape = (len(image), *source.segmentation_shape)
            segmentation = torch.zeros(shape, device=source.device)
        levels = source.depth_features(image)
        return Batch(levels, segmentation, inverse.to(source.device))


class CachedViews:
    """Views whose features lie on disk, in float16.

    Maps have their channels last there, as the gates (linear layers) and the decoder (convolutions)
    read them without copying.

    Args:
        source: makes the views.
        folder: of this cache alone.
        arrays: see `_shapes`.
    """

    def __init__(
        self, source: ViewSource, folder: Path, arrays: dict[str, NDArray[np.float16]]
    ) -> None:
        self.source = source
        self.folder = folder
        self._arrays = arrays

    def load(self, picks: list[Pick]) -> dict[str, Tensor]:
        """Float16 tensors of the views."""
        per_frame = max(1, self.source.settings.views)
        found = {'levels': [], 'segmentation': [], 'inverse': []}  # type: dict[str, list[Any]]
        for pick in picks:
            view = pick.view % per_frame
            for kind in ('levels', 'inverse'):
                found[kind].append(self._arrays[kind][pick.frame * per_frame + view])
            if 'segmentation' in self._arrays and pick.segmentation_of is not None:
                other = pick.segmentation_of * per_frame + view
                found['segmentation'].append(self._arrays['segmentation'][other])
        return {kind: torch.from_numpy(np.stack(maps)) for kind, maps in found.items() if maps}

    def encode(self, loaded: dict[str, Tensor]) -> Batch:
        """Float32 tensors on the device."""
        device = self.source.device
        maps = loaded['levels'].to(device).float().permute(1, 0, 4, 2, 3)
        segmentation = None
        if 'segmentation' in loaded:
            segmentation = loaded['segmentation'].to(device).float().permute(0, 3, 1, 2)
        elif self.source.segmentation_shape is not None:
            shape = (len(loaded['inverse']), *self.source.segmentation_shape)
            segmentation = torch.zeros(shape, device=device)
        return Batch(list(maps), segmentation, loaded['inverse'].to(device).float())


def cache_key(source: ViewSource, encoders: dict[str, str]) -> dict[str, Any]:
    """All that cached features depend on.

    Args:
        source: makes them.
        encoders: sha256 of each frozen encoder's state.
    """
    wanted = source.segmentation_input
    return {
        'layout': LAYOUT,
        'encoders': encoders,
        'settings': asdict(source.settings),
        'segmentation_input': None if wanted is None else asdict(wanted),
        'shapes': {kind: list(shape) for kind, shape in _shapes(source).items()},
        'data': frames_sha256(source.dataset),
    }


def _shapes(source: ViewSource) -> dict[str, tuple[int, ...]]:
    count = len(source.dataset) * max(1, source.settings.views)
    d, h, w = source.level_shape
    shapes: dict[str, tuple[int, ...]] = {'levels': (count, LEVELS, h, w, d)}
    if source.segmentation_shape is not None:
        channels, rows, cols = source.segmentation_shape
        shapes['segmentation'] = (count, rows, cols, channels)
    shapes['inverse'] = (count, *source.output_size)
    return shapes


def encoder_hashes(network: Briges) -> dict[str, str]:
    """Sha256 of the state of each part that features depend on."""
    parts: dict[str, nn.Module | None] = {
        'depth_encoder': network.depth_encoder,
        'segmentation_encoder': network.segmentation_encoder,
    }
    return {name: state_sha256(part) for name, part in parts.items() if part is not None}


def cached_views(
    source: ViewSource,
    folder: Path,
    encoders: dict[str, str],
    progress: Progress,
    build: bool = True,
) -> CachedViews:
    """Open the cache of some views, after computing what is missing of it.

    Killed at any moment, it goes on at the next call with the chunk that was not finished. Several
    experiments may share a folder: one computes, the others wait for it.

    Args:
        source: makes the views.
        folder: of all caches.
        encoders: see `encoder_hashes`.
        progress: shows how far it is.
        build: False only opens what another process has made.

    Raises:
        BrigesError: the disk is too small, or a feature is beyond float16.
    """
    key = cache_key(source, encoders)
    text = json.dumps(key, indent=2, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    place = folder / f'{source.name}-{digest[:16]}'
    shapes = _shapes(source)
    if build:
        place.mkdir(parents=True, exist_ok=True)
        with _locked(place / 'lock'):
            write_whole(place / 'key.json', text + '\n')
            _fill(source, place, shapes, progress)
    arrays = {kind: np.load(place / f'{kind}.npy', mmap_mode='r') for kind in shapes}
    return CachedViews(source, place, arrays)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Wait until no other process holds the lock; a process that dies lets go of it."""
    with path.open('w') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fill(
    source: ViewSource, place: Path, shapes: dict[str, tuple[int, ...]], progress: Progress
) -> None:
    count = shapes['levels'][0]
    done_file = place / 'done'
    done = int(done_file.read_text()) if done_file.exists() else 0
    if done == count:
        return
    if not done:
        needed = sum(2 * int(np.prod(shape)) for shape in shapes.values())
        free = shutil.disk_usage(place).free
        if needed + FREE_SPACE > free:
            raise BrigesError(
                f'the features of {source.name} need {needed / 1e9:.1f} GB and {place} has '
                f'{free / 1e9:.1f} GB left; set cache_folder to another disk, fewer views, or '
                'cache: false'
            )
    arrays = {
        kind: np.lib.format.open_memmap(
            place / f'{kind}.npy', mode='r+' if done else 'w+', dtype=np.float16, shape=shape
        )
        for kind, shape in shapes.items()
    }
    live = LiveViews(source)
    per_frame = max(1, source.settings.views)

    def load(start: int) -> tuple[int, Any]:
        numbers = [divmod(i, per_frame) for i in range(start, min(start + CHUNK, count))]
        return start, live.load([Pick(frame, view, frame) for frame, view in numbers])

    task = progress.add_task(f'features of {source.name}', total=count, completed=done)
    for start, loaded in prefetched(load, range(done, count, CHUNK)):
        batch = live.encode(loaded)
        end = start + len(batch.inverse)
        arrays['levels'][start:end] = _half(torch.stack(batch.levels, 1).movedim(2, -1), source)
        if batch.segmentation is not None:
            arrays['segmentation'][start:end] = _half(batch.segmentation.movedim(1, -1), source)
        arrays['inverse'][start:end] = batch.inverse.half().cpu().numpy()
        for array in arrays.values():
            array.flush()
        write_whole(done_file, str(end))
        progress.update(task, completed=end)
    progress.remove_task(task)


def _half(maps: Tensor, source: ViewSource) -> NDArray[np.float16]:
    half = maps.half()
    if not torch.isfinite(half).all():
        raise BrigesError(
            f'features of {source.name} are beyond float16 or not finite; set cache: false'
        )
    return half.cpu().numpy()


def prefetched(
    load: Callable[[T], U], items: Iterable[T], workers: int = 2, ahead: int = 4
) -> Generator[U, None, None]:
    """``map(load, items)``, read ahead by threads: the device works while the disk is read."""
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[U]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(load, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
