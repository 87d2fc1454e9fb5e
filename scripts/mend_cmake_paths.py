"""Point the CMake files of the ROS 2 wheels at this environment's Python and NumPy.

The wheels export targets with the absolute header paths of the machine they were built on.
"""

import re
import sys
import sysconfig
from pathlib import Path

import numpy as np

BUILDER = r'/opt/python/cp\d+-cp\d+'
NUMPY = re.compile(BUILDER + r'/lib/python3\.\d+/site-packages/numpy/_core/include')
PYTHON = re.compile(BUILDER + r'/include/python3\.\d+')

for path in Path(sys.prefix, 'share').rglob('*.cmake'):
    text = path.read_text()
    mended = NUMPY.sub(np.get_include(), text)
    mended = PYTHON.sub(sysconfig.get_path('include'), mended)
    if mended != text:
        path.write_text(mended)
