"""An engine is loaded only if it is whole, ours, and what was asked for; else it is built again."""

import json
import multiprocessing
import os
import signal
import stat
import time
from dataclasses import fields, replace
from pathlib import Path

import pytest

from briges_ros.inference.engine import EngineError
from briges_ros.inference.engine_cache import EngineCache, EngineKey, default_folder

KEY = EngineKey(
    bundle='0' * 64,
    graph='depth_encoder',
    library='tensorrt 10.3.0',
    gpu='Orin (nvgpu)',
    compute_capability='8.7',
    precision='fp16',
    shapes=(('image', (1, 3, 294, 392)),),
)
PLAN = bytes(range(256)) * 100
DETAILS = {'outputs': [['level0', 'float16', [1, 384, 21, 28]]]}
PROCESSES = multiprocessing.get_context('spawn')


@pytest.fixture
def cache(tmp_path):
    return EngineCache(tmp_path / 'engines')


def build():
    return PLAN, DETAILS


def no_build():
    raise AssertionError('it should have been loaded')


def engine_file(cache, suffix='engine', key=KEY):
    return cache.folder / f'{key.name}.{suffix}'


def test_what_was_built_is_loaded_the_next_time(cache):
    first = cache.get(KEY, build)
    again = EngineCache(cache.folder).get(KEY, no_build)
    assert (first.built, again.built) == (True, False)
    assert again.content == first.content == PLAN
    assert again.details == first.details == DETAILS


def test_the_provenance_says_what_it_is(cache):
    cache.get(KEY, build)
    values = json.loads(engine_file(cache, 'json').read_text())
    assert values['key']['library'] == 'tensorrt 10.3.0'
    assert values['key']['shapes'] == [['image', [1, 3, 294, 392]]]
    assert values['bytes'] == len(PLAN) and values['built'].startswith('20')
    assert sorted(path.suffix for path in cache.folder.iterdir()) == ['.engine', '.json', '.lock']


def test_only_its_user_can_read_or_write_it(cache):
    old = os.umask(0)
    try:
        cache.get(KEY, build)
    finally:
        os.umask(old)
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700
    for path in cache.folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


OTHER = {'shapes': (('image', (1, 3, 294, 378)),), 'options': (('level', '5'),)}


@pytest.mark.parametrize('name', [field.name for field in fields(EngineKey)])
def test_anything_else_is_another_engine(cache, name):
    cache.get(KEY, build)
    other = replace(KEY, **{name: OTHER.get(name, 'other')})
    assert cache.load(other) is None
    assert cache.get(other, lambda: (b'other', {})).content == b'other'
    assert cache.get(KEY, no_build).content == PLAN


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b'')


def link(path):
    moved = path.with_suffix('.moved')
    path.rename(moved)
    path.symlink_to(moved)


def pipe(path):
    path.unlink()
    os.mkfifo(path, 0o600)


def group_writable(path):
    path.chmod(0o660)


def world_writable(path):
    path.chmod(0o602)


@pytest.mark.parametrize('suffix', ['engine', 'json'])
@pytest.mark.parametrize(
    'damage', [Path.unlink, cut, flip, empty, link, pipe, group_writable, world_writable]
)
def test_what_is_damaged_or_open_to_others_is_built_again(cache, suffix, damage):
    cache.get(KEY, build)
    damage(engine_file(cache, suffix))
    if damage is cut and suffix == 'json':  # its last byte is a line's end
        cut(engine_file(cache, suffix))
    elif damage is flip and suffix == 'json':
        path = engine_file(cache, suffix)
        path.write_text(path.read_text().replace(KEY.bundle, '1' * 64))
    assert cache.load(KEY) is None
    assert cache.get(KEY, lambda: (b'new', {})).content == b'new'
    assert cache.get(KEY, no_build).content == b'new'


def test_what_does_not_run_here_can_be_forgotten(cache):
    cache.get(KEY, build)
    other = replace(KEY, graph='gate_decoder')
    cache.get(other, build)
    cache.discard(KEY)
    cache.discard(KEY)
    assert cache.load(KEY) is None and cache.load(other) is not None
    assert cache.get(KEY, lambda: (b'new', {})).content == b'new'


def test_what_is_known_already_can_be_kept(cache):
    cache.put(KEY, b'old', {})
    cache.put(KEY, PLAN, DETAILS)
    assert cache.get(KEY, no_build).content == PLAN
    assert stat.S_IMODE(engine_file(cache).stat().st_mode) == 0o600


