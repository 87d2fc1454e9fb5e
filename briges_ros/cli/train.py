"""`briges train`: train one of our networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from briges_ros.errors import BrigesError


@dataclass(frozen=True)
class TrainJob:
    """What the command line asks for.

    Attributes:
        data: folder of the data sets.
        work: caches, checkpoints and the release; a second run with the same folder resumes.
        config: YAML file of the experiment; None = the defaults.
        device: torch device name; None = CUDA if there is one.
        accept_noncommercial: published weights that must not be used commercially may be.
        teacher: package of the segmentation teacher, see `briges_ros.training.teacher`.
    """

    data: Path
    work: Path
    config: Path | None = None
    device: str | None = None
    accept_noncommercial: bool = False
    teacher: Path | None = None


def run(
    target: str,
    data: Path,
    work: Path | None,
    config: Path | None,
    device: str | None,
    accept_noncommercial: bool,
    teacher: Path | None,
) -> None:
    """Train, or go on training.

    Raises:
        BrigesError: unknown target or setting, missing data, or torch is missing.
    """
    if target not in TARGETS:
        raise BrigesError(f'unknown target {target!r}; there are: {", ".join(TARGETS)}')
    # Each experiment has a folder of its own.
    name = target if config is None else f'{target}-{config.stem}'
    job = TrainJob(data, work or Path('runs') / name, config, device, accept_noncommercial, teacher)
    try:
        TARGETS[target](job)
    except ImportError as error:
        raise BrigesError(
            f'training needs {error.name}; run: pip install "briges_ros[train]"'
        ) from error
    except OSError as error:
        raise BrigesError(
            f'{error.filename or job.work}: {error.strerror or error}; what was done is kept: mend '
            'it (or give another --work), and the same command goes on'
        ) from error


def _compact(job: TrainJob) -> None:
    from briges_ros.network.compose import WEIGHTS
    from briges_ros.network.skeleton import write_skeletons
    from briges_ros.training.gate_config import read_config
    from briges_ros.training.trainer import TrainConfig, Trainer

    config = TrainConfig() if job.config is None else read_config(TrainConfig, job.config)
    trainer = Trainer(config, job.data, job.work, job.device)
    score = trainer.train()
    release = job.work / 'release'
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


def _gate(job: TrainJob) -> None:
    from briges_ros.training.gate_config import GateConfig, read_config
    from briges_ros.training.gate_network import open_network
    from briges_ros.training.gate_trainer import GateTrainer

    if job.config is None:
        raise BrigesError(
            'gate training needs an experiment: --config config/training/gate_compact.yaml'
        )
    config = read_config(GateConfig, job.config)
    network = open_network(config, job.accept_noncommercial)
    trainer = GateTrainer(config, network, job.data, job.work, job.device)
    summary = trainer.train()
    if not summary:  # not the first process under torchrun
        return
    print(
        f'{job.work / "release" / summary["weights"]["file"]}: {summary["parameters"]} parameters, '
        f'{summary["steps"]} steps, frozen parts unchanged'
    )
    for name, score in summary.get('held_out', {}).items():
        print(
            f'{name}: affine-invariant AbsRel {score["abs_rel"]:.4f}, '
            f'delta1 {score["delta1"]:.4f} on {score["frames"]} held-out frames'
        )


def _segmentation(job: TrainJob) -> None:
    from briges_ros.training.gate_config import read_config
    from briges_ros.training.segmentation_trainer import (
        TRUNK,
        SegmentationConfig,
        SegmentationTrainer,
    )

    config = SegmentationConfig()
    if job.config is not None:
        config = read_config(SegmentationConfig, job.config)
    trainer = SegmentationTrainer(config, job.data, job.work, job.teacher, TRUNK.path(), job.device)
    score = trainer.train()
    release = job.work / 'release'
    trainer.release(
        release,
        {
            'held_out': 'NYUv2 frames 420-479, 900-959, 1380-1439',
            'mean_iou': f'{score.mean_iou:.4f}',
            'pixel_accuracy': f'{score.pixel_accuracy:.4f}',
        },
    )
    print(
        f'{release}: mIoU {score.mean_iou:.4f} over {score.classes} classes, pixel accuracy '
        f'{score.pixel_accuracy:.4f} on the held-out frames'
    )


TARGETS: dict[str, Callable[[TrainJob], None]] = {
    'compact': _compact,
    'segmentation': _segmentation,
    'gate': _gate,
}
