#!/usr/bin/env bash
# Build the messages against the ROS 2 of .venv, and link the modules beside them in install/.

set -euo pipefail
cd "$(dirname "$0")/.."
source .venv/bin/activate
export AMENT_PREFIX_PATH=$VIRTUAL_ENV CMAKE_PREFIX_PATH=$VIRTUAL_ENV

mkdir -p build install log
find install -xtype l -delete # links to files that are gone

if ! colcon build --symlink-install \
  --cmake-args "-DPython3_EXECUTABLE=$VIRTUAL_ENV/bin/python" -DBUILD_TESTING=OFF \
  >log/setup.txt 2>&1; then
  cat log/setup.txt >&2
  echo 'briges_ros: the build failed; see above (and log/setup.txt)' >&2
  exit 1
fi
