"""Counters of the node, and the diagnostics made of them (REP 107).

docs/diagnostics.md says what each key and each level means.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from briges_ros.alignment.tracker import ScaleEstimate, ScaleState
from briges_ros.ros.recovery import Recovery

STAGES = ('preprocess', 'inference', 'align', 'postprocess', 'publish', 'total')

_MANY = 3  # images dropped in a row that are no accident
_STUCK = 10.0  # s for one image
# The stamps of the images beside the node's clock: a network takes seconds on a slow machine, but
# a stamp from the future is always wrong.
_OLDEST, _NEWEST = 10e3, -0.5e3  # ms


@dataclass
class Counters:
    """Images since activation, by what became of them. Each field has one writing thread."""

    received: int = 0
    superseded: int = 0  # a newer one came while the network was busy
    unwanted: int = 0  # nobody subscribed to any output
    malformed: int = 0
    failed: int = 0  # an error of ours, or of the backend
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
    """What the diagnostics tell; kept up to date by the node and its worker.

    Attributes:
        counters: of the images.
        state: of the life cycle.
        fault: why the last transition failed.
        recovery: of the backend.
        silence: what input is missing.
        warnings: what else is wrong outside of the node.
        build: how far the engine is that is being built.
        model, engine, precision: what computes.
        selfcheck: its relative error in the self-check.
        busy_since: when the image was taken up that is in the works (monotonic); None: none is.
        error: why the last image was dropped; '' if it was not.
        dropped_in_a_row: the last image and those before it.
        idle: whether nobody wanted the last image.
        scale: of the last frame.
        sparse: why the last frame had no sparse measurements.
        sources: what became of those that it had.
        camera: what is assumed of the camera.
        latency: of the last frame, milliseconds by stage, see `STAGES`.
        total_ms: of the last frame, from taking the image up to the last output.
        image_age_ms: node clock less the stamp of the image when its depth went out; NaN unknown.
    """

    counters: Counters
    state: str = 'unconfigured'
    fault: str = ''
    recovery: Recovery = field(default_factory=Recovery)
    silence: str = ''
    warnings: tuple[str, ...] = ()
    build: str = ''
    model: str = ''
    engine: str = ''
    precision: str = ''
    selfcheck: float = math.nan
    busy_since: float | None = None
    error: str = ''
    dropped_in_a_row: int = 0
    idle: bool = False
    scale: ScaleEstimate | None = None
    sparse: str = ''
    sources: tuple[SourceReport, ...] = ()
    camera: str = ''
    latency: Mapping[str, float] = field(default_factory=dict)
    total_ms: float = 0.0
    image_age_ms: float = math.nan
    started: float = field(default_factory=time.monotonic)
    _counted: tuple[float, int, int] = (0.0, 0, 0)  # when rates were last taken, and the counters

    def begin(self) -> None:
        """Forget all images: the node was activated."""
        self.counters = Counters()
        self.error, self.dropped_in_a_row, self.idle = '', 0, False
        self.scale, self.sparse, self.sources, self.camera = None, '', (), ''
        self.latency, self.total_ms, self.image_age_ms = {}, 0.0, math.nan

    def rates(self) -> tuple[float, float]:
        """Return images received and images processed per second since the last call."""
        now, received = time.monotonic(), self.counters.received
        processed = self.counters.processed
        (then, *before), self._counted = self._counted, (now, received, processed)
        if not then:
            return 0.0, 0.0
        since = now - then  # an activation in between sets the counters back
        return max(0, received - before[0]) / since, max(0, processed - before[1]) / since

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
        build = f'engine build: {self.build}' if self.build else ''
        if self.recovery.pending:
            return DiagnosticStatus.ERROR, '; '.join(filter(None, [str(self.recovery), build]))
        if self.fault:
            return DiagnosticStatus.ERROR, self.fault
        if self.state != 'active':
            return DiagnosticStatus.OK, build or self.state
        if build:
            return DiagnosticStatus.WARN, build
        if error := self._standstill():
            return DiagnosticStatus.ERROR, error
        warnings = [*filter(None, [self.silence or self._of_images()]), *self.warnings]
        if warnings:
            return DiagnosticStatus.WARN, '; '.join(warnings)
        if self.idle:
            return DiagnosticStatus.OK, 'idle: nobody subscribes to an output'
        return DiagnosticStatus.OK, 'no frame yet' if self.scale is None else 'metric'

    def _standstill(self) -> str:
        """Return why nothing comes out although images come in; '' if it does."""
        busy_since = self.busy_since
        busy = 0.0 if busy_since is None else time.monotonic() - busy_since
        if busy > _STUCK:
            return (
                f'one image is in the works for {busy:.0f} s: the backend may hang; if this stays, '
                'restart the node'
            )
        if self.dropped_in_a_row >= _MANY and not self.silence:
            return f'the last {self.dropped_in_a_row} images were dropped: {self.error}'
        return ''

    def _of_images(self) -> str:
        """Return what is wrong with the last image, or with its scale; '' if nothing is."""
        if self.error:
            return f'an image was dropped: {self.error}'
        if self.idle or self.scale is None:
            return ''
        texts = []
        if self.scale.state is not ScaleState.METRIC:
            texts.append(f'{self.scale.state.name}: {self.scale_reason()}')
        elif self.camera:
            texts.append(f'metric, but {self.camera}')
        if self.image_age_ms > _OLDEST or self.image_age_ms < _NEWEST:
            relation = 'behind' if self.image_age_ms > 0 else 'ahead of'
            texts.append(
                f"the images' stamps are {abs(self.image_age_ms) / 1e3:.1f} s {relation} the "
                "node's clock: set use_sim_time for a bag, or synchronise the camera's clock"
            )
        return '; '.join(texts)


def diagnostics(health: Health, node_name: str, stamp: Any) -> DiagnosticArray:
    """Return the diagnostics message of a node.

    The keys are always the same, whatever is known; one for each sparse source that has sent is
    added.

    Args:
        health: what to tell.
        node_name: fully qualified name of the node.
        stamp: builtin_interfaces/Time of now.
    """
    counters, scale = health.counters, health.scale
    level, message = health.summary()
    received, processed = health.rates()
    values: dict[str, Any] = {
        'life cycle': health.state,
        'uptime [s]': f'{time.monotonic() - health.started:.0f}',
        'memory [MB]': _number(resident_megabytes(), '.0f'),
        'model': health.model,
        'engine': health.engine,
        'precision': health.precision,
        'self-check relative error': _number(health.selfcheck, '.2g'),
        'engine build': health.build,
        'backend failures': health.recovery.failures,
        'input rate [Hz]': f'{received:.2f}',
        'output rate [Hz]': f'{processed:.2f}',
    }
    values |= {
        f'latency, {stage} [ms]': _number(health.latency.get(stage, math.nan), '.1f')
        for stage in STAGES
    }
    values |= {
        'age of the image [ms]': _number(health.image_age_ms, '.1f'),
        'images received': counters.received,
        'images processed': counters.processed,
        'images superseded by newer ones': counters.superseded,
        'images nobody wanted': counters.unwanted,
        'images malformed': counters.malformed,
        'images failed': counters.failed,
        'scale state': '' if scale is None else scale.state.name,
    }
    values |= {
        key: '' if scale is None else _number(getattr(scale, name), form)
        for key, name, form in (
            ('scale [1/m]', 'scale', '.6g'),
            ('shift [1/m]', 'shift', '.6g'),
            ('inliers', 'inliers', 'd'),
            ('outliers', 'outliers', 'd'),
            ('median relative residual', 'residual', '.4f'),
            ('quality of the fit', 'quality', '.2f'),
            ('age of the scale [s]', 'age', '.2f'),
        )
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


def resident_megabytes() -> float:
    """Return the memory that the process has in RAM; NaN where Linux does not tell."""
    try:
        pages = int(Path('/proc/self/statm').read_text().split()[1])
    except OSError:
        return math.nan
    return pages * os.sysconf('SC_PAGE_SIZE') / 1e6


def _number(value: float, form: str) -> str:
    """Write a number, or nothing for one that is not known."""
    return format(value, form) if math.isfinite(value) else ''
