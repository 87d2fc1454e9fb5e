"""The model bundles as data files; pyproject.toml says everything else."""

import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent


def models() -> list[tuple[str, list[str]]]:
    """List what lies in models/ for share/briges_ros/models, where bundles are looked up by name.

    An editable install finds them in the checkout: copies of them would only grow old.
    """
    if 'editable_wheel' in sys.argv:
        return []
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / 'models').rglob('*')):
        if path.is_file():
            name = path.relative_to(ROOT)
            found.setdefault(f'share/briges_ros/{name.parent}', []).append(str(name))
    return list(found.items())


setup(data_files=models())
