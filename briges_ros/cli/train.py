"""`briges train`: train the compact model."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from briges_ros.errors import BrigesError


def run(model: str, data: Path, work: Path, config: Path | None, device: str | None) -> None:
    """Train, or go on training.

    Raises:
        BrigesError: unknown model or setting, missing data, or torch is missing.
    """
    if model != 'compact':
        raise BrigesError(f'unknown model {model!r}; there is: compact')
    try:
        from briges_ros.network.compose import WEIGHTS
        from briges_ros.network.skeleton import write_skeletons
        from briges_ros.training.trainer import TrainConfig, Trainer
    except ImportError as error:
        raise BrigesError(
            f'training needs {error.name}; run: pip install "briges_ros[train]"'
        ) from error
    values: dict[str, Any] = {}
    if config is not None:
        try:
            values = yaml.safe_load(config.read_text()) or {}
        except (OSError, yaml.YAMLError) as error:
            raise BrigesError(f'{config} cannot be read: {error}') from error
    known = {field.name for field in fields(TrainConfig)}
    if unknown := set(values) - known:
        raise BrigesError(f'{config}: unknown {sorted(unknown)}; known are {sorted(known)}')
    trainer = Trainer(TrainConfig(**values), data, work, device)
    score = trainer.train()
    release = work / 'release'
    release.mkdir(exist_ok=True)
    trainer.export_weights(
        release / WEIGHTS,
        {
            'held_out': 'NYUv2 frames 420-479, 900-959, 1380-1439',
            'abs_rel': f'{score.abs_rel:.4f}',
            'delta1': f'{score.delta1:.4f}',
        },
    )
    write_skeletons(release)
    print(
        f'{release}: affine-invariant AbsRel {score.abs_rel:.4f}, delta1 {score.delta1:.4f} '
        f'on {score.frames} held-out frames'
    )
