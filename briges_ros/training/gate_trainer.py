"""Gate-only training: the Bridging Gates between two frozen foundation encoders.

Deterministic by seed: what a step sees is a function of (seed, step) alone, so a run that was
killed goes on from its last checkpoint as if nothing had happened. Under torchrun the batch is
split over the processes, which together compute the loss that one process would.
"""

from __future__ import annotations

import csv
import json
import math
import signal
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from briges_ros.depth_image import colorize
from briges_ros.errors import BrigesError
from briges_ros.evaluation.metrics import affine_invariant_depth, depth_metrics
from briges_ros.inference.bundle import file_sha256
from briges_ros.network.briges import Briges, state_sha256
from briges_ros.network.checkpoints import put_in_place
from briges_ros.network.compact import save_trained
from briges_ros.network.compose import GATE
from briges_ros.training.checkpoint import (
    load_checkpoint,
    progress_bar,
    save_checkpoint,
    write_whole,
)
from briges_ros.training.datasets import Dataset, Sample, open_dataset
from briges_ros.training.gate_config import FramesConfig, GateConfig, ScoringFrames
from briges_ros.training.gate_features import (
    Batch,
    LiveViews,
    Pick,
    Views,
    ViewSettings,
    ViewSource,
    cached_views,
    encoder_hashes,
    prefetched,
)
from briges_ros.training.gate_network import GateNetwork
from briges_ros.training.world import choose_device, join_world

RELEASES = {'gates': GATE, 'decoder': 'decoder.safetensors'}  # by what is trained
LOG_COLUMNS = ('step', 'data', 'loss', 'lr', 'gradient_norm')
PREVIEWS = 4
# Settings that change nothing about the result, so that a run may go on with others.
OPERATIONAL = (
    'cache_folder',
    'checkpoint_steps',
    'held_out',
    'preview_steps',
    'score_steps',
    'validation',
)


class _Slice:
    """Some frames of a data set."""

    def __init__(self, dataset: Dataset, first: int, end: int) -> None:
        self.sharp = dataset.sharp
        self._dataset = dataset
        self._numbers = range(first, end)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Sample:
        return self._dataset[self._numbers[index]]


class _Trainable(nn.Module):
    """The network behind its encoders, in the shape that DistributedDataParallel wants."""

    def __init__(self, model: Briges) -> None:
        super().__init__()
        self.model = model

    def forward(self, levels: list[Tensor], segmentation: Tensor | None) -> Tensor:
        return self.model.decode(levels, segmentation)


@dataclass(frozen=True, eq=False)
class _Group:
    """One data set of the experiment."""

    views: Views
    repeats: int
    sharp: bool


@dataclass(frozen=True)
class Score:
    """Affine-invariant means over frames."""

    abs_rel: float
    delta1: float
    frames: int


