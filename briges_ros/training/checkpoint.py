"""What every trainer needs: settings that are checked, files that are whole, a schedule by step.

A checkpoint is a torch file read with ``weights_only``, so it can hold tensors and plain values and
nothing that executes.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from briges_ros.errors import BrigesError
from briges_ros.network.checkpoints import put_in_place


@dataclass(frozen=True)
class Range:
    """Values that a setting may have: what they are called, and whether one is among them."""

    name: str
    holds: Callable[[Any], bool]


# NaN is in none of them.
POSITIVE = Range('positive', lambda value: value > 0)
NOT_NEGATIVE = Range('at least 0', lambda value: value >= 0)
PART = Range('in (0, 1]', lambda value: 0 < value <= 1)
DECAY = Range('in [0, 1)', lambda value: 0 <= value < 1)


def require(settings: object, allowed: Range, *names: str) -> None:
    """Refuse settings that are out of range, for a dataclass's ``__post_init__``.

    Raises:
        ValueError: names the key, its value and what is allowed; whoever reads the settings from a
            file adds which (`briges_ros.training.gate_config.read_config`).
    """
    for name in names:
        value = getattr(settings, name)
        if not allowed.holds(value):
            raise ValueError(f'{name} must be {allowed.name}, not {value!r}')


def write_whole(path: Path, text: str) -> None:
    """Write a small file; killed on the way, it leaves the previous one whole."""
    partial = path.with_suffix('.partial')
    partial.write_text(text, encoding='utf-8')
    put_in_place(partial, path)


def save_checkpoint(path: Path, config: dict[str, Any], state: dict[str, Any]) -> None:
    """Write a checkpoint; one that is killed on the way leaves the previous one whole.

    Args:
        path: the file.
        config: the experiment's settings, which resuming compares.
        state: step, tensors, optimizer state and the like.
    """
    partial = path.with_suffix('.partial')
    torch.save({'config': config, **state}, partial)
    put_in_place(partial, path)


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
