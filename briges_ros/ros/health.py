"""Counters of the node, and the diagnostics made of them (REP 107)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from briges_ros.alignment.tracker import ScaleEstimate, ScaleState


@dataclass
class Counters:
    """Images since activation, by what became of them. Each field has one writing thread."""

    received: int = 0
    superseded: int = 0  # a newer one came while the network was busy
    unwanted: int = 0  # nobody subscribed to any output
    malformed: int = 0
    failed: int = 0  # an error of ours
    processed: int = 0

    @property
    def dropped(self) -> int:
        """Images that somebody wanted and that did not come out."""
        return self.superseded + self.malformed + self.failed


@dataclass(frozen=True)
class SourceReport:
    """What became of a sparse source's measurements in one frame.

    Attributes:
        source: points, scan, depth or range.
        anchors: number of measurements in use.
        delay: seconds, the stamp of the image less that of the measurements; NaN without any.
        left_out: number of the others by reason, see msg/DepthStatus.msg.
    """

    source: str
    anchors: int
    delay: float
    left_out: Mapping[str, int]


@dataclass
class Health:
    """What the diagnostics tell; kept up to date by the node and its worker."""

    counters: Counters
    state: str = 'unconfigured'  # of the life cycle
    fault: str = ''  # why the last configure failed
    silence: str = ''  # what input is missing
    build: str = ''  # how far the engine is that is being built
    model: str = ''
    engine: str = ''
    precision: str = ''
    scale: ScaleEstimate | None = None  # of the last frame
    sparse: str = ''  # why the last frame had no sparse measurements
    camera: str = ''  # what is assumed of the camera
    sources: tuple[SourceReport, ...] = ()  # what became of those that it had
    total_ms: float = 0.0
    _counted: tuple[float, int] = (0.0, 0)  # when the rate was last taken, frames processed then

    def rate(self) -> float:
        """Return frames per second since the last call."""
        now, processed = time.monotonic(), self.counters.processed
        (then, before), self._counted = self._counted, (now, processed)
        return max(0, processed - before) / (now - then) if then else 0.0

    def scale_reason(self) -> str:
        """Return why the scale of the last frame is what it is; empty before the first."""
        if self.scale is None:
            return ''
        reason = self.scale.reason
        if self.scale.state is not ScaleState.METRIC and self.sparse:
            reason = f'{reason} ({self.sparse})'
        return f'{reason}; {self.camera}' if self.camera else reason

    def summary(self) -> tuple[bytes, str]:
        """Return the diagnostic level and its reason in words."""
        if self.fault:
            return DiagnosticStatus.ERROR, self.fault
        if self.build:
            level = DiagnosticStatus.WARN if self.state == 'active' else DiagnosticStatus.OK
            return level, f'engine build: {self.build}'
        if self.state != 'active':
            return DiagnosticStatus.OK, self.state
        if self.silence:
            return DiagnosticStatus.WARN, self.silence
        if self.scale is None:
            return DiagnosticStatus.OK, 'no frame yet'
        if self.scale.state is ScaleState.METRIC:
            if self.camera:
                return DiagnosticStatus.WARN, f'metric, but {self.camera}'
            return DiagnosticStatus.OK, 'metric'
        return DiagnosticStatus.WARN, f'{self.scale.state.name}: {self.scale_reason()}'


def diagnostics(health: Health, node_name: str, stamp: Any) -> DiagnosticArray:
    """Return the diagnostics message of a node.

    Args:
        health: what to tell.
        node_name: fully qualified name of the node.
        stamp: builtin_interfaces/Time of now.
    """
    counters, scale = health.counters, health.scale
    level, message = health.summary()
    values: dict[str, Any] = {
        'life cycle': health.state,
        'model': health.model,
        'engine': f'{health.engine} {health.precision}'.strip(),
        'rate [Hz]': f'{health.rate():.2f}',
        'latency [ms]': f'{health.total_ms:.1f}',
        'images received': counters.received,
        'images processed': counters.processed,
        'images superseded by newer ones': counters.superseded,
        'images nobody wanted': counters.unwanted,
        'images malformed': counters.malformed,
        'images failed': counters.failed,
    }
    if health.build:
        values['engine build'] = health.build
    if scale is not None:
        values |= {
            'scale state': scale.state.name,
            'scale [1/m]': f'{scale.scale:.6g}',
            'shift [1/m]': f'{scale.shift:.6g}',
            'inliers': scale.inliers,
            'outliers': scale.outliers,
            'median relative residual': f'{scale.residual:.4f}',
            'quality of the fit': f'{scale.quality:.2f}',
            'age of the scale [s]': f'{scale.age:.2f}',
        }
    for report in health.sources:
        left_out = ', '.join(f'{count} {reason}' for reason, count in report.left_out.items())
        used = f'{report.anchors} in use'
        values[f'sparse/{report.source}'] = f'{used}; {left_out}' if left_out else used
    status = DiagnosticStatus(
        level=level,
        name=f'{node_name.lstrip("/")}: depth',
        message=message,
        hardware_id=health.engine,
        values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
    )
    array = DiagnosticArray(status=[status])
    array.header.stamp = stamp
    return array
