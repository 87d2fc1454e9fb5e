"""The targets of the Makefile, and the scripts behind them, as a person meets them."""

import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith(('MAKE', 'MFLAGS'))}
PATIENCE = 120.0  # s; a deadline, not a duration

needs_setup = pytest.mark.skipif(
    not (ROOT / 'install' / '.built').is_file(), reason='not set up by make: run make setup'
)


def bash(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ['bash', '-c', script],
        cwd='/',
        env={**ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
    )


def test_help_names_every_target():
    shown = subprocess.run(
        ['make'], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=True
    ).stdout
    for target in ('help', 'setup', 'demo', 'test', 'node', 'docs', 'clean'):
        assert re.search(rf'^ +{target} +\w.*\.$', shown, re.M), shown


class TestCheckTools:
    def check(self, python: str, path: str | None = None) -> tuple[int, str]:
        environment = {} if path is None else {'PATH': path}
        done = bash(f'{ROOT}/scripts/check_tools.sh {python}', **environment)
        return done.returncode, done.stderr

    def test_no_python(self):
        assert self.check('python-of-nowhere') == (
            1,
            'briges_ros: python-of-nowhere is not there: install Python 3.10 to 3.12, '
            'or say make PYTHON=/path/to/python3\n',
        )

    def test_another_python(self, tmp_path):
        python = tmp_path / 'python3.9'
        python.write_text('#!/bin/sh\necho 3.9\n')
        python.chmod(0o755)
        code, said = self.check(str(python))
        assert code == 1
        assert re.fullmatch(r'briges_ros: .* is Python 3\.9; .* make PYTHON=python3\.12\n', said)

    def test_no_compiler(self, tmp_path):
        for tool in ('bash', 'env', 'uname'):
            (tmp_path / tool).symlink_to(str(shutil.which(tool)))
        code, said = self.check(sys.executable, path=str(tmp_path))
        assert (code, said) == (1, 'briges_ros: g++ is missing: sudo apt install g++\n')


@needs_setup
class TestEnvironment:
    def test_profile_for_big_messages(self):
        done = bash(
            'unset FASTRTPS_DEFAULT_PROFILES_FILE FASTDDS_DEFAULT_PROFILES_FILE; '
            f'. {ROOT}/scripts/env.sh && '
            'echo "$FASTRTPS_DEFAULT_PROFILES_FILE"; echo "$FASTDDS_DEFAULT_PROFILES_FILE"'
        )
        profile = ROOT / 'config' / 'fastdds_large_messages.xml'
        assert done.stdout.splitlines() == [str(profile)] * 2, done.stderr
        assert profile.is_file()

    def test_a_profile_of_the_user_is_kept(self):
        done = bash(
            f'. {ROOT}/scripts/env.sh && echo "$FASTRTPS_DEFAULT_PROFILES_FILE"',
            FASTRTPS_DEFAULT_PROFILES_FILE='/mine.xml',
        )
        assert done.stdout == '/mine.xml\n', done.stderr

    def test_a_checkout_that_is_not_set_up_says_so(self, tmp_path):
        (tmp_path / 'scripts').mkdir()
        shutil.copy(ROOT / 'scripts' / 'env.sh', tmp_path / 'scripts')
        done = bash(f'. {tmp_path}/scripts/env.sh')
        assert done.returncode == 1
        assert done.stderr == f"briges_ros: {tmp_path} is not set up yet: run 'make setup' there\n"


@needs_setup
@pytest.mark.usefixtures('bundle')
@pytest.mark.parametrize('presses', [1, 2])
def test_ctrl_c_ends_make_node_in_order(presses):
    """On a terminal, as a person would: start, wait until it is active, press Ctrl-C."""
    arguments = f'--ros-args -r __ns:=/of_{os.getpid()}_{presses} -r image:=/cam/image'
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(ROOT)
        command = ['make', '-o', 'install/.built', 'node', f'ARGS={arguments}']
        os.execvpe('make', command, ENVIRONMENT)
    shown = b''
    pressed = False
    deadline = time.monotonic() + PATIENCE
    try:
        while time.monotonic() < deadline:
            if select.select([terminal], [], [], 0.1)[0]:
                try:
                    shown += os.read(terminal, 65536)
                except OSError:  # closed at the other end: all have exited
                    break
            if b'active' in shown and not pressed:
                pressed = True
                for _ in range(presses):
                    os.write(terminal, b'\x03')
    finally:
        done, status = os.waitpid(child, os.WNOHANG if time.monotonic() > deadline else 0)
        if not done:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
        os.close(terminal)
    text = shown.decode(errors='replace')
    assert pressed and done, text
    assert os.waitstatus_to_exitcode(status) == 0, text
    assert "'/cam/image'" in text
    assert 'make' not in text, text
