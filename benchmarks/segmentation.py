"""Labels of the compact segmentation encoder on frames that never trained, beside trivial ones.

From the shipped files: the encoder, and the 1x1 layer that makes the 40 classes of NYUv2 of its
features. Every figure is printed next to what a program without a network gets, and as a ratio to
it: one class everywhere (the commonest of the training labels), and at each pixel the class that
the training labels have there most often.

    python benchmarks/segmentation.py [--model models/compact] [--every 1] [--output FILE.json]
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from briges_ros.errors import BrigesError
from briges_ros.evaluation.segmentation import Confusion
from briges_ros.inference.bundle import file_sha256
from briges_ros.network.checkpoints import load_checked
from briges_ros.network.compose import SEGMENTATION
from briges_ros.training.datasets import NyuV2, Sample
from briges_ros.training.segmentation_trainer import (
    CLASSES,
    SegmentationConfig,
    Student,
    label_image,
)

LABELS = 'segmentation_labels.safetensors'
MODEL = Path(__file__).parents[1] / 'models' / 'compact'
HELD_OUT = 'NYUv2 held-out blocks 420-479, 900-959, 1380-1439'
COMMONEST = 10  # classes of which each has its own row
ALTERNATIVES = ('majority class', 'majority class at the pixel')
# The 40 classes of Gupta et al. (CVPR 2013), class 1 first.
# fmt: off
NAMES = (
    'wall', 'floor', 'cabinet', 'bed', 'chair', 'sofa', 'table', 'door', 'window', 'bookshelf',
    'picture', 'counter', 'blinds', 'desk', 'shelves', 'curtain', 'dresser', 'pillow', 'mirror',
    'floor mat', 'clothes', 'ceiling', 'books', 'refrigerator', 'television', 'paper', 'towel',
    'shower curtain', 'box', 'whiteboard', 'person', 'night stand', 'toilet', 'sink', 'lamp',
    'bathtub', 'bag', 'other structure', 'other furniture', 'other prop',
)
# fmt: on


@dataclass(frozen=True)
class Row:
    """Averages of one way to label, and ours in units of them (None where they are 0)."""

    labels: str
    mean_iou: float
    ours_to_mean_iou: float | None
    pixel_accuracy: float
    ours_to_pixel_accuracy: float | None


@dataclass(frozen=True)
class ClassRow:
    """Intersection over union of one class in each way to label, and ours in units of the others.

    Attributes:
        number: of the class, 1..40.
        name: of the class.
        share: of the labelled pixels.
        iou: by way to label, ours first.
        ours_to: by alternative; None where its IoU is 0.
    """

    number: int
    name: str
    share: float
    iou: dict[str, float]
    ours_to: dict[str, float | None]


@dataclass(frozen=True, eq=False)
class Prior:
    """What the training labels say without looking at the image.

    Attributes:
        majority: the commonest class.
        at_pixel: (H, W) uint8, the commonest class at each pixel.
        frames: that it was learnt from.
    """

    majority: int
    at_pixel: NDArray[np.uint8]
    frames: int


def learn_prior(frames: NyuV2) -> Prior:
    """Count the labels of all frames, which must have one size."""
    counts: NDArray[np.uint16] | None = None
    for index in track(range(len(frames)), 'training labels'):
        labels = labels_of(frames[index])
        if counts is None:
            counts = np.zeros((*labels.shape, CLASSES + 1), np.uint16)
        rows, cols = np.indices(labels.shape, sparse=True)
        counts[rows, cols, labels] += 1
    assert counts is not None  # a data set without frames is refused
    classes = counts[:, :, 1:]  # without what is not labelled
    majority = 1 + int(classes.sum(axis=(0, 1), dtype=np.int64).argmax())
    at_pixel = np.where(classes.any(axis=2), 1 + classes.argmax(axis=2), majority)
    return Prior(majority, at_pixel.astype(np.uint8), len(frames))


def labels_of(sample: Sample) -> NDArray[np.uint8]:
    """The labels of a frame, (H, W)."""
    if sample.labels is None:
        raise BrigesError(f'{sample.name} has no labels: the data set lacks its labels40/')
    return sample.labels


def load_student(model: Path) -> Student:
    """The released encoder under its label layer; the head that imitates the teacher is unused."""
    student = Student()
    student.encoder.fuse()
    load_checked(student.encoder, model / SEGMENTATION)
    load_checked(student.labels[1], model / LABELS)
    return student.eval()


def measure(student: Student, data: Path, every: int) -> tuple[dict[str, Confusion], int, Prior]:
    """Label every n-th held-out frame in each way; also the number of frames."""
    prior = learn_prior(NyuV2(data / 'nyuv2', 'train'))
    frames = NyuV2(data / 'nyuv2', 'held_out')
    config = SegmentationConfig()  # for the size of the input
    scores = {name: Confusion(CLASSES) for name in ('ours', *ALTERNATIVES)}
    numbers = range(0, len(frames), every)
    for index in track(numbers, 'held-out frames'):
        sample = frames[index]
        truth = labels_of(sample)
        scores['ours'].add(label_image(student, sample.image, config), truth)
        scores[ALTERNATIVES[0]].add(np.full_like(truth, prior.majority), truth)
        scores[ALTERNATIVES[1]].add(prior.at_pixel, truth)
    return scores, len(numbers), prior


def ratio(ours: float, other: float) -> float | None:
    """Ours in units of the other; None where the other has nothing."""
    return ours / other if other > 0 else None


def average_rows(scores: dict[str, Confusion]) -> list[Row]:
    """A row for each way to label, ours first."""
    ours = scores['ours']
    return [
        Row(
            name,
            score.mean_iou,
            ratio(ours.mean_iou, score.mean_iou),
            score.pixel_accuracy,
            ratio(ours.pixel_accuracy, score.pixel_accuracy),
        )
        for name, score in scores.items()
    ]


def class_rows(scores: dict[str, Confusion]) -> list[ClassRow]:
    """A row for each of the classes with most pixels in the truth."""
    pixels = scores['ours'].pixels
    rows = []
    for index in np.argsort(-pixels, kind='stable')[:COMMONEST]:
        if not pixels[index]:
            break
        iou = {name: float(score.iou[index]) for name, score in scores.items()}
        ours_to = {name: ratio(iou['ours'], iou[name]) for name in ALTERNATIVES}
        share = float(pixels[index] / pixels.sum())
        rows.append(ClassRow(int(index) + 1, NAMES[index], share, iou, ours_to))
    return rows


def times(value: float | None) -> str:
    """A ratio, for people."""
    return '-' if value is None else f'{value:.2f} x'


def main() -> None:
    """Measure, print and, if asked, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--model', type=Path, default=MODEL, help='folder of the shipped files')
    parser.add_argument('--data', type=Path, default=Path('../shared/data'))
    parser.add_argument('--every', type=int, default=1, help='only every n-th held-out frame')
    parser.add_argument('--output', type=Path, help='JSON file to write')
    options = parser.parse_args()
    scores, frames, prior = measure(load_student(options.model), options.data, options.every)
    rows, classes = average_rows(scores), class_rows(scores)
    count = scores['ours'].classes
    averages = Table(title=f'{frames} held-out frames, {count} classes occur in them')
    for title in ('labels', 'mIoU', 'ours to it', 'pixel accuracy', 'ours to it'):
        averages.add_column(title)
    for row in rows:
        averages.add_row(
            row.labels,
            f'{row.mean_iou:.4f}',
            times(row.ours_to_mean_iou),
            f'{row.pixel_accuracy:.4f}',
            times(row.ours_to_pixel_accuracy),
        )
    table = Table(title=f'IoU of the {len(classes)} commonest classes (- = the other has 0)')
    for title in ('class', 'pixels', *scores, *(f'ours to {name}' for name in ALTERNATIVES)):
        table.add_column(title)
    for each in classes:
        table.add_row(
            each.name,
            f'{100 * each.share:.1f} %',
            *(f'{value:.4f}' for value in each.iou.values()),
            *(times(value) for value in each.ours_to.values()),
        )
    console = Console(width=150)
    console.print(averages)
    console.print(
        f'{HELD_OUT}; majority class of {prior.frames} training frames: {NAMES[prior.majority - 1]}'
    )
    console.print(table)
    if options.output:
        values = {
            'sha256': {name: file_sha256(options.model / name) for name in (SEGMENTATION, LABELS)},
            'data': HELD_OUT,
            'frames': frames,
            'classes': count,
            'majority_class': NAMES[prior.majority - 1],
            'rows': [asdict(row) for row in rows],
            'commonest_classes': [asdict(each) for each in classes],
        }
        options.output.write_text(json.dumps(values, indent=2) + '\n')


if __name__ == '__main__':
    main()
