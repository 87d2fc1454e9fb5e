#!/usr/bin/env bash
# Check that this machine can run `make setup`; say in one line what is missing.
#
# Usage: check_tools.sh PYTHON

set -euo pipefail
python=$1

fail() {
  echo "briges_ros: $*" >&2
  exit 1
}

[ "$(uname -sm)" = 'Linux x86_64' ] ||
  fail "the ROS 2 wheels are for Linux on x86-64, this is $(uname -sm): install ROS 2, use colcon"
command -v "$python" >/dev/null ||
  fail "$python is not there: install Python 3.10 to 3.12, or say make PYTHON=/path/to/python3"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) ||
  fail "$python does not run: install Python 3.10 to 3.12, or say make PYTHON=/path/to/python3"
case $version in
  3.10 | 3.11 | 3.12) ;;
  *) fail "$python is Python $version; ROS 2 needs 3.10 to 3.12: say make PYTHON=python3.12" ;;
esac
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
  fail "$python cannot make virtual environments: sudo apt install python$version-venv"
[ -f "$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ] ||
  fail "the headers of $python are missing: sudo apt install python$version-dev"
command -v g++ >/dev/null || fail 'g++ is missing: sudo apt install g++'
