"""What a network says of the frames of a benchmark, made once and kept."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from briges_ros import DepthPipeline
from briges_ros.inference.bundle import ModelBundle


class Predictions:
    """The network's output for images, from the cache or made.

    The cache is of one model and one backend: with other weights, it is made anew.

    Args:
        model: bundle: a name or a folder.
        backend: as for `DepthPipeline.load`.
        cache: folder for all models and backends.
    """

    def __init__(self, model: str, backend: str, cache: Path) -> None:
        self._model, self._backend = model, backend
        self._folder = cache / f'{ModelBundle.load(model).sha256[:16]}-{backend}'
        self._pipeline: DepthPipeline | None = None

    def __call__(self, name: str, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the (H, W) float32 relative inverse depth of a frame.

        Args:
            name: of the frame, the same for all benchmarks.
            image: (H, W, 3) uint8 RGB.
        """
        path = self._folder / f'{name}.npy'
        if not path.is_file():
            if self._pipeline is None:
                self._pipeline = DepthPipeline.load(self._model, self._backend)
            self._folder.mkdir(parents=True, exist_ok=True)
            np.save(path, self._pipeline(image).relative)
        return np.load(path)


def arguments(description: str) -> argparse.ArgumentParser:
    """Make a parser with what every benchmark on predictions takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('--model', default='compact', help='bundle: a name or a folder')
    parser.add_argument('--backend', default='auto')
    parser.add_argument('--data', type=Path, default=Path('../shared/data'))
    parser.add_argument('--cache', type=Path, default=Path('build/predictions'))
    parser.add_argument('--output', type=Path, help='JSON file to write')
    return parser
