"""What an evaluation measures of each frame, and the CSV file it is kept in."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from briges_ros.errors import BrigesError
from briges_ros.evaluation.borders import border_metrics
from briges_ros.evaluation.metrics import depth_metrics


@dataclass(frozen=True)
class Measure:
    """One column of the results.

    Attributes:
        key: its name in files.
        title: its name for people, with the unit.
        higher: whether more is better.
    """

    key: str
    title: str
    higher: bool = False


MEASURES = (
    Measure('abs_rel', 'AbsRel'),
    Measure('delta1', 'delta1', higher=True),
    Measure('delta2', 'delta2', higher=True),
    Measure('delta3', 'delta3', higher=True),
    Measure('rmse_m', 'RMSE, m'),
    Measure('log10', 'log10'),
    Measure('silog', 'SILog, x100'),
    Measure('border_abs_rel', 'AbsRel near borders'),
    Measure('border_precision', 'boundary precision, 1 px', higher=True),
    Measure('border_recall', 'boundary recall, 1 px', higher=True),
    Measure('border_f1', 'boundary F1, 1 px', higher=True),
    Measure('border_wide_precision', 'boundary precision, wide', higher=True),
    Measure('border_wide_recall', 'boundary recall, wide', higher=True),
    Measure('border_wide_f1', 'boundary F1, wide', higher=True),
)
_COUNTS = ('pixels', 'border_pixels')
_COLUMNS = ('index', 'name', *_COUNTS, *(measure.key for measure in MEASURES))


@dataclass(frozen=True)
class FrameResult:
    """One frame.

    Attributes:
        index: its place in the split.
        name: for people.
        values: by key: those of `MEASURES` (NaN where there was nothing to measure), and how many
            ``pixels`` and ``border_pixels`` were compared.
    """

    index: int
    name: str
    values: Mapping[str, float]


def frame_result(
    index: int,
    name: str,
    depth: NDArray[np.floating],
    truth: NDArray[np.floating],
    labels: NDArray[np.integer] | None,
) -> FrameResult:
    """Measure one frame.

    Args:
        index, name: of the frame.
        depth: (H, W) metres, aligned.
        truth: (H, W) metres, NaN where it does not count.
        labels: (H, W) ids of regions, or None.
    """
    borders = asdict(border_metrics(depth, truth, labels))
    return FrameResult(
        index,
        name,
        {
            **asdict(depth_metrics(depth, truth)),
            **{f'border_{key}': value for key, value in borders.items()},
        },
    )


def column(results: Iterable[FrameResult], key: str) -> NDArray[np.float64]:
    """(N,) one measure of all frames."""
    return np.array([result.values[key] for result in results], np.float64)


def read_results(path: Path) -> list[FrameResult]:
    """The frames in a CSV file, in the order of the file.

    A last line without its end is what an interrupted run leaves; it is not returned.

    Raises:
        BrigesError: missing, or not such a file.
    """
    try:
        lines = path.read_text().splitlines(keepends=True)
        if lines and not lines[-1].endswith('\n'):
            lines.pop()
        rows = csv.DictReader(lines)
        if tuple(rows.fieldnames or ()) != _COLUMNS:
            raise ValueError('its columns are others')
        return [_parsed(row) for row in rows]
    except (OSError, ValueError, TypeError) as error:
        raise BrigesError(
            f'{path} holds no results of briges evaluate ({error}); give another folder'
        ) from error


def _parsed(row: dict[str, str]) -> FrameResult:
    keys = _COLUMNS[2:]
    values = {key: float(row[key]) if row[key] else math.nan for key in keys}
    return FrameResult(int(row['index']), row['name'], values)


def write_results(path: Path, results: Iterable[FrameResult]) -> None:
    """Write the frames to a CSV file, which is replaced at once; empty cells are NaN."""
    text = io.StringIO(newline='')
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(_COLUMNS)
    writer.writerows(_cells(result) for result in results)
    replace_text(path, text.getvalue())


def replace_text(path: Path, text: str) -> None:
    """Write a text file aside and rename it: whenever this is killed, the file is a whole one."""
    partial = path.with_suffix('.partial')
    partial.write_text(text)
    partial.replace(path)


def append_result(path: Path, result: FrameResult) -> None:
    """Add a frame to a CSV file."""
    with path.open('a', newline='') as file:
        csv.writer(file, lineterminator='\n').writerow(_cells(result))


def _cells(result: FrameResult) -> list[str]:
    counts = [str(int(result.values[key])) for key in _COUNTS]
    values = [result.values[measure.key] for measure in MEASURES]
    numbers = ['' if math.isnan(value) else f'{value:.9g}' for value in values]
    return [str(result.index), result.name, *counts, *numbers]
