"""Built engines on disk: bytes in, bytes out, and never those of somebody else.

An engine is code that runs with the user's rights, and building one takes minutes. So an engine is
loaded only if nobody else could have written it, if it is whole, and if everything that it was
built from is as it was; else it is built again. Each engine is a pair of files:

    FOLDER/<graph>-<digest of the key>.engine     the bytes
    FOLDER/<graph>-<digest of the key>.json       its key, sha256 and what the builder says of it

and a ``.lock``, which one process at a time holds while it builds. This module knows nothing of
TensorRT.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from briges_ros.inference.engine import EngineError

log = logging.getLogger('briges_ros')

FORMAT = 1
DIGITS = 24  # of the key's digest in a file's name
LOCK_POLL_S = 0.2
WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True)
class EngineKey:
    """All that decides what an engine is; another value is another engine.

    Attributes:
        bundle: sha256 of the bundle's ``model.json``, which holds that of its graphs.
        graph: name of the graph in the bundle.
        library: flavour and version, e.g. 'tensorrt 10.3.0'.
        gpu: its name.
        compute_capability: e.g. '8.7'. Of a plan for several GPUs: '8.6+8.9'.
        precision: e.g. 'fp16'.
        shapes: of the graph's inputs, (name, size), sorted.
        options: other settings of the build that change the engine, (name, value), sorted.
    """

    bundle: str
    graph: str
    library: str
    gpu: str
    compute_capability: str
    precision: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    options: tuple[tuple[str, str], ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The key as it stands in the provenance."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return values

    @property
    def name(self) -> str:
        """What the files are called."""
        text = json.dumps(self.as_json(), sort_keys=True).encode()
        return f'{self.graph}-{hashlib.sha256(text).hexdigest()[:DIGITS]}'


@dataclass(frozen=True)
class CachedEngine:
    """An engine.

    Attributes:
        content: the serialised engine.
        details: what the builder says of it (inputs, outputs, ...); plain JSON.
        built: now, or loaded from the disk.
    """

    content: bytes = field(repr=False)
    details: dict[str, Any]
    built: bool


Build = Callable[[], tuple[bytes, dict[str, Any]]]
"""Gives an engine and its details; it may take minutes."""


def default_folder() -> Path:
    """``$XDG_CACHE_HOME/briges_ros/engines``."""
    cache = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    return Path(cache) / 'briges_ros' / 'engines'


class EngineCache:
    """Engines in one folder. Several processes may use it at once.

    Args:
        folder: made, for its user alone, when an engine is built. Default: `default_folder`.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or default_folder()

    def load(self, key: EngineKey) -> CachedEngine | None:
        """The engine of a key, or None if there is none that may be loaded; the log says why."""
        try:
            return self._load(key)
        except FileNotFoundError:
            return None
        except (_UnusableError, OSError, ValueError, KeyError, TypeError) as error:
            log.warning('engine %s is not loaded: %s', self.folder / key.name, error)
            return None

    def get(self, key: EngineKey, build: Build, timeout: float | None = None) -> CachedEngine:
        """Load the engine of a key, or build and keep it.

        If another process is building it, that is waited for.

        Args:
            key: which engine.
            build: makes it.
            timeout: seconds to wait for another process; None: for ever.

        Raises:
            EngineError: the folder cannot be used, or another process took too long.
        """
        cached = self.load(key)
        if cached is not None:
            return cached
        self.make_folder()
        with self._lock(key, timeout):
            cached = self.load(key)  # another process may have built it meanwhile
            if cached is not None:
                return cached
            content, details = build()
            details = json.loads(json.dumps(details))  # as it will be loaded
            self._save(key, content, details)
        return CachedEngine(content, details, built=True)

    def discard(self, key: EngineKey) -> None:
        """Forget an engine that turned out not to run here."""
        for suffix in ('json', 'engine'):  # what names the engine goes first
            (self.folder / f'{key.name}.{suffix}').unlink(missing_ok=True)

    def put(self, key: EngineKey, content: bytes, details: dict[str, Any]) -> None:
        """Keep something that is known already, in place of what was there.

        Raises:
            EngineError: the folder cannot be used.
        """
        self.make_folder()
        with self._lock(key, None):
            self._save(key, content, details)

    def _load(self, key: EngineKey) -> CachedEngine:
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            # Who may write into the folder may put another file in the place of ours.
            _check_ours(folder, 'its folder')
            values = json.loads(_read(folder, f'{key.name}.json'))
            content = _read(folder, f'{key.name}.engine')
        finally:
            os.close(folder)
        if values['format'] != FORMAT or values['key'] != key.as_json():
            raise _UnusableError('it was built for something else')
        if values['sha256'] != hashlib.sha256(content).hexdigest():
            raise _UnusableError('it is corrupt (its sha256 is not the one noted)')
        return CachedEngine(content, dict(values['details']), built=False)

    def make_folder(self) -> None:
        """Make the folder, for its user alone, or see that nobody else can write into it.

        Raises:
            EngineError: it cannot be made, or others can write into it.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise EngineError(
                f'{self.folder} cannot keep engines ({error.strerror}); '
                'set XDG_CACHE_HOME to a folder that can be written'
            ) from error
        try:
            _check_ours(folder, 'it')
        except _UnusableError as error:
            raise EngineError(
                f'{self.folder} cannot keep engines: {error}; '
                f'chmod go-w {self.folder}, or set XDG_CACHE_HOME to a folder of your own'
            ) from error
        finally:
            os.close(folder)

    @contextlib.contextmanager
    def _lock(self, key: EngineKey, timeout: float | None) -> Iterator[None]:
        """Hold the key's lock; the system lets go of it if we die."""
        path = self.folder / f'{key.name}.lock'
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            lock = os.open(path, flags, 0o600)
        except OSError as error:
            raise EngineError(f'{path} cannot be opened ({error.strerror}); remove it') from error
        try:
            deadline = None if timeout is None else time.monotonic() + timeout
            waiting = False
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    pass
                if not waiting:
                    log.info('waiting for another process that builds %s', key.name)
                    waiting = True
                if deadline is not None and time.monotonic() > deadline:
                    raise EngineError(
                        f'another process has been building {key.name} for {timeout:g} s '
                        f'(it holds {path}); wait for it or end it'
                    )
                time.sleep(LOCK_POLL_S)
            # Whoever died while it wrote left a file that nobody will ever name.
            for left in self.folder.glob(f'{key.name}.*.partial'):
                left.unlink(missing_ok=True)
            yield
        finally:
            os.close(lock)

    def _save(self, key: EngineKey, content: bytes, details: dict[str, Any]) -> None:
        values = {
            'format': FORMAT,
            'key': key.as_json(),
            'sha256': hashlib.sha256(content).hexdigest(),
            'bytes': len(content),
            'built': time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()),
            'details': details,
        }
        text = json.dumps(values, indent=2) + '\n'
        try:
            # What names the engine comes last: until then there is none.
            self._write(key, 'engine', content)
            self._write(key, 'json', text.encode())
        except OSError as error:
            raise EngineError(
                f'{self.folder} cannot keep the engine {key.name} of {len(content) / 1e6:.0f} MB '
                f'({error.strerror}); make room, or set XDG_CACHE_HOME to another folder'
            ) from error

    def _write(self, key: EngineKey, suffix: str, content: bytes) -> None:
        """Write a file, for its user alone, that is there whole or not at all."""
        handle, partial = tempfile.mkstemp('.partial', f'{key.name}.', self.folder)
        try:
            with os.fdopen(handle, 'wb') as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(partial).replace(self.folder / f'{key.name}.{suffix}')
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise


class _UnusableError(Exception):
    """Why an engine must not be loaded."""


def _read(folder: int, name: str) -> bytes:
    """A file's content, if it is ours alone; what was checked is what is read."""
    # NONBLOCK: opening a pipe would wait for its other end.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    handle = os.open(name, flags, dir_fd=folder)
    with os.fdopen(handle, 'rb') as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise _UnusableError(f'{name} is no plain file')
        _check_ours(handle, name)
        return file.read()


def _check_ours(handle: int, what: str) -> None:
    status = os.fstat(handle)
    if status.st_uid != os.geteuid():
        raise _UnusableError(f'{what} belongs to another user (id {status.st_uid})')
    if status.st_mode & WRITABLE_BY_OTHERS:
        raise _UnusableError(f'{what} can be written by others')