class GateTrainer:
    """Trains in a work folder that holds caches, checkpoints and the log.

    Args:
        config: the experiment.
        network: of that experiment; see `open_network`.
        data: folder of the data sets.
        work: a second run with the same folder resumes.
        device: torch device name; see `choose_device`.

    Raises:
        BrigesError: the data are missing, frames that train are scored too, or the work folder
            belongs to another experiment.
    """

    def __init__(
        self,
        config: GateConfig,
        network: GateNetwork,
        data: Path,
        work: Path,
        device: str | None = None,
    ) -> None:
        try:
            config.located(data)
        except ValueError as error:
            raise BrigesError(f'{data}: {error}') from error
        self.config = config
        self.work = work
        self.device = choose_device(device)
        self.world = join_world(self.device)
        if config.batch % self.world.size:
            raise BrigesError(
                f'a batch of {config.batch} cannot be split over {self.world.size} processes; '
                'make it a multiple of their number'
            )
        self.console = Console(quiet=self.world.rank > 0)
        work.mkdir(parents=True, exist_ok=True)
        self.model = network.model.to(self.device)
        self.model.decoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model.gates.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.segmentation_input = network.segmentation_input
        self.part = config.train
        self.trained = {
            f'{self.part}.{name}': p
            for name, p in getattr(self.model, self.part).named_parameters()
        }
        self.ema = {name: p.detach().clone() for name, p in self.trained.items()}
        self.frozen = self._frozen_hashes()
        self._untrained_decoder = (
            deepcopy(self.model.decoder).requires_grad_(False)
            if self.part == 'decoder'
            else self.model.decoder
        )
        self.optimizer = torch.optim.AdamW(
            list(self.trained.values()),
            lr=config.lr,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self._amp = self._amp_type()
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self._amp is torch.float16)
        self._open_data(data)
        self.batches_per_epoch = len(self._epoch(0))
        if not self.batches_per_epoch:
            raise BrigesError(
                f'no data set has enough frames for a batch of {config.batch}; '
                'lower batch or raise repeats'
            )
        self._remembered_epoch = -1
        self._remembered: list[tuple[int, list[Pick]]] = []
        self.step = 0
        self._resume()
        self.runner: nn.Module = _Trainable(self.model)
        if self.world.size > 1:
            self.runner = DistributedDataParallel(
                self.runner,
                broadcast_buffers=False,
                # A published decoder has a layer that its forward never uses.
                find_unused_parameters=self.part == 'decoder',
            )
        self._asked_to_stop = False  # this process heard Ctrl-C
        self._stops = False  # all processes stop after this step

    def _frozen_hashes(self) -> dict[str, str]:
        return {
            name: state_sha256(part)
            for name, part in self.model.frozen_parts().items()
            if name != self.part
        }

    def _amp_type(self) -> torch.dtype | None:
        if self.config.precision == 'fp32':
            return None
        if self.device.type != 'cuda':
            self.console.print(f'precision: amp is for CUDA; fp32 on {self.device.type}')
            return None
        # Older GPUs emulate it, slowly; they do have fast float16.
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fast else torch.float16

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._amp is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self._amp)

    # Data

    def _open_data(self, data: Path) -> None:
        config = self.config
        encoders = encoder_hashes(self.model)
        folder = Path(config.cache_folder) if config.cache_folder else self.work / 'features'
        self._keys: list[str] = []
        with progress_bar(self.console) as progress:

            def views(frames: FramesConfig, settings: ViewSettings) -> Views:
                dataset = open_dataset(frames.kind, data / frames.root, frames.split)
                if frames.frames is not None:
                    dataset = _slice(dataset, frames)
                source = ViewSource(
                    frames.kind, dataset, settings, self.model, self.segmentation_input, self.device
                )
                if not config.cache:
                    return LiveViews(source)
                if self.world.rank == 0:
                    cached_views(source, folder, encoders, progress)
                self.world.wait()
                return cached_views(source, folder, encoders, progress, build=False)

            self.groups = []
            for frames in config.data:
                settings = ViewSettings(
                    *(frames.size or config.size),
                    views=config.views,
                    smallest_crop=config.smallest_crop,
                    paste=frames.paste,
                    seed=config.seed,
                )
                opened = views(frames, settings)
                dataset = opened.source.dataset
                if config.segmentation_features == 'shuffled' and len(dataset) < 2:
                    raise BrigesError(f'shuffled features need two frames of {frames.kind}')
                sharp = dataset.sharp if frames.sharp is None else frames.sharp
                self.groups.append(_Group(opened, frames.repeats, sharp))

            def plain(frames: ScoringFrames | None) -> Views | None:
                if frames is None:
                    return None
                return views(frames, ViewSettings(*(frames.size or config.size)))

            self.validation, self.held_out = plain(config.validation), plain(config.held_out)

    def _epoch(self, epoch: int) -> list[tuple[int, list[Pick]]]:
        """(group, views) of each batch of an epoch, shuffled; no batch mixes groups."""
        config = self.config
        rng = np.random.default_rng([config.seed, epoch])
        batches: list[tuple[int, list[Pick]]] = []
        for number, group in enumerate(self.groups):
            count = len(group.views.source.dataset)
            # Another scene: neighbouring frames show the same one.
            away = int(rng.integers(max(1, count // 4), max(2, 3 * count // 4 + 1)))
            picks = []
            for repeat in range(group.repeats):
                turn = epoch * group.repeats + repeat
                for frame in rng.permutation(count).tolist():
                    picks.append(Pick(frame, turn + frame, self._seen(frame, away, count)))
            for start in range(0, len(picks) - config.batch + 1, config.batch):
                batches.append((number, picks[start : start + config.batch]))
        return [batches[i] for i in rng.permutation(len(batches))]

    def _seen(self, frame: int, away: int, count: int) -> int | None:
        """The frame whose segmentation the gates see with a frame; None = blank."""
        frames = {'right': frame, 'blank': None, 'shuffled': (frame + away) % count}
        return frames[self.config.segmentation_features]

    def _batches(self, first_step: int) -> Iterator[tuple[int, list[Pick]]]:
        """(group, views of all processes) of each batch, from a step on to the end."""
        config = self.config
        for number in range(first_step * config.accumulate, config.steps * config.accumulate):
            epoch, position = divmod(number, self.batches_per_epoch)
            if epoch != self._remembered_epoch:
                self._remembered_epoch, self._remembered = epoch, self._epoch(epoch)
            yield self._remembered[position]

    def _share(self, picks: list[Pick]) -> list[Pick]:
        """What this process computes of a batch."""
        count = len(picks) // self.world.size
        return picks[self.world.rank * count : (self.world.rank + 1) * count]

    def _names(self, group: int, picks: list[Pick]) -> list[str]:
        dataset = self.groups[group].views.source.dataset
        return [dataset[pick.frame].name for pick in picks]

    # Training

    def train(self) -> dict[str, Any]:
        """Train to the end, release the averaged weights, and return the summary.

        Raises:
            BrigesError: a loss that is not finite, with the names of the frames.
            KeyboardInterrupt: after Ctrl-C, with a checkpoint of the last whole step.
        """
        config = self.config
        writer = self._tensorboard()
        with (
            _log(self.work / 'log.csv', self.step, self.world.rank == 0) as log,
            progress_bar(self.console) as progress,
            self._interruptible(),
            closing(prefetched(self._load, self._batches(self.step))) as loaded,
        ):
            task = progress.add_task('training', total=config.steps, completed=self.step)
            smooth = math.nan
            while self.step < config.steps:
                lr = config.learning_rate(self.step)
                loss, norm, names = self._train_step(loaded, lr)
                log((self.step, names, f'{loss:.9g}', f'{lr:.6g}', f'{norm:.6g}'))
                smooth = loss if math.isnan(smooth) else 0.97 * smooth + 0.03 * loss
                progress.update(task, completed=self.step, description=f'loss {smooth:.4f}')
                if writer is not None:
                    writer.add_scalar('loss', loss, self.step)
                    writer.add_scalar('learning rate', lr, self.step)
                    writer.add_scalar('gradient norm', norm, self.step)
                last = self.step == config.steps
                if self._stops or last or self.step % config.checkpoint_steps == 0:
                    self._save_checkpoint()
                if self._stops:
                    self.console.print(
                        f'stopped at step {self.step} of {config.steps}; '
                        'the same command goes on from there'
                    )
                    raise KeyboardInterrupt
                if self.validation is not None and self.step % config.score_steps == 0:
                    self._validate(writer)
                if config.preview_steps and self.step % config.preview_steps == 0:
                    self._preview(writer)
        if writer is not None:
            writer.close()
        summary = self._release() if self.world.rank == 0 else {}
        self.world.wait()
        return summary

    def _load(self, item: tuple[int, list[Pick]]) -> tuple[int, list[Pick], Any]:
        group, picks = item
        return group, picks, self.groups[group].views.load(self._share(picks))

    def _train_step(
        self, loaded: Iterator[tuple[int, list[Pick], Any]], lr: float
    ) -> tuple[float, float, str]:
        """One step of the optimiser; the mean loss, the gradient's norm, and the data sets."""
        config = self.config
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        losses, seen = [], []
        for number in range(config.accumulate):
            index, picks, content = next(loaded)
            group = self.groups[index]
            seen.append((index, picks))
            last = number == config.accumulate - 1
            with self._no_sync(last), self._autocast():
                batch = group.views.encode(content)
                prediction = self.runner(batch.levels, batch.segmentation)[:, 0].float()
                with torch.autocast(self.device.type, enabled=False):
                    terms = config.loss.by_image(prediction, batch.inverse, group.sharp)
                losses.append(self._checked(terms.detach(), index, picks))
                self.scaler.scale(terms.mean() / config.accumulate).backward()
        self.scaler.unscale_(self.optimizer)
        norm = float(nn.utils.clip_grad_norm_(list(self.trained.values()), config.clip))
        if not (math.isfinite(norm) or self.scaler.is_enabled()):
            self._refuse(f'a gradient norm of {norm}', [n for s in seen for n in self._names(*s)])
        for parameters in self.optimizer.param_groups:
            parameters['lr'] = lr
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        decay = min(config.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.values()), list(self.trained.values()), 1.0 - decay)
        names = sorted({self.groups[index].views.source.name for index, _ in seen})
        return sum(losses) / len(losses), norm, ' '.join(names)

    def _no_sync(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients are exchanged with the last batch of a step alone."""
        if isinstance(self.runner, DistributedDataParallel) and not last:
            return self.runner.no_sync()
        return nullcontext()

    def _checked(self, terms: Tensor, group: int, picks: list[Pick]) -> float:
        """The mean over all processes of the loss of each image; refused if one is not finite."""
        flag = terms.new_tensor([float(self._asked_to_stop)])
        everyone = self.world.gather(torch.cat([terms, flag])).cpu().reshape(self.world.size, -1)
        # All stop after the same step, whichever process heard Ctrl-C first.
        self._stops = bool(everyone[:, -1].any())
        by_image = everyone[:, :-1].flatten()
        bad = [
            pick for pick, x in zip(picks, by_image.tolist(), strict=True) if not math.isfinite(x)
        ]
        if bad:
            self._refuse('a loss that is not finite', self._names(group, bad))
        return float(by_image.mean())

    def _refuse(self, what: str, names: list[str]) -> None:
        kept = (
            f'{self._checkpoint} is the last good state'
            if self._checkpoint.exists()
            else 'there is no checkpoint yet'
        )
        raise BrigesError(
            f'{what} at step {self.step + 1}, from {", ".join(names)}; {kept}: '
            'look at these frames, or lower lr'
        )

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Ctrl-C ends the training after the step that is under way."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.getsignal(signal.SIGINT)

        def stop(_number: int, _frame: types.FrameType | None) -> None:
            self._asked_to_stop = True
            if self.world.size == 1:  # torchrun passes it on once more
                signal.signal(signal.SIGINT, before)

        signal.signal(signal.SIGINT, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    # Scores and pictures

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The averaged weights, rounded as they ship, in place of the live ones."""
        live = {name: p.detach().clone() for name, p in self.trained.items()}
        self._copy({name: p.half().float() for name, p in self.ema.items()})
        try:
            yield
        finally:
            self._copy(live)

    def _copy(self, tensors: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(tensors[name])

    @torch.no_grad()
    def _predict(self, batch: Batch, trained: bool) -> NDArray[np.float32]:
        """Relative inverse depth (B, H', W'), of the trained network or of the untrained one."""
        self.model.eval()
        output = (
            self.model.decode(batch.levels, batch.segmentation)
            if trained
            else self._untrained_decoder(batch.levels)
        )
        return output[:, 0].float().cpu().numpy()

    def score(self, views: Views, frames: ScoringFrames, trained: bool = True) -> Score:
        """Score the averaged weights (or, for comparison, the frozen network) on plain frames.

        This is for watching a training: at the network's resolution, with the kind of segmentation
        features that it was trained with. `briges evaluate` is the judge.
        """
        results = []
        with self._averaged():
            count = len(views.source.dataset)
            for index in range(0, count, frames.every):
                seen = self._seen(index, count // 2, count)
                batch = views.encode(views.load([Pick(index, 0, seen)]))
                inverse = batch.inverse[0].cpu().numpy().astype(np.float64)
                truth = np.where(inverse > 0, 1.0 / np.where(inverse > 0, inverse, 1.0), np.nan)
                relative = self._predict(batch, trained)[0]
                inside = (truth > frames.range_m[0]) & (truth < frames.range_m[1])
                if inside.any():
                    truth[~inside] = np.nan
                    depth = affine_invariant_depth(relative, truth, *frames.range_m)
                    results.append(depth_metrics(depth, truth))
        if not results:
            return Score(math.nan, math.nan, 0)
        return Score(
            abs_rel=float(np.mean([r.abs_rel for r in results])),
            delta1=float(np.mean([r.delta1 for r in results])),
            frames=len(results),
        )

    def _validate(self, writer: Any) -> None:
        if self.world.rank > 0 or self.validation is None or self.config.validation is None:
            return
        score = self.score(self.validation, self.config.validation)
        self.console.print(
            f'step {self.step}: validation AbsRel {score.abs_rel:.4f}, delta1 {score.delta1:.4f} '
            f'({score.frames} frames)'
        )
        if writer is not None:
            writer.add_scalar('validation AbsRel', score.abs_rel, self.step)
            writer.add_scalar('validation delta1', score.delta1, self.step)

    def _tensorboard(self) -> Any:
        """TensorBoard's writer; None without it, and for all processes but the first."""
        if self.world.rank > 0:
            return None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.console.print('no TensorBoard: pip install tensorboard; the log is in log.csv')
            return None
        return SummaryWriter(str(self.work / 'tensorboard'), purge_step=self.step + 1)

    def _preview(self, writer: Any) -> None:
        """Image, truth, frozen network, trained network: one row for each data set."""
        if writer is None:
            return
        with self._averaged():
            for number, group in enumerate(self.groups[:PREVIEWS]):
                views = group.views
                image, inverse = views.source.view(0, 0)
                count = len(views.source.dataset)
                seen = self._seen(0, count // 2, count)
                batch = views.encode(views.load([Pick(0, 0, seen)]))
                height, width = views.source.output_size
                row = [
                    cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA),
                    colorize(views.source.label(inverse)),
                    colorize(self._predict(batch, trained=False)[0]),
                    colorize(self._predict(batch, trained=True)[0]),
                ]
                writer.add_image(
                    f'{number} {views.source.name}: image, truth, frozen, trained',
                    np.concatenate(row, axis=1),
                    self.step,
                    dataformats='HWC',
                )

    # What is kept

    @property
    def _checkpoint(self) -> Path:
        return self.work / 'checkpoint.pt'

    def _settings(self) -> dict[str, Any]:
        """All that a run must have in common with the one that it goes on with."""
        settings = {k: v for k, v in asdict(self.config).items() if k not in OPERATIONAL}
        return {**settings, 'frozen': self.frozen}

    def _save_checkpoint(self) -> None:
        if self.world.rank > 0:
            return
        save_checkpoint(
            self._checkpoint,
            self._settings(),
            {
                'step': self.step,
                'trained': {name: p.detach() for name, p in self.trained.items()},
                'ema': self.ema,
                'optimizer': self.optimizer.state_dict(),
                'scaler': self.scaler.state_dict(),
            },
        )

    def _resume(self) -> None:
        state = load_checkpoint(self._checkpoint, self._settings(), self.device)
        if state is None:
            return
        self._copy(state['trained'])
        self.ema = state['ema']
        self.optimizer.load_state_dict(state['optimizer'])
        # Whether the scaler is used depends on the device; one that was not has no state.
        if state['scaler']:
            self.scaler.load_state_dict(state['scaler'])
        self.step = state['step']
        self.console.print(f'resuming at step {self.step}')

    def _release(self) -> dict[str, Any]:
        """Check what was frozen, score, and write the weights and ``summary.json``."""
        config = self.config
        after = self._frozen_hashes()
        for name, digest in self.frozen.items():
            if after[name] != digest:
                raise BrigesError(
                    f'the frozen {name} changed while training ({digest[:12]} -> '
                    f'{after[name][:12]}); nothing is released, and this is a bug: report it'
                )
        data = [
            {
                'kind': group.views.source.name,
                'frames': len(group.views.source.dataset),
                'sharp': group.sharp,
            }
            for group in self.groups
        ]
        release = self.work / 'release'
        release.mkdir(exist_ok=True)
        weights = release / RELEASES[self.part]
        save_trained(
            {name: p.cpu() for name, p in self.ema.items()},
            weights,
            {
                'trained': self.part,
                'steps': str(self.step),
                'seed': str(config.seed),
                'config': json.dumps(asdict(config)),
                'frozen': json.dumps(self.frozen),
                'data': json.dumps(data),
            },
        )
        summary: dict[str, Any] = {
            'trained': self.part,
            'parameters': sum(p.numel() for p in self.trained.values()),
            'steps': self.step,
            'weights': {'file': weights.name, 'sha256': file_sha256(weights)},
            'frozen_before': self.frozen,
            'frozen_after': after,
            'data': data,
            'config': asdict(config),
            'torch': torch.__version__,
        }
        if self.held_out is not None and config.held_out is not None:
            score = partial(self.score, self.held_out, config.held_out)
            summary['held_out'] = {
                'trained': asdict(score()),
                'frozen': asdict(score(trained=False)),
            }
        text = json.dumps(summary, indent=2) + '\n'
        write_whole(release / 'summary.json', text)
        return summary


def _slice(dataset: Dataset, frames: FramesConfig) -> Dataset:
    assert frames.frames is not None
    first, end = frames.frames
    if end > len(dataset):
        raise BrigesError(
            f'frames: [{first}, {end}] of {frames.kind} {frames.root}, which has {len(dataset)}'
        )
    return _Slice(dataset, first, end)


@contextmanager
def _log(path: Path, step: int, writes: bool) -> Iterator[Callable[[tuple[Any, ...]], None]]:
    """Append to the log of the loss; rows of steps that will be done again are dropped."""
    if not writes:
        yield lambda _row: None
        return
    rows: list[list[str]] = []
    if path.exists():
        with path.open(newline='') as file:
            rows = [row for row in csv.reader(file) if len(row) == len(LOG_COLUMNS)]
    kept = [row for row in rows if row[0].isdecimal() and int(row[0]) <= step]
    unfinished = path.with_suffix('.partial')
    with unfinished.open('w', newline='') as file:
        csv.writer(file, lineterminator='\n').writerows([LOG_COLUMNS, *kept])
    put_in_place(unfinished, path)
    with path.open('a', newline='', buffering=1) as file:
        yield csv.writer(file, lineterminator='\n').writerow
