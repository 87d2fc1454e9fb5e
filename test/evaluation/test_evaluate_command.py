"""`briges evaluate` with the compact model on a few small frames."""

import csv
import json
import subprocess
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest

from briges_ros.cli import main as command_line
from briges_ros.cli.evaluate import EvaluateJob, chosen_indices, run
from briges_ros.errors import BrigesError
from briges_ros.evaluation.metrics import affine_invariant_depth, depth_metrics
from briges_ros.pipeline import DepthPipeline
from briges_ros.training.datasets import NyuV2

FRAMES = 5
TOKENS = 24


def write_frames(folder):
    """Frames of one's own: noise before planes, in the folder format."""
    for name in ('rgb', 'depth', 'labels', 'splits'):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(FRAMES):
        image = cv2.resize(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8), (96, 72))
        depth = np.tile(np.linspace(1.0, 2.0 + number, 96, dtype=np.float32), (72, 1))
        depth[20:50, 30:60] *= 0.5
        labels = np.zeros((72, 96), np.uint8)
        labels[20:50, 30:60] = 1
        cv2.imwrite(str(folder / 'rgb' / f'{number}.png'), image)
        cv2.imwrite(str(folder / 'labels' / f'{number}.png'), labels)
        np.save(folder / 'depth' / f'{number}.npy', depth)
    names = '\n'.join(str(number) for number in range(FRAMES))
    (folder / 'splits' / 'held_out.txt').write_text(names + '\n')
    return folder


@pytest.fixture(scope='module')
def job(bundle, tmp_path_factory):
    root = tmp_path_factory.mktemp('evaluate')
    return EvaluateJob(
        model=str(bundle.folder),
        data=write_frames(root / 'data'),
        set='folder',
        split='held_out',
        output=root / 'out',
        backend='onnxruntime',
        token_budget=TOKENS,
    )


@pytest.fixture(scope='module')
def done(job):
    run(job)
    return job.output


@pytest.fixture
def calls(monkeypatch):
    """Counts what the pipeline is asked for; `calls.stop` interrupts it at that call."""

    class Calls:
        count = 0
        stop = None

    original = DepthPipeline.__call__

    def counted(self, *args, **kwargs):
        Calls.count += 1
        if Calls.count == Calls.stop:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(DepthPipeline, '__call__', counted)
    return Calls


def rows(folder):
    with (folder / 'frames.csv').open(newline='') as file:
        return list(csv.DictReader(file))


def test_it_writes_everything(job, done):
    frames = rows(done)
    assert [row['name'] for row in frames] == [str(n) for n in range(FRAMES)]
    assert all(int(row['pixels']) == 72 * 96 for row in frames)
    summary = json.loads((done / 'summary.json').read_text())
    mean = np.mean([float(row['abs_rel']) for row in frames])
    measured = summary['measures']['abs_rel']
    assert measured['mean'] == pytest.approx(mean) and measured['frames'] == FRAMES
    assert measured['low'] <= mean <= measured['high']
    assert summary['settings']['token_budget'] == TOKENS
    page = (done / 'report.md').read_text()
    assert f'| AbsRel | {mean:.4f} | ' in page
    pictures = sorted(path.name for path in (done / 'pictures').iterdir())
    assert len(pictures) == FRAMES and 'worst-1.png' in pictures
    for name in pictures:
        assert f'(pictures/{name})' in page
        assert cv2.imread(str(done / 'pictures' / name)) is not None


def test_after_an_interruption_it_goes_on_to_the_same_end(job, done, calls, tmp_path):
    partial = replace(job, output=tmp_path / 'out')
    calls.stop = 4
    with pytest.raises(KeyboardInterrupt):
        run(partial)
    assert len(rows(partial.output)) == 3
    with (partial.output / 'frames.csv').open('a') as file:
        file.write('3,3,69')  # killed in the middle of a line
    calls.stop, calls.count = None, 0
    run(partial)
    assert calls.count == 2 + FRAMES  # the two frames that were missing, and the pictures
    assert rows(partial.output) == rows(done)
    assert (partial.output / 'report.md').read_text() == (done / 'report.md').read_text()


def test_other_settings_do_not_mix(job, done, calls):
    for change, words in (
        ({'token_budget': 12}, ('token budget', '24', '12', '--no-resume')),
        ({'max_depth': 7.0}, ('protocol',)),
    ):
        with pytest.raises(BrigesError) as caught:
            run(replace(job, **change))
        assert all(word in str(caught.value) for word in words)
    assert calls.count == 0


