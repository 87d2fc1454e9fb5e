"""Metric monocular depth for ROS 2: a depth network, scaled to metres by a sparse sensor.

    from briges_ros import Anchors, CameraModel, DepthPipeline

    pipeline = DepthPipeline.load('compact')
    frame = pipeline(image, camera=camera, anchors=anchors)  # (H, W, 3) uint8 RGB in
    frame.depth                          # (H, W) float32 metres out, NaN where unknown

The library needs neither ROS nor torch. Its public names are loaded on first use, so that
``import briges_ros`` (which every launch file and every message import pays for) stays free of
NumPy, OpenCV and the inference engines.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import extend_path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from briges_ros.alignment.anchors import Anchors
    from briges_ros.camera import CameraModel
    from briges_ros.errors import BrigesError
    from briges_ros.pipeline import DepthFrame, DepthPipeline

__version__ = '0.1.0'

__all__ = ['Anchors', 'BrigesError', 'CameraModel', 'DepthFrame', 'DepthPipeline', '__version__']

# A build generates briges_ros.msg into the install space, not into the source tree. A checkout that
# comes first on sys.path (python started in the repository root) would hide it; so join the two.
__path__ = extend_path(__path__, __name__)

_HOME = {
    'Anchors': 'briges_ros.alignment.anchors',
    'BrigesError': 'briges_ros.errors',
    'CameraModel': 'briges_ros.camera',
    'DepthFrame': 'briges_ros.pipeline',
    'DepthPipeline': 'briges_ros.pipeline',
}


def __getattr__(name: str) -> Any:
    """Load a public name from its module (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
