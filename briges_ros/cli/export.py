"""`briges export`: trained weights to a model bundle."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console

from briges_ros.errors import BrigesError
from briges_ros.inference.bundle import checkout_models, model_folders, user_models

WEIGHTS = 'weights.safetensors'


def run(model: str, output: Path | None) -> None:
    """Export one of our models.

    Raises:
        BrigesError: unknown model, torch is missing, or the weights are.
    """
    if model != 'compact':
        raise BrigesError(f'unknown model {model!r}; there is: compact')
    weights = _find_weights(model)
    folder = output or (checkout_models() or user_models()) / model
    try:
        from briges_ros.network.export import export_compact
    except ImportError as error:
        raise BrigesError(
            f'export needs {error.name}; run: pip install "briges_ros[export]"'
        ) from error
    start = time.monotonic()
    with Console(stderr=True).status(f'exporting {model} to {folder}'):
        export_compact(weights, folder)
    print(f'{folder}: exported in {time.monotonic() - start:.0f} s')


def _find_weights(model: str) -> Path:
    for folder in model_folders():
        path = folder / model / WEIGHTS
        if path.is_file():
            return path
    raise BrigesError(
        f'no {model}/{WEIGHTS} in {", ".join(map(str, model_folders()))}; '
        'it comes with the source checkout'
    )
