"""`briges evaluate` with the compact model on a few small frames."""

import csv
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from briges_ros.cli import evaluate
from briges_ros.cli import main as command_line
from briges_ros.cli.evaluate import EvaluateJob, chosen_indices, run
from briges_ros.errors import BrigesError
from briges_ros.evaluation.metrics import affine_invariant_depth, depth_metrics
from briges_ros.pipeline import DepthPipeline
from briges_ros.training.datasets import NyuV2

pytestmark = pytest.mark.usefixtures('opened_once')
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


def test_more_frames_can_be_added(job, done, calls, tmp_path):
    some = replace(job, output=tmp_path / 'out', limit=2)
    run(some)
    calls.count = 0
    run(replace(some, limit=None))
    assert rows(some.output) == rows(done)
    assert calls.count == FRAMES - 2 + FRAMES  # those that were missing, and the pictures


def test_killed_while_it_writes_the_report_it_leaves_whole_files(job, tmp_path, monkeypatch):
    some = replace(job, output=tmp_path / 'out', limit=3)
    run(some)
    run(some)  # from frames.csv, which rounds
    kept = {path: path.read_bytes() for path in some.output.rglob('*') if path.is_file()}
    write = Path.write_text

    def half_a_text(self, text):
        write(self, text[: len(text) // 2] if self.stem == name else text)
        if self.stem == name:
            raise KeyboardInterrupt

    def half_a_picture(path, rgb):
        Path(path).write_bytes(b'PNG')
        raise KeyboardInterrupt

    for name in ('settings', 'frames', 'summary', 'report', 'picture'):
        with monkeypatch.context() as patch:
            patch.setattr(Path, 'write_text', half_a_text)
            if name == 'picture':
                patch.setattr(evaluate, 'write_png', half_a_picture)
            with pytest.raises(KeyboardInterrupt):
                run(some)
        assert all(path.read_bytes() == content for path, content in kept.items()), name
    run(some)
    left = {path for path in some.output.rglob('*') if path.is_file()}
    assert left == set(kept)


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


def kept_as(done, folder, **changes):
    """A copy of results as if they had been made with other settings; None = not kept."""
    shutil.copytree(done, folder)
    path = folder / 'settings.json'
    settings = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))
    return folder


@pytest.mark.parametrize(
    ('change', 'complaint'),
    [
        ({'crop': 'eigen'}, "protocol is '.*crop none.*' there and '.*crop eigen.*' here"),
        ({'max_depth': 7.0}, "protocol is '.*to 80 m.*' there and '.*to 7 m.*' here"),
        ({'limit': 2}, "limit is 'none' there and 2 here"),
    ],
)
def test_runs_of_other_settings_are_not_compared(job, done, calls, tmp_path, change, complaint):
    with pytest.raises(BrigesError, match=rf'--against {done}: {complaint}'):
        run(replace(job, output=tmp_path / 'out', against=done, **change))
    assert calls.count == 0 and not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    ('kept', 'complaint'),
    [
        ({'set': 'nyuv2', 'data': '/moon'}, "set is 'nyuv2' there and 'folder' here"),
        ({'split': 'train'}, "split is 'train' there and 'held_out' here"),
        ({'data': '/moon'}, "data is '/moon' there and '/.*/data' here"),
        ({'frames_in_split': 9}, 'frames in split is 9 there and 5 here'),
        ({'limit': None}, "limit is 'not known' there and 'none' here"),
    ],
)
def test_results_of_other_frames_are_not_compared(job, done, calls, tmp_path, kept, complaint):
    other = kept_as(done, tmp_path / 'other', **kept)
    with pytest.raises(BrigesError, match=rf'--against {other}: {complaint}') as caught:
        run(replace(job, output=tmp_path / 'out', against=other))
    assert '\n' not in str(caught.value) and calls.count == 0


def test_another_model_backend_and_token_budget_are_what_is_compared(job, done, tmp_path):
    other = kept_as(
        done,
        tmp_path / 'other',
        model='m',
        model_sha256='0',
        engine='e fp16',
        token_budget=9,
        version='0',
    )
    run(replace(job, output=tmp_path / 'out', against=other, limit=FRAMES + 1))  # all there are
    summary = json.loads((tmp_path / 'out' / 'summary.json').read_text())
    assert summary['differences']['abs_rel']['frames'] == FRAMES


def test_a_run_that_has_not_ended_is_not_compared(job, done, calls, tmp_path):
    other = kept_as(done, tmp_path / 'other')
    table = other / 'frames.csv'
    lines = table.read_text().splitlines(keepends=True)
    table.write_text(''.join(lines[:-2]))
    with pytest.raises(BrigesError, match='2 of its 5 frames are missing; let that run end'):
        run(replace(job, output=tmp_path / 'out', against=other))
    assert calls.count == 0
    table.write_text(''.join(lines))
    (other / 'settings.json').write_text('[]')
    with pytest.raises(BrigesError, match=r'settings\.json does not say'):
        run(replace(job, output=tmp_path / 'out', against=other))
    (other / 'settings.json').unlink()
    with pytest.raises(BrigesError, match=r'settings\.json does not say'):
        run(replace(job, output=tmp_path / 'out', against=other))


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
