"""Augmented views with the frozen trunk's features, computed once and kept on disk.

The trunk never changes, so its output is computed once for each of a few fixed views of every
frame and memory-mapped afterwards. Interrupted, it goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress

from briges_ros.inference.preprocess import normalise
from briges_ros.network.compact import CompactDepth
from briges_ros.network.dinov2_weights import PATCH, WEIGHTS_SHA256, WIDTH
from briges_ros.training.augment import OUTPUT_STEP, random_view
from briges_ros.training.checkpoint import write_whole
from briges_ros.training.datasets import Dataset, Sample

CHUNK = 8  # views between two flushes


@dataclass(frozen=True)
class ViewGroup:
    """Views of one data set at one network size.

    Attributes:
        name: of the group; also names its files.
        width, height: network input in pixels, multiples of 14.
        views: augmented views per frame; 0 = the plain frame, for scoring.
        smallest_crop: see `random_view`.
        repeats: times that each frame is visited in an epoch.
    """

    name: str
    width: int
    height: int
    views: int
    smallest_crop: float = 0.55
    repeats: int = 1

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches."""
        return self.height // PATCH, self.width // PATCH


@dataclass(frozen=True, eq=False)
class CachedViews:
    """Memory-mapped views.

    Attributes:
        group: what they are views of.
        frames: number of frames; each has ``max(1, group.views)`` views.
        sharp: see `Dataset`: whether gradient matching makes sense.
        trunk: (N, 1 or 2, 1 + h w, 384), see `CompactDepth.trunk`.
        inverse: (N, 8 h, 8 w), 1/m.
    """

    group: ViewGroup
    frames: int
    sharp: bool
    trunk: NDArray[np.float16]
    inverse: NDArray[np.float16]

    def batch(self, frames: list[int], view: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Float32 tensors of the given views of the given frames."""
        per_frame = max(1, self.group.views)
        index = [f * per_frame + v % per_frame for f, v in zip(frames, view, strict=True)]
        trunk = torch.from_numpy(np.stack([self.trunk[i] for i in index])).float()
        inverse = torch.from_numpy(np.stack([self.inverse[i] for i in index])).float()
        return trunk, inverse


def cached_views(
    frames: Dataset,
    group: ViewGroup,
    model: CompactDepth,
    folder: Path,
    seed: int,
    progress: Progress,
    device: torch.device,
) -> CachedViews:
    """Open the cache of a group, computing what is missing of it."""
    content = asdict(group)
    del content['repeats']  # how views are used, not what they are
    first = model.first_adapted_block
    key = json.dumps([content, seed, len(frames), frames[0].name, WEIGHTS_SHA256, first])
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f'{group.name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}'
    per_frame = max(1, group.views)
    count = len(frames) * per_frame
    h, w = group.grid
    shapes = {
        'trunk': (count, 2 if first else 1, 1 + h * w, WIDTH),
        'inverse': (count, OUTPUT_STEP * h, OUTPUT_STEP * w),
    }
    done_file = stem.with_suffix('.done')
    done = int(done_file.read_text()) if done_file.exists() else 0
    maps = {
        kind: np.lib.format.open_memmap(
            stem.with_suffix(f'.{kind}.npy'),
            mode='r+' if done else 'w+',
            dtype=np.float16,
            shape=shape,
        )
        for kind, shape in shapes.items()
    }
    task = progress.add_task(f'features {group.name}', total=count, completed=done)
    sample: Sample | None = None
    for start in range(done, count, CHUNK):
        indices = range(start, min(start + CHUNK, count))
        images = []
        for i in indices:
            frame, view = divmod(i, per_frame)
            if sample is None or view == 0 or i == start:
                sample = frames[frame]
            rng = np.random.default_rng([seed, frame, view]) if group.views else None
            image, inverse = random_view(
                sample, group.width, group.height, group.smallest_crop, rng
            )
            images.append(normalise(image))
            maps['inverse'][i] = inverse
        batch = torch.from_numpy(np.concatenate(images)).to(device)
        with torch.no_grad():
            maps['trunk'][start : indices[-1] + 1] = model.trunk(batch).half().cpu().numpy()
        if (start // CHUNK) % 32 == 31 or indices[-1] + 1 == count:
            for array in maps.values():
                array.flush()
            write_whole(done_file, str(indices[-1] + 1))
        progress.update(task, completed=indices[-1] + 1)
    return CachedViews(group, len(frames), frames.sharp, maps['trunk'], maps['inverse'])