def test_no_resume_starts_over(job, done, calls, tmp_path):
    other = replace(job, output=tmp_path / 'out', limit=2)
    run(other)
    assert [row['index'] for row in rows(other.output)] == ['0', str(FRAMES - 1)]
    run(replace(other, token_budget=12, resume=False))
    assert len(rows(other.output)) == 2
    assert rows(other.output)[0]['abs_rel'] != rows(done)[0]['abs_rel']
    assert len(list((other.output / 'pictures').iterdir())) == 2


def test_against_another_run(job, done, tmp_path):
    coarse = replace(job, output=tmp_path / 'coarse', token_budget=4, against=done)
    run(coarse)
    summary = json.loads((coarse.output / 'summary.json').read_text())
    ours, theirs = rows(coarse.output), rows(done)
    pairs = zip(ours, theirs, strict=True)
    expected = np.mean([float(a['abs_rel']) - float(b['abs_rel']) for a, b in pairs])
    assert summary['differences']['abs_rel']['mean'] == pytest.approx(expected, abs=1e-9)
    assert f'Difference from {done}' in (coarse.output / 'report.md').read_text()
    with pytest.raises(BrigesError, match='nowhere'):
        run(replace(job, against=tmp_path / 'nowhere'))


def test_it_measures_what_the_library_measures(job, data, tmp_path):
    nyu = replace(job, data=data / 'nyuv2', set='nyuv2', output=tmp_path / 'out', limit=2)
    run(nyu)
    frames = NyuV2(data / 'nyuv2', 'held_out')
    pipeline = DepthPipeline.load(nyu.model, 'onnxruntime', token_budget=TOKENS)
    for row, index in zip(rows(nyu.output), (0, len(frames) - 1), strict=True):
        sample = frames[index]
        assert row['name'] == sample.name
        truth = 1.0 / sample.inverse.astype(np.float64)
        relative = pipeline(sample.image).relative
        expected = depth_metrics(affine_invariant_depth(relative, truth, 1e-3, 10.0), truth)
        assert float(row['abs_rel']) == pytest.approx(expected.abs_rel, rel=1e-4)
        assert float(row['delta1']) == pytest.approx(expected.delta1, abs=1e-4)
        assert row['border_wide_f1'] and int(row['border_pixels']) < int(row['pixels'])


def test_sparse_sets(job, data, tmp_path):
    for name, folder in (('kitti', 'kitti_drive'), ('frames', 'frames')):
        sparse = replace(job, data=data / folder, set=name, output=tmp_path / name, limit=2)
        run(sparse)
        for row in rows(sparse.output):
            if 'kitti' in row['name']:
                assert row['border_abs_rel'] == '' and row['border_pixels'] == '0'
            assert 0 < float(row['abs_rel']) < 1


def test_limit_spreads():
    assert chosen_indices(10, None) == chosen_indices(10, 10) == list(range(10))
    assert chosen_indices(10, 4) == [0, 3, 6, 9] and chosen_indices(10, 1) == [0]


def refused(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, 'argv', ['briges', 'evaluate', *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        command_line.main()
    error = capsys.readouterr().err
    assert caught.value.code == 2
    lines = [line for line in error.splitlines() if line.startswith('briges: ')]
    assert len(lines) == 1 and error.splitlines()[-1] == lines[0], error
    return lines[0]


def test_bad_input_is_one_line(job, monkeypatch, capsys, tmp_path):
    def check(word, *arguments):
        options = ['--model', job.model, '--backend', 'onnxruntime', '--no-resume']
        options += ['--token-budget', TOKENS, '-o', tmp_path / 'out']
        line = refused(monkeypatch, capsys, *options, *arguments)
        assert word in line

    check('nowhere', '--data', tmp_path / 'nowhere', '--set', 'nyuv2')
    check('nowhere', '--data', tmp_path / 'nowhere', '--set', 'frames')
    check("'moon'", '--data', job.data, '--set', 'moon')
    check("'moon'", '--data', job.data, '--split', 'moon')
    check("'moon'", '--data', job.data, '--crop', 'moon')
    check('held out', '--data', job.data, '--split', 'train')
    check('has no split', '--data', job.data, '--split', 'train', '--set', 'frames')

    data = write_frames(tmp_path / 'data')
    (data / 'rgb' / '1.png').write_bytes(b'\x89PNG, but not really')
    check('1.png', '--data', data)
    np.save(data / 'depth' / '0.npy', np.full((72, 96), np.nan, np.float32))
    check('frame 0: no pixel of the truth', '--data', data)
    (tmp_path / 'file').write_text('')
    check('file', '--data', job.data, '-o', tmp_path / 'file')


def test_it_needs_no_torch():
    code = (
        'import sys, briges_ros.cli.evaluate; '
        "sys.exit('torch' in sys.modules or 'rclpy' in sys.modules)"
    )
    subprocess.run([sys.executable, '-c', code], check=True)
