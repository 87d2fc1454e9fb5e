"""What a whole evaluation says: numbers for programs, a page for people."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from briges_ros.evaluation.bootstrap import LEVEL, Interval, mean_interval, paired_difference
from briges_ros.evaluation.results import MEASURES, FrameResult, Measure, column

SHOWN = 3  # pictures of each kind: best, median, worst
_WORST = 10


@dataclass(frozen=True)
class Comparison:
    """Another run on the same frames.

    Attributes:
        name: of the other run, for people.
        differences: ours - theirs, by the key of the measure.
    """

    name: str
    differences: Mapping[str, Interval]


def intervals(results: Sequence[FrameResult], block: int) -> dict[str, Interval]:
    """The mean of each measure with its confidence interval; see `bootstrap`."""
    return {m.key: mean_interval(column(results, m.key), block) for m in MEASURES}


def compare(
    ours: Sequence[FrameResult], theirs: Sequence[FrameResult], block: int, name: str
) -> Comparison:
    """The paired differences of two runs over our frames.

    Raises:
        ValueError: they lack one of these frames; its message names it.
    """
    others = {(result.index, result.name): result for result in theirs}
    lacking = [our.name for our in ours if (our.index, our.name) not in others]
    if lacking:
        raise ValueError(f'lacks {len(lacking)} of {len(ours)} frames, {lacking[0]} first')
    paired = [others[our.index, our.name] for our in ours]
    return Comparison(
        name,
        {
            m.key: paired_difference(column(ours, m.key), column(paired, m.key), block)
            for m in MEASURES
        },
    )


def shown_frames(results: Sequence[FrameResult]) -> dict[str, FrameResult]:
    """The frames to make pictures of, by the name of the picture.

    The `SHOWN` best, median and worst ones by AbsRel; each frame once, however few there are.
    """
    ranked = sorted(results, key=lambda result: result.values['abs_rel'])
    middle = max(0, len(ranked) // 2 - SHOWN // 2)
    chosen: dict[str, FrameResult] = {}
    for kind, frames in (
        ('worst', ranked[::-1][:SHOWN]),
        ('best', ranked[:SHOWN]),
        ('median', ranked[middle : middle + SHOWN]),
    ):
        fresh = [frame for frame in frames if frame not in chosen.values()]
        chosen.update({f'{kind}-{number}': frame for number, frame in enumerate(fresh, 1)})
    return chosen


def summary(
    settings: Mapping[str, Any],
    means: Mapping[str, Interval],
    block: int,
    comparison: Comparison | None,
) -> dict[str, Any]:
    """Everything but the single frames, as JSON has it: null stands for NaN."""
    values: dict[str, Any] = {
        'settings': dict(settings),
        'confidence_level': LEVEL,
        'bootstrap_block': block,
        'measures': _json(means),
    }
    if comparison is not None:
        values['against'] = comparison.name
        values['differences'] = _json(comparison.differences)
    return values


def _json(values: Mapping[str, Interval]) -> dict[str, Any]:
    return {
        key: {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in asdict(interval).items()
        }
        for key, interval in values.items()
    }


def markdown(
    settings: Mapping[str, Any],
    results: Sequence[FrameResult],
    means: Mapping[str, Interval],
    block: int,
    comparison: Comparison | None,
    pictures: Mapping[str, str],
) -> str:
    """The page for people.

    Args:
        settings: what was run on what, in the order to show it.
        results: the frames.
        means: of `intervals`.
        block: frames drawn together for the intervals.
        comparison: with another run, or None.
        pictures: path, relative to the page, of each picture of `shown_frames`.
    """
    related = (
        f'{block} neighbouring frames, which may show one scene, are drawn together'
        if block > 1
        else 'frames are taken as independent'
    )
    lines = [
        f'# {settings["model"]} on {settings["set"]}, {settings["split"]}',
        '',
        *_table(
            ('setting', 'value'),
            [(key.replace('_', ' '), str(value)) for key, value in settings.items()],
        ),
        '',
        f'## Means over {len(results)} frames',
        '',
        f'Each is the mean of the values of the frames, with the {100 * LEVEL:.0f} % interval of '
        f'the bootstrap ({related}).',
        '',
        *_table(
            ('measure', 'mean', f'{100 * LEVEL:.0f} % interval', 'better', 'frames'),
            [_mean_row(measure, means[measure.key]) for measure in MEASURES],
        ),
        '',
    ]
    if comparison is not None:
        lines += [
            f'## Difference from {comparison.name}',
            '',
            'This run minus that one, frame by frame. Where the interval holds 0, the choice of '
            'frames may explain the difference.',
            '',
            *_table(
                ('measure', 'difference', f'{100 * LEVEL:.0f} % interval', 'verdict', 'frames'),
                [_difference_row(m, comparison.differences[m.key]) for m in MEASURES],
            ),
            '',
        ]
    ranked = sorted(results, key=lambda result: -result.values['abs_rel'])
    keys = ('abs_rel', 'delta1', 'rmse_m', 'border_abs_rel')
    lines += [
        f'## Worst {min(_WORST, len(ranked))} frames by AbsRel',
        '',
        *_table(
            ('frame', *(measure.title for measure in MEASURES if measure.key in keys)),
            [(f.name, *(_number(f.values[key]) for key in keys)) for f in ranked[:_WORST]],
        ),
        '',
        '## Pictures',
        '',
        'Near is warm, far is cool; truth and prediction have one scale. The error has one scale '
        'in all pictures: too near is orange, too far is purple.',
        '',
    ]
    shown = shown_frames(results)
    for name, path in pictures.items():
        frame = shown[name]
        caption = f'{name}: {frame.name}, AbsRel {_number(frame.values["abs_rel"])}'
        lines += [f'### {caption}', '', f'![{caption}]({path})', '']
    return '\n'.join(lines)


def _mean_row(measure: Measure, interval: Interval) -> tuple[str, ...]:
    better = 'higher' if measure.higher else 'lower'
    return (
        measure.title,
        _number(interval.mean),
        _ends(interval, ''),
        better,
        str(interval.frames),
    )


def _difference_row(measure: Measure, interval: Interval) -> tuple[str, ...]:
    if not (interval.low > 0 or interval.high < 0):
        verdict = 'undecided'
    else:
        verdict = 'better' if (interval.mean > 0) == measure.higher else 'worse'
    return (
        measure.title,
        _number(interval.mean, '+'),
        _ends(interval, '+'),
        verdict,
        str(interval.frames),
    )


def _ends(interval: Interval, sign: str) -> str:
    return f'{_number(interval.low, sign)} to {_number(interval.high, sign)}'


def _number(value: float, sign: str = '') -> str:
    if math.isnan(value):
        return '-'
    return f'{value:{sign}.2f}' if abs(value) >= 10 else f'{value:{sign}.4f}'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [list(head), ['---'] * len(head), *map(list, rows)]
    return ['| ' + ' | '.join(row) + ' |' for row in cells]
