"""What every trainer needs to survive being killed: checkpoints, and a schedule by step.

A checkpoint is a torch file read with ``weights_only``, so it can hold tensors and plain values and
nothing that executes.
"""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from briges_ros.errors import BrigesError


def save_checkpoint(path: Path, config: dict[str, Any], state: dict[str, Any]) -> None:
    """Write a checkpoint; one that is killed on the way leaves the previous one whole.

    Args:
        path: the file.
        config: the experiment's settings, which resuming compares.
        state: step, tensors, optimizer state and the like.
    """
    partial = path.with_suffix('.partial')
    torch.save({'config': config, **state}, partial)
    partial.replace(path)


def load_checkpoint(
    path: Path, config: dict[str, Any], device: torch.device
) -> dict[str, Any] | None:
    """The state to go on from, or None if there is none yet.

    Raises:
        BrigesError: it belongs to other settings, or cannot be read.
    """
    if not path.exists():
        return None
    mend = 'give another work folder (--work) or delete it'
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        first = str(error).splitlines()[0]
        raise BrigesError(f'{path} is no checkpoint that can be read ({first}); {mend}') from error
    if state.get('config') != config:
        was = state.get('config') or {}
        differ = sorted(k for k in {*was, *config} if was.get(k) != config.get(k))
        raise BrigesError(f'{path} belongs to other settings ({", ".join(differ)}); {mend}')
    return state


def progress_bar(console: Console) -> Progress:
    """The bar that every trainer shows."""
    return Progress(
        TextColumn('{task.description}'),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def warm_cosine(step: int, warmup: int, total: int) -> float:
    """Share of the peak rate: linear warm-up, then half a cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))
