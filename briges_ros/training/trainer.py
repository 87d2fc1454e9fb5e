"""Training of the compact model: cached frozen trunk, adapters, decoder.

Deterministic by seed: the order of an epoch is a function of (seed, epoch), so a run that was
killed goes on from its last checkpoint as if nothing had happened.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from briges_ros.errors import BrigesError
from briges_ros.evaluation.metrics import affine_invariant_depth, depth_metrics
from briges_ros.network.compact import (
    FIRST_ADAPTED_BLOCKS,
    CompactDepth,
    load_compact,
    save_trained,
)
from briges_ros.training.checkpoint import (
    DECAY,
    NOT_NEGATIVE,
    POSITIVE,
    Range,
    load_checkpoint,
    progress_bar,
    require,
    save_checkpoint,
    warm_cosine,
)
from briges_ros.training.datasets import Dataset, KittiDrive, NyuV2
from briges_ros.training.feature_cache import CachedViews, ViewGroup, cached_views
from briges_ros.training.losses import depth_loss
from briges_ros.training.world import choose_device

NYU_RANGE_M = (1e-3, 10.0)


@dataclass(frozen=True)
class TrainConfig:
    """One experiment; every field can be set in its YAML file.

    Attributes:
        views: augmented views cached per NYUv2 frame (each takes about a megabyte).
        batch: frames per step.
        epochs: visits of each NYUv2 frame.
        decoder_lr, adapter_lr: peak learning rates of AdamW.
        weight_decay: of AdamW.
        warmup_steps: linear warm-up, then half a cosine to zero.
        clip: largest gradient norm.
        gradient_weight, ratio_weight: see `depth_loss`.
        ema: decay of the weights' moving average, which is what ships.
        checkpoint_steps: steps between two checkpoints.
        seed: of everything random.
        start: weights (safetensors) to start from instead of a new decoder; empty: none.
        first_adapted_block: of the encoder's 12 blocks; 6 trains the upper half above cached
            features, 0 all of them, which takes twice as long.
    """

    views: int = 4
    batch: int = 4
    epochs: int = 6
    decoder_lr: float = 5e-4
    adapter_lr: float = 5e-4
    weight_decay: float = 0.01
    warmup_steps: int = 100
    clip: float = 1.0
    gradient_weight: float = 4.0
    ratio_weight: float = 1.0
    ema: float = 0.995
    checkpoint_steps: int = 50
    seed: int = 0
    start: str = ''
    first_adapted_block: int = 6

    def __post_init__(self) -> None:
        require(self, POSITIVE, 'views', 'batch', 'epochs', 'checkpoint_steps')
        require(self, POSITIVE, 'decoder_lr', 'adapter_lr', 'clip')
        require(self, NOT_NEGATIVE, 'gradient_weight', 'ratio_weight', 'weight_decay')
        require(self, NOT_NEGATIVE, 'warmup_steps', 'seed')
        require(self, DECAY, 'ema')
        require(self, Range('0 or 6', FIRST_ADAPTED_BLOCKS.__contains__), 'first_adapted_block')


@dataclass(frozen=True)
class Score:
    """Affine-invariant means over frames."""

    abs_rel: float
    delta1: float
    frames: int


class Trainer:
    """Trains the compact model in a work folder that holds caches, checkpoints and the log.

    Args:
        config: the experiment.
        data: folder with ``nyuv2/`` and ``kitti_drive/``.
        work: where caches and checkpoints go; a second run with the same folder resumes.
        device: torch device name; default: CUDA when there is one.

    Raises:
        BrigesError: the data are missing or too few, or the work folder belongs to another
            experiment.
    """

    def __init__(
        self, config: TrainConfig, data: Path, work: Path, device: str | None = None
    ) -> None:
        self.config = config
        self.work = work
        self.console = Console()
        self.device = choose_device(device)
        torch.manual_seed(config.seed)
        first = config.first_adapted_block
        model = load_compact(Path(config.start), first) if config.start else CompactDepth(first)
        self.model = model.to(self.device)
        self.model.decoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.trained = self.model.trained_parameters()
        for parameter in self.trained.values():
            parameter.requires_grad_(True)
        adapters = {id(p) for p in self.model.adapters}
        self.optimizer = torch.optim.AdamW(
            [
                {
                    'params': [p for p in self.trained.values() if id(p) not in adapters],
                    'lr': config.decoder_lr,
                },
                {'params': self.model.adapters, 'lr': config.adapter_lr},
            ],
            weight_decay=config.weight_decay,
        )
        self.ema = {name: p.detach().clone() for name, p in self.trained.items()}
        self.step = 0
        self.groups, self.held_out = self._open_data(data)
        self.steps_per_epoch = len(self._epoch_batches(0))
        if not self.steps_per_epoch:
            raise BrigesError(
                f'no data set has enough frames for a batch of {config.batch}; lower batch'
            )
        total = self.steps_per_epoch * config.epochs
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: warm_cosine(step, config.warmup_steps, total)
        )
        self._resume()

    def _open_data(self, data: Path) -> tuple[list[CachedViews], CachedViews]:
        nyu, kitti = data / 'nyuv2', data / 'kitti_drive'
        views = self.config.views
        wanted: list[tuple[Dataset, ViewGroup]] = [
            (NyuV2(nyu, 'train'), ViewGroup('nyu', 392, 294, views)),
            (
                KittiDrive(kitti, 'train'),
                ViewGroup('kitti', 616, 182, 2 * views, 0.6, repeats=6),
            ),
            (
                KittiDrive(kitti, 'train'),
                ViewGroup('kitti-crop', 392, 294, views, 0.6, repeats=2),
            ),
            (NyuV2(nyu, 'held_out'), ViewGroup('nyu-held-out', 392, 294, 0)),
        ]
        cache = self.work / 'features'
        with progress_bar(self.console) as progress:
            opened = [
                cached_views(
                    frames, group, self.model, cache, self.config.seed, progress, self.device
                )
                for frames, group in wanted
            ]
        return opened[:-1], opened[-1]

    def _epoch_batches(self, epoch: int) -> list[tuple[int, list[int], list[int]]]:
        """(group, frames, views) for each step of an epoch, shuffled; no batch mixes groups."""
        rng = np.random.default_rng([self.config.seed, epoch])
        batches = []
        for number, views in enumerate(self.groups):
            for repeat in range(views.group.repeats):
                order = rng.permutation(views.frames)
                turn = epoch * views.group.repeats + repeat
                for start in range(0, len(order) - self.config.batch + 1, self.config.batch):
                    frames = [int(i) for i in order[start : start + self.config.batch]]
                    batches.append((number, frames, [turn + frame for frame in frames]))
        return [batches[i] for i in rng.permutation(len(batches))]

    def train(self) -> Score:
        """Train to the end, print the score after each epoch, and return the last one."""
        total = self.steps_per_epoch * self.config.epochs
        score = Score(math.nan, math.nan, 0)
        with progress_bar(self.console) as progress:
            task = progress.add_task('training', total=total, completed=self.step)
            for loss in self._steps(total):
                progress.update(task, completed=self.step, description=f'loss {loss:.3f}')
                if self.step % self.steps_per_epoch == 0 or self.step == total:
                    last = self.step == total
                    score = self.score(every=1 if last else 3)
                    epoch = self.step // self.steps_per_epoch
                    self.console.print(
                        f'epoch {epoch}: held-out AbsRel {score.abs_rel:.4f}, '
                        f'delta1 {score.delta1:.4f} ({score.frames} frames), loss {loss:.3f}'
                    )
                    self._save_checkpoint()
        if score.frames == 0:  # it was finished before
            score = self.score()
        return score

    def _steps(self, total: int) -> Iterator[float]:
        smooth = math.nan
        while self.step < total:
            epoch, position = divmod(self.step, self.steps_per_epoch)
            for number, frames, views in self._epoch_batches(epoch)[position:]:
                value = self._step(self.groups[number], frames, views)
                smooth = value if math.isnan(smooth) else 0.97 * smooth + 0.03 * value
                if self.step % self.config.checkpoint_steps == 0:
                    self._save_checkpoint()
                yield smooth

    def _step(self, views: CachedViews, frames: list[int], view: list[int]) -> float:
        self.model.train()
        trunk, inverse = views.batch(frames, view)
        prediction = self.model.from_trunk(trunk.to(self.device), *views.group.grid)
        loss = depth_loss(
            prediction,
            inverse.to(self.device),
            self.config.gradient_weight if views.sharp else 0.0,
            self.config.ratio_weight,
        )
        value = float(loss.detach())
        if not math.isfinite(value):
            names = ', '.join(f'{views.group.name} {frame}' for frame in frames)
            raise BrigesError(
                f'the loss is {value} at step {self.step + 1}, from frames {names}; '
                f'{self._checkpoint}, if it is there, is the last good state: look at these '
                'frames, or lower the learning rates'
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(self.trained.values()), self.config.clip)
        self.optimizer.step()
        self.schedule.step()
        self.step += 1
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, parameter in self.trained.items():
                self.ema[name].lerp_(parameter, 1.0 - decay)
        return value

    @torch.no_grad()
    def score(self, every: int = 1) -> Score:
        """Score the averaged weights on every n-th held-out frame."""
        live = {name: p.detach().clone() for name, p in self.trained.items()}
        self._copy(self.ema)
        self.model.eval()
        results = []
        for index in range(0, self.held_out.frames, every):
            trunk, inverse = self.held_out.batch([index], [0])
            relative = self.model.from_trunk(trunk.to(self.device), *self.held_out.group.grid)
            truth = 1.0 / inverse[0].numpy().astype(np.float64)
            depth = affine_invariant_depth(relative[0].cpu().numpy(), truth, *NYU_RANGE_M)
            results.append(depth_metrics(depth, truth))
        self._copy(live)
        return Score(
            abs_rel=float(np.mean([r.abs_rel for r in results])),
            delta1=float(np.mean([r.delta1 for r in results])),
            frames=len(results),
        )

    def _copy(self, tensors: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(tensors[name])

    def export_weights(self, path: Path, metadata: dict[str, str]) -> None:
        """Write the averaged weights, the ones that ship."""
        save_trained(self.ema, path, metadata)

    @property
    def _checkpoint(self) -> Path:
        return self.work / 'checkpoint.pt'

    def _save_checkpoint(self) -> None:
        save_checkpoint(
            self._checkpoint,
            asdict(self.config),
            {
                'step': self.step,
                'trained': {name: p.detach() for name, p in self.trained.items()},
                'ema': self.ema,
                'optimizer': self.optimizer.state_dict(),
                'schedule': self.schedule.state_dict(),
            },
        )

    def _resume(self) -> None:
        state = load_checkpoint(self._checkpoint, asdict(self.config), self.device)
        if state is None:
            return
        self._copy(state['trained'])
        self.ema = state['ema']
        self.optimizer.load_state_dict(state['optimizer'])
        self.schedule.load_state_dict(state['schedule'])
        self.step = state['step']
        self.console.print(f'resuming at step {self.step}')
