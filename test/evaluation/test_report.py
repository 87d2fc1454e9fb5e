"""Results files, the report and its pictures."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from briges_ros.errors import BrigesError
from briges_ros.evaluation.pictures import ERROR_RANGE, comparison
from briges_ros.evaluation.report import compare, intervals, markdown, shown_frames, summary
from briges_ros.evaluation.results import (
    MEASURES,
    append_result,
    column,
    frame_result,
    read_results,
    replace_text,
    write_results,
)

SETTINGS = {'model': 'net', 'set': 'rooms', 'split': 'held_out'}


def results(count=12, factor=1.0, sparse=False):
    rng = np.random.default_rng(0)
    found = []
    for index in range(count):
        truth = np.full((30, 40), 2.0)
        truth[10:20, 10:30] = 1.0
        noise = rng.normal(0.0, 0.02 * (index + 1), truth.shape)
        depth = truth * np.exp(factor * noise)
        if sparse:
            truth[::2] = np.nan
        found.append(frame_result(index, f'room/{index}', depth, truth, None))
    return found


def test_a_frame_has_every_measure():
    (frame,) = results(1)
    assert set(frame.values) == {measure.key for measure in MEASURES} | {'pixels', 'border_pixels'}
    assert frame.values['pixels'] == 1200 and 0 < frame.values['border_pixels'] < 1200
    assert 0.0 < frame.values['abs_rel'] < 0.05 < frame.values['border_f1']


def test_results_survive_the_file(tmp_path):
    path, before = tmp_path / 'frames.csv', [*results(3), *results(1, sparse=True)]
    write_results(path, before[:2])
    for result in before[2:]:
        append_result(path, result)
    for left, right in zip(read_results(path), before, strict=True):
        assert (left.index, left.name) == (right.index, right.name)
        for key, value in right.values.items():
            assert left.values[key] == pytest.approx(value, rel=1e-8, nan_ok=True)


def test_a_line_that_was_cut_short_is_dropped(tmp_path):
    path = tmp_path / 'frames.csv'
    write_results(path, results(3))
    text = path.read_text()
    path.write_text(text[: text.rindex('\n') - 9])
    assert [result.index for result in read_results(path)] == [0, 1]


def test_a_text_that_cannot_be_finished_leaves_the_one_before(tmp_path, monkeypatch):
    path = tmp_path / 'report.md'
    replace_text(path, 'first')
    write = Path.write_text

    def half(self, text):
        write(self, text[: len(text) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, 'write_text', half)
    with pytest.raises(KeyboardInterrupt):
        replace_text(path, 'second')
    assert path.read_text() == 'first'
    monkeypatch.undo()
    replace_text(path, 'third')
    assert path.read_text() == 'third' and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize('text', ['', 'a,b\n1,2\n', 'index,name\n'])
def test_another_file_is_refused(tmp_path, text):
    path = tmp_path / 'frames.csv'
    path.write_text(text)
    with pytest.raises(BrigesError, match=r'frames\.csv'):
        read_results(path)


def test_a_garbled_number_is_refused(tmp_path):
    path = tmp_path / 'frames.csv'
    write_results(path, results(2))
    path.write_text(path.read_text().replace('room/1,1200', 'room/1,many'))
    with pytest.raises(BrigesError, match='many'):
        read_results(path)


def test_shown_frames_are_the_best_the_median_and_the_worst_once_each():
    found = results(12)
    ranks = {name: frame.index for name, frame in shown_frames(found).items()}
    assert [ranks[f'worst-{n}'] for n in (1, 2, 3)] == [11, 10, 9]
    assert [ranks[f'best-{n}'] for n in (1, 2, 3)] == [0, 1, 2]
    assert [ranks[f'median-{n}'] for n in (1, 2, 3)] == [5, 6, 7]
    for count in range(1, 9):
        shown = [frame.index for frame in shown_frames(results(count)).values()]
        assert len(set(shown)) == len(shown) == count


def test_comparison_says_which_is_better():
    ours, theirs = results(12, factor=0.5), results(12)
    verdicts = {}
    for name, (left, right) in {
        'better': (ours, theirs),
        'worse': (theirs, ours),
        'undecided': (ours, ours),
    }.items():
        page = markdown(SETTINGS, left, intervals(left, 1), 1, compare(left, right, 1, 'that'), {})
        row = next(
            line for line in page.splitlines() if line.startswith('| delta1 | ') and name in line
        )
        verdicts[name] = row
    assert '| +0' in verdicts['better'] and '| -0' in verdicts['worse']


def test_comparison_is_of_all_our_frames():
    ours, theirs = results(12, factor=0.5), results(12)
    some = compare(ours[3:8], theirs[::-1], 1, 'that').differences['abs_rel']
    assert some.frames == 5
    expected = column(ours[3:8], 'abs_rel') - column(theirs[3:8], 'abs_rel')
    assert some.mean == pytest.approx(expected.mean())
    with pytest.raises(ValueError, match='lacks 3 of 8 frames, room/0 first'):
        compare(ours[:8], theirs[3:], 1, 'that')
    with pytest.raises(ValueError, match='lacks 1 of 2 frames, room/1 first'):
        compare(ours[:2], [theirs[0], replace(theirs[1], name='kitchen/1')], 1, 'that')


def test_page_and_summary_agree_with_the_frames():
    found = results(12, sparse=True)
    means = intervals(found, 6)
    page = markdown(SETTINGS, found, means, 6, None, {'worst-1': 'pictures/worst-1.png'})
    mean = column(found, 'abs_rel').mean()
    assert f'| AbsRel | {mean:.4f} | ' in page
    assert '6 neighbouring frames' in page and '(pictures/worst-1.png)' in page
    assert '| boundary F1, 1 px | ' in page
    values = json.loads(json.dumps(summary(SETTINGS, means, 6, None), allow_nan=False))
    assert values['measures']['abs_rel']['mean'] == pytest.approx(mean)
    assert values['settings'] == SETTINGS and values['bootstrap_block'] == 6


def test_measures_that_no_frame_has():
    found = results(4)
    for result in found:
        result.values.update(border_f1=math.nan)
    means = intervals(found, 1)
    assert '| boundary F1, 1 px | - | - to - | higher | 0 |' in markdown(
        SETTINGS, found, means, 1, None, {}
    )
    assert summary(SETTINGS, means, 1, None)['measures']['border_f1']['mean'] is None


def panels(picture, shape, rows, columns):
    """The four panels of a picture, cut out by its layout."""
    height, width = shape
    out = []
    for row in range(rows):
        for col in range(columns):
            top, left = 6 + 26 + 6 + 26 + row * (height + 26 + 6), 6 + col * (width + 6)
            out.append(picture[top : top + height, left : left + width])
    return out


def test_truth_and_prediction_share_their_colours_and_the_error_has_its_own():
    truth = np.tile(np.geomspace(1.0, 8.0, 480), (360, 1))
    image = np.full((360, 480, 3), 77, np.uint8)
    depth = truth.copy()
    depth[:90] *= 1 + ERROR_RANGE
    depth[270:] *= 1 - ERROR_RANGE
    picture = comparison(image, truth, depth, 'title')
    shown, true, predicted, error = panels(picture, (360, 480), 2, 2)
    assert (shown == 77).all()
    np.testing.assert_array_equal(true[90:270], predicted[90:270])
    assert (true[:90] != predicted[:90]).any()
    near, far = true[0, 20].astype(int), true[0, -20].astype(int)
    assert near[0] > near[2] and far[2] > far[0]  # near is warm, far is cool
    assert (error[100] > 240).all()
    too_far, too_near = error[10, 10].astype(int), error[300, 10].astype(int)
    assert too_far[2] > too_far[0] > too_far[1] and too_near[0] > too_near[1] > too_near[2]


def test_wide_sparse_and_small_frames():
    rng = np.random.default_rng(0)
    truth = np.where(rng.random((120, 500)) < 0.05, 10.0, np.nan)
    picture = comparison(np.zeros((120, 500, 3), np.uint8), truth, np.full_like(truth, 10.0), 'x')
    _, true, _, _ = panels(picture, (120, 500), 4, 1)
    known = np.isfinite(truth).sum()
    coloured = (true != 80).any(axis=2).sum()
    assert known * 3 < coloured <= known * 9  # points are enlarged so that they can be seen
    small = comparison(np.zeros((30, 40, 3), np.uint8), np.ones((30, 40)), np.ones((30, 40)), 'x')
    assert small.shape[1] > 2 * 480 and small.dtype == np.uint8
    nothing = np.full((30, 40), np.nan)
    comparison(np.zeros((30, 40, 3), np.uint8), nothing, nothing, 'x')
