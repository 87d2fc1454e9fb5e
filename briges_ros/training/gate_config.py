"""One experiment of gate training: what its YAML file may say, and reading it.

The same reader serves every trainer's settings: `read_config` fills any dataclass from a YAML file,
and whatever does not fit is refused with the file and the key.
"""

from __future__ import annotations

import types
import typing
from dataclasses import dataclass, field, fields, is_dataclass, replace
from os.path import normpath
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from briges_ros.errors import BrigesError
from briges_ros.training.losses import GateLoss

T = TypeVar('T')

PATCH = 14  # pixels along a patch's side of every depth encoder that we have


@dataclass(frozen=True, kw_only=True)
class FramesConfig:
    """Some frames of a data set.

    Attributes:
        kind: one of `briges_ros.training.datasets.DATASETS`.
        root: its folder, below the folder of all data unless it is absolute.
        split: 'train' or 'held_out'.
        frames: (first, behind the last) of the split's frames, to set some apart; None = all.
        size: (width, height) of the depth network's input, multiples of 14; None = that of the
            experiment.
    """

    kind: str
    root: str
    split: Literal['train', 'held_out'] = 'train'
    frames: tuple[int, int] | None = None
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.frames is not None:
            _require(0 <= self.frames[0] < self.frames[1], 'frames must be [first, behind last]')
        if self.size is not None:
            _require_size(self.size)

    def overlaps(self, other: FramesConfig) -> bool:
        """Whether both may hold the same frame.

        Roots are compared as they are spelt, but for ``.``, ``..`` and needless slashes; see
        `GateConfig.located` for links and absolute paths. Of two kinds in one folder nothing is
        known, so they may.
        """
        if normpath(self.root) != normpath(other.root):
            return False
        if self.kind != other.kind:
            return True
        if self.split != other.split:
            return False
        if self.frames is None or other.frames is None:
            return True
        return self.frames[0] < other.frames[1] and other.frames[0] < self.frames[1]


Frames = TypeVar('Frames', bound=FramesConfig)


@dataclass(frozen=True, kw_only=True)
class TrainingFrames(FramesConfig):
    """Frames to train on.

    Attributes:
        repeats: times that each frame is visited in an epoch.
        sharp: whether gradient matching is applied ("selective"); None = what the data set says.
        paste: share of the views before which objects of another frame are put.
    """

    repeats: int = 1
    sharp: bool | None = None
    paste: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.repeats > 0, 'repeats must be positive')
        _require(0 <= self.paste <= 1, 'paste must lie between 0 and 1')