def test_provenance_of_another_format_is_stale(cache):
    cache.get(KEY, build)
    path = engine_file(cache, 'json')
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, 'format': 0}))
    assert cache.load(KEY) is None
    path.write_text(json.dumps([]))
    assert cache.load(KEY) is None


def test_an_engine_under_the_name_of_another_is_not_loaded(cache):
    other = replace(KEY, gpu='NVIDIA RTX A2000')
    cache.get(KEY, build)
    for suffix in ('engine', 'json'):
        engine_file(cache, suffix).rename(engine_file(cache, suffix, other))
    assert cache.load(other) is None


def test_one_of_another_user_is_not_loaded(cache, monkeypatch, caplog):
    cache.get(KEY, build)
    if os.geteuid() == 0:  # a real other owner
        os.chown(engine_file(cache), 65534, 65534)
    else:  # only root can give files away: be another user instead
        monkeypatch.setattr(os, 'geteuid', lambda: os.getuid() + 1)
    assert cache.load(KEY) is None
    assert 'belongs to another user' in caplog.text


def test_a_folder_that_others_can_write_to_is_refused(cache):
    cache.get(KEY, build)
    cache.folder.chmod(0o770)
    assert cache.load(KEY) is None
    with pytest.raises(EngineError, match='can be written by others; chmod go-w') as info:
        cache.get(KEY, build)
    assert '\n' not in str(info.value)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(EngineError, match=r'cannot keep engines .*set XDG_CACHE_HOME'):
        EngineCache(tmp_path / 'file' / 'engines').get(KEY, build)


def test_a_full_disk_leaves_nothing_behind(cache, monkeypatch):
    def full(handle):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(EngineError, match=r'No space left on device.*make room'):
        cache.get(KEY, build)
    assert [path.suffix for path in cache.folder.iterdir()] == ['.lock']


def test_a_failed_build_leaves_nothing_behind_and_can_be_repeated(cache):
    def fail():
        raise EngineError('too little memory')

    with pytest.raises(EngineError, match='too little memory'):
        cache.get(KEY, fail)
    assert [path.suffix for path in cache.folder.iterdir()] == ['.lock']
    assert cache.get(KEY, build, timeout=5).built


def test_it_lies_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    assert default_folder() == tmp_path / 'briges_ros' / 'engines'
    monkeypatch.delenv('XDG_CACHE_HOME')
    monkeypatch.setenv('HOME', str(tmp_path))
    assert EngineCache().folder == tmp_path / '.cache' / 'briges_ros' / 'engines'


# Other processes


def get_slowly(folder, started, go_on, results):
    def slow_build():
        started.set()
        assert go_on.wait(60)
        return PLAN, {'pid': os.getpid()}

    engine = EngineCache(folder).get(KEY, slow_build)
    results.put((os.getpid(), engine.built, engine.details['pid']))


def test_two_processes_build_it_once(cache):
    started, go_on, results = PROCESSES.Event(), PROCESSES.Event(), PROCESSES.Queue()
    arguments = (cache.folder, started, go_on, results)
    processes = [PROCESSES.Process(target=get_slowly, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    assert started.wait(60)
    with pytest.raises(EngineError, match='another process has been building'):
        cache.get(KEY, no_build, timeout=0)
    # Another engine is not held up.
    assert cache.get(replace(KEY, graph='gate_decoder'), build, timeout=0).built
    go_on.set()
    answers = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
    assert sorted(built for _, built, _ in answers) == [False, True]
    (builder,) = (pid for pid, built, _ in answers if built)
    assert [by for _, _, by in answers] == [builder, builder]


def die_while_writing(folder, files_before, reached):
    """Hang, to be killed, where all but the last file are on the disk."""
    fsync, calls = os.fsync, []

    def hang(handle):
        fsync(handle)
        calls.append(handle)
        if len(calls) > files_before:
            reached.set()
            time.sleep(600)

    os.fsync = hang
    EngineCache(folder).get(KEY, build)


@pytest.mark.parametrize('files_before', [0, 1])
def test_a_writer_that_is_killed_leaves_no_engine_and_no_lock(cache, files_before):
    reached = PROCESSES.Event()
    process = PROCESSES.Process(
        target=die_while_writing, args=(cache.folder, files_before, reached)
    )
    process.start()
    assert reached.wait(60)
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert list(cache.folder.glob('*.partial'))  # it was killed where it hurts
    assert cache.load(KEY) is None
    assert cache.get(KEY, lambda: (b'new', {}), timeout=0).content == b'new'
    assert sorted(path.suffix for path in cache.folder.iterdir()) == ['.engine', '.json', '.lock']
