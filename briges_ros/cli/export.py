"""`briges export`: compose a model bundle from what ships and the published weights."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console

from briges_ros.errors import BrigesError
from briges_ros.inference.bundle import checkout_models, model_folders, user_models


def run(model: str, output: Path | None) -> None:
    """Export one of our models.

    Raises:
        BrigesError: unknown model, or a part of it is missing.
    """
    if model != 'compact':
        raise BrigesError(f'unknown model {model!r}; there is: compact')
    try:
        from briges_ros.network.compose import WEIGHTS, compose_compact
    except ImportError as error:
        raise BrigesError(
            f'export needs {error.name}; run: pip install "briges_ros[export]"'
        ) from error
    source = next((f / model for f in model_folders() if (f / model / WEIGHTS).is_file()), None)
    if source is None:
        raise BrigesError(
            f'no {model}/{WEIGHTS} in {", ".join(map(str, model_folders()))}; '
            'it comes with the source checkout'
        )
    folder = output or (checkout_models() or user_models()) / model
    start = time.monotonic()
    with Console(stderr=True).status(f'exporting {model} to {folder}'):
        try:
            compose_compact(source, folder)
        except OSError as error:
            raise BrigesError(
                f'{folder} cannot be written ({error.strerror}); give another folder with -o'
            ) from error
    print(f'{folder}: exported in {time.monotonic() - start:.0f} s')