@dataclass(frozen=True, kw_only=True)
class ScoringFrames(FramesConfig):
    """Frames to score on.

    Attributes:
        range_m: the data set's range, metres: outside it truth does not count, and depth is
            clamped to it.
        every: only every n-th frame.
    """

    range_m: tuple[float, float] = (1e-3, 10.0)
    every: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(0 < self.range_m[0] < self.range_m[1], 'range_m must be [nearest, farthest]')
        _require(self.every > 0, 'every must be positive')


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """One experiment.

    Attributes:
        depth: the frozen depth network. ``compact``: ours, out of ``models/compact/``; a
            .safetensors file: ours with those weights; else a published one, by its name or folder.
        segmentation: the frozen segmentation encoder, in the same way.
        gate: ``light`` (SAM with its neck, or ours) or ``paper`` (SAM before its neck, of the depth
            encoder's width).
        levels: which of the depth encoder's levels 0 to 3 get a gate.
        train: what is trained: the gates, or, for comparison, the decoder alone without any gate.
        segmentation_features: what the gates see. ``blank``: zeros; ``shuffled``: those of another
            frame. A gate trained with either has the same parameters, and no semantics.
        data: the frames to train on.
        validation: scored on the way, every `score_steps`. Not what is held out: a choice made by
            looking at those scores would spoil it.
        held_out: scored once, at the end.
        size: (width, height) of the depth network's input, multiples of 14.
        views: augmented views cached per frame; without a cache every visit is a new view.
        smallest_crop: side of the smallest random crop, relative to the largest that fits. With 1,
            a view is what "short side to size, then a random crop" gives.
        cache: keep the frozen features on disk. Without it they are computed in every step.
        cache_folder: where; empty: ``features/`` in the work folder. Experiments may share it.
        batch: frames in a batch, all processes together; all of one data set.
        accumulate: batches per step.
        steps: of the optimiser.
        lr: of AdamW.
        weight_decay: of AdamW.
        warmup_steps: linear warm-up.
        constant: share of the steps with the full rate; then it goes linearly to zero.
        clip: largest gradient norm.
        loss: see `briges_ros.training.losses.GateLoss`.
        ema: decay of the weights' moving average, which is what ships.
        precision: ``amp``: mixed precision on CUDA (bfloat16, or float16 with a gradient scaler
            where there is none).
        seed: of everything random.
        checkpoint_steps: steps between two checkpoints.
        score_steps: steps between two scores on `validation`.
        preview_steps: steps between two sets of preview images for TensorBoard; 0 = none.
    """

    data: tuple[TrainingFrames, ...]
    depth: str = 'compact'
    segmentation: str = 'compact'
    gate: Literal['light', 'paper'] = 'light'
    levels: tuple[int, ...] = (0, 1, 2, 3)
    train: Literal['gates', 'decoder'] = 'gates'
    segmentation_features: Literal['right', 'blank', 'shuffled'] = 'right'
    validation: ScoringFrames | None = None
    held_out: ScoringFrames | None = None
    size: tuple[int, int] = (392, 294)
    views: int = 4
    smallest_crop: float = 0.55
    cache: bool = True
    cache_folder: str = ''
    batch: int = 4
    accumulate: int = 1
    steps: int = 3000
    lr: float = 5e-5
    weight_decay: float = 1e-5
    warmup_steps: int = 0
    constant: float = 0.7
    clip: float = 1.0
    loss: GateLoss = field(default_factory=GateLoss)
    ema: float = 0.995
    precision: Literal['fp32', 'amp'] = 'fp32'
    seed: int = 0
    checkpoint_steps: int = 100
    score_steps: int = 500
    preview_steps: int = 500

    def __post_init__(self) -> None:
        _require_size(self.size)
        _require(len(self.data) > 0, 'data must name at least one data set')
        _require(
            len(self.levels) > 0 and len(set(self.levels)) == len(self.levels),
            'levels must name each level once',
        )
        _require(set(self.levels) <= {0, 1, 2, 3}, 'levels are 0 to 3')
        for name in ('views', 'batch', 'accumulate', 'steps', 'checkpoint_steps', 'score_steps'):
            _require(getattr(self, name) > 0, f'{name} must be positive')
        for name in ('lr', 'clip'):
            _require(getattr(self, name) > 0, f'{name} must be positive')
        for name in ('weight_decay', 'warmup_steps', 'seed', 'preview_steps'):
            _require(getattr(self, name) >= 0, f'{name} must not be negative')
        _require(0 < self.smallest_crop <= 1, 'smallest_crop must lie in (0, 1]')
        _require(0 <= self.constant <= 1, 'constant must lie between 0 and 1')
        _require(0 <= self.ema < 1, 'ema must lie in [0, 1)')
        for frames in self.data:
            _require(frames.split == 'train', f'data: {frames.kind} trains on held-out frames')
        if self.validation is not None:
            _require(
                self.validation.split == 'train',
                'validation must not be the held-out frames; set some of the others apart (frames)',
            )
            _require(
                not any(self.validation.overlaps(frames) for frames in self.data),
                'validation shares frames with data; give both their own frames: '
                '[first, behind last]',
            )
        if self.held_out is not None:
            _require(
                self.validation is None or not self.validation.overlaps(self.held_out),
                'validation shares frames with held_out; choices made by it would spoil that score',
            )
            _require(
                not any(self.held_out.overlaps(frames) for frames in self.data),
                'held_out shares frames with data',
            )

    def located(self, data: Path) -> GateConfig:
        """The same with real paths for roots: where the data sets are under a folder of all data.

        Raises:
            ValueError: so it turns out that `data`, `validation` and `held_out` share frames.
        """

        def real(frames: Frames) -> Frames:
            return replace(frames, root=str((data / frames.root).resolve()))

        return replace(
            self,
            data=tuple(real(frames) for frames in self.data),
            validation=self.validation and real(self.validation),
            held_out=self.held_out and real(self.held_out),
        )

    def learning_rate(self, step: int) -> float:
        """The rate of a step, counted from 0."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        flat = round(self.constant * self.steps)
        return self.lr * min(1.0, (self.steps - step) / max(1, self.steps - flat))


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)


def _require_size(size: tuple[int, int]) -> None:
    _require(
        all(pixels > 0 and pixels % PATCH == 0 for pixels in size),
        f'size must be multiples of {PATCH}, not {list(size)}',
    )


def read_config(cls: type[T], path: Path) -> T:
    """Settings from a YAML file.

    Args:
        cls: a dataclass with fields of plain types, literals, tuples and further dataclasses.
        path: the file; keys that it does not name keep their defaults.

    Raises:
        BrigesError: the file cannot be read, or a key is unknown, missing or has a wrong value.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BrigesError(f'{path} cannot be read: {error}') from error
    try:
        return _build(cls, {} if values is None else values, '')
    except ValueError as error:
        raise BrigesError(f'{path}: {error}') from error


def _build(cls: type[T], values: Any, where: str) -> T:
    if not isinstance(values, dict):
        raise ValueError(f'{where or "the file"} must hold keys and values, not {values!r}')
    hints = typing.get_type_hints(cls)
    known = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    prefix = f'{where}.' if where else ''
    for name in values:
        if name not in known:
            raise ValueError(f'unknown key {prefix}{name}; known are {", ".join(known)}')
    arguments = {
        name: _convert(hints[name], value, f'{prefix}{name}') for name, value in values.items()
    }
    try:
        return cls(**arguments)
    except TypeError as error:  # a key without a default is missing
        raise ValueError(f'{where or "the file"}: {str(error).partition(") ")[2]}') from error
    except ValueError as error:
        raise ValueError(f'{prefix}{error}' if where else str(error)) from error


def _convert(hint: Any, value: Any, where: str) -> Any:
    """A YAML value as the type of its field."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, where)
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f'{where} must be one of {", ".join(arguments)}, not {value!r}')
        return value
    if origin is tuple:
        any_length = arguments[-1] is Ellipsis
        if not isinstance(value, list) or not (any_length or len(value) == len(arguments)):
            wanted = '' if any_length else f' of {len(arguments)} values'
            raise ValueError(f'{where} must be a list{wanted}, not {value!r}')
        kinds = arguments[:1] * len(value) if any_length else arguments
        return tuple(
            _convert(kind, item, f'{where}[{i}]')
            for i, (kind, item) in enumerate(zip(kinds, value, strict=True))
        )
    if is_dataclass(hint):
        return _build(hint, value, where)  # type: ignore[arg-type]
    if hint is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)  # YAML takes 5e-5, without a point, for a word
        except ValueError:
            pass
    elif type(value) is hint:
        return value
    raise ValueError(f'{where} must be {hint.__name__}, not {value!r}')
