"""`briges depth`: image files in, depth, clouds and previews out."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from briges_ros.alignment.anchors import Anchors
from briges_ros.alignment.tracker import ScaleState
from briges_ros.camera import CameraModel
from briges_ros.cli.inputs import (
    CameraFile,
    read_camera,
    read_image,
    read_points,
    read_sparse_depth,
)
from briges_ros.cli.pictures import preview, write_image, write_png
from briges_ros.depth_image import to_millimetres
from briges_ros.errors import BrigesError
from briges_ros.pipeline import DepthFrame, DepthPipeline
from briges_ros.point_cloud import write_ply

ASSUMED_FOV = math.radians(60.0)
LEAST_IN_VIEW = 0.02  # share of points; fewer means that they are in another frame


@dataclass(frozen=True)
class DepthJob:
    """What the command line asked for; see `briges depth --help`."""

    images: list[Path]
    output: Path
    camera: Path | None
    points: list[Path]
    sparse_depth: list[Path]
    model: str
    backend: str
    precision: str
    token_budget: int | None
    max_range: float


def run(job: DepthJob) -> None:
    """Process every image; those that fail are named, the others still done.

    Raises:
        BrigesError: the job makes no sense, the model does not load, or an image failed.
    """
    sensor_files = _pair_sensor_files(job)
    camera_file = read_camera(job.camera) if job.camera else None
    pipeline = DepthPipeline.load(
        job.model,
        job.backend,
        precision=job.precision,
        token_budget=job.token_budget,
        max_range=job.max_range,
    )
    try:
        job.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BrigesError(
            f'{job.output} cannot be made ({error.strerror}); give another folder with -o'
        ) from error
    failed: list[str] = []
    for path, sensor_file in zip(job.images, sensor_files, strict=True):
        try:
            summary = _process(path, sensor_file, camera_file, pipeline, job)
        except BrigesError as error:
            if len(job.images) == 1:
                raise
            print(f'briges: {error}', file=sys.stderr)
            failed.append(path.name)
        else:
            print(summary)
    if failed:
        raise BrigesError(f'{len(failed)} of {len(job.images)} images failed, see above')


def _pair_sensor_files(job: DepthJob) -> list[Path | None]:
    if job.points and job.sparse_depth:
        raise BrigesError('give --points or --sparse-depth, not both')
    files = job.points or job.sparse_depth
    names = [path.stem for path in job.images]
    if len(set(names)) < len(names):
        raise BrigesError(
            'two images have the same name, so their results would overwrite each other; run them '
            'one by one, each with its own -o'
        )
    if not files:
        return [None] * len(job.images)
    if len(files) != len(job.images):
        option = '--points' if job.points else '--sparse-depth'
        raise BrigesError(
            f'{len(job.images)} images and {len(files)} {option}; give it once for each image'
        )
    return list(files)


def _process(
    path: Path,
    sensor_file: Path | None,
    camera_file: CameraFile | None,
    pipeline: DepthPipeline,
    job: DepthJob,
) -> str:
    image = read_image(path)
    height, width = image.shape[:2]
    camera = CameraModel.from_fov(width, height, ASSUMED_FOV)
    if camera_file is not None:
        camera = camera_file.camera
        if (camera.width, camera.height) != (width, height):
            raise BrigesError(
                f'{path} is {width}x{height}, its camera {camera.width}x{camera.height}; '
                'give the camera of this image'
            )
    anchors = None
    if sensor_file is not None and job.points:
        anchors = _point_anchors(sensor_file, camera_file)
    elif sensor_file is not None:
        anchors = Anchors.from_depth(read_sparse_depth(sensor_file, (height, width)))
        if len(anchors) == 0:
            raise BrigesError(
                f'{sensor_file} holds no depth at all; leave it out, or check how it was made'
            )
    frame = pipeline(image, camera, anchors)
    try:
        _write(frame, path.stem, job.output, pipeline, assumed_camera=camera_file is None)
    except OSError as error:
        raise BrigesError(
            f'the results of {path} cannot be written to {job.output} ({error.strerror}); '
            'make room or give another folder with -o'
        ) from error
    return _summary(path, frame, sensor_file is not None)


def _point_anchors(path: Path, camera_file: CameraFile | None) -> Anchors:
    if camera_file is None:
        raise BrigesError('--points needs --camera, to know where they fall in the image')
    points = read_points(path)
    if not np.isfinite(points).all(axis=1).any():
        raise BrigesError(f'{path} holds no point at all; leave it out, or check how it was made')
    anchors = Anchors.from_points(points, camera_file.camera, camera_file.T_camera_sensor)
    if len(anchors) < LEAST_IN_VIEW * len(points):
        frame = 'optical' if camera_file.T_camera_sensor is None else "sensor's"
        raise BrigesError(
            f'only {len(anchors)} of {len(points)} points of {path} fall in the image; they must '
            f'be in the {frame} frame, metres (T_camera_sensor in the camera file says how it sits)'
        )
    return anchors


def _write(
    frame: DepthFrame, name: str, folder: Path, pipeline: DepthPipeline, assumed_camera: bool
) -> None:
    stem = str(folder / name)
    np.save(f'{stem}_depth.npy', frame.depth)
    np.save(f'{stem}_relative.npy', frame.relative)
    write_image(f'{stem}_depth.png', to_millimetres(frame.depth))
    count = write_ply(f'{stem}_cloud.ply', frame.points(), frame.image)
    scale = frame.scale
    caption = f'{scale.state.value}: {scale.reason}'
    write_png(f'{stem}_preview.png', preview(frame.image, frame.relative, frame.depth, caption))
    report = {
        'width': frame.image.shape[1],
        'height': frame.image.shape[0],
        'state': scale.state.value,
        'reason': scale.reason,
        'scale': scale.scale,
        'shift': scale.shift,
        'covariance': scale.covariance.tolist(),
        'inliers': scale.inliers,
        'outliers': scale.outliers,
        'residual': scale.residual,
        'relative_range': list(scale.relative_range),
        'cloud_points': count,
        'camera': 'assumed: horizontal field of view 60 degrees' if assumed_camera else 'given',
        'model': pipeline.bundle.name,
        'licence': pipeline.bundle.licence,
        'engine': pipeline.engine.name,
        'precision': pipeline.engine.precision,
        'timing_ms': {stage: round(value, 2) for stage, value in frame.timing.items()},
    }
    Path(f'{stem}.json').write_text(json.dumps(_without_nan(report), indent=2) + '\n')


def _without_nan(value: object) -> object:
    """JSON knows no NaN; null says the same."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return value


def _summary(path: Path, frame: DepthFrame, had_sensor: bool) -> str:
    scale = frame.scale
    total = frame.timing['total']
    if scale.state is not ScaleState.RELATIVE:
        finite = frame.depth[np.isfinite(frame.depth)]
        median = f', median {np.median(finite):.2f} m' if finite.size else ''
        return f'{path.name}: {scale.state.value}, {scale.reason}{median}, {total:.0f} ms'
    mend = '' if had_sensor else '; give --points or --sparse-depth for metres'
    return f'{path.name}: no metres, {scale.reason}{mend}, {total:.0f} ms'
