"""`briges export`: make a model bundle, of the compact model, published networks, or your own."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console
from rich.progress import Progress

from briges_ros.errors import BrigesError
from briges_ros.image_file import decode_file
from briges_ros.inference.bundle import (
    ModelBundle,
    checkout_models,
    model_folders,
    user_models,
)
from briges_ros.inference.selfcheck import open_checked_engine

OURS = 'compact'
SUFFIXES = ('.png', '.jpg', '.jpeg')


@dataclass(frozen=True)
class ExportJob:
    """What the command line asks for.

    Attributes:
        model: 'compact', a published depth network (its name or folder), or a folder with what
            our trainings released.
        output: folder of the bundle; None = the models folder of the checkout or the user.
        gate: compact: 'none' or 'light'; None = what the model has.
        segmentation: published segmentation encoder: its name or folder.
        gates: published: file that gate training released for this pair.
        tau_cross, tau_self: Attention Temperature Scaling; 1 = off.
        accept_noncommercial: published weights that must not be used commercially may be taken.
        calibrate: folder of images to make int8 graphs with; None = none.
    """

    model: str
    output: Path | None = None
    gate: str | None = None
    segmentation: str | None = None
    gates: Path | None = None
    tau_cross: float = 1.0
    tau_self: float = 1.0
    accept_noncommercial: bool = False
    calibrate: Path | None = None


def run(job: ExportJob) -> None:
    """Export.

    Raises:
        BrigesError: unknown model or impossible setting, or a part of the model is missing.
    """
    start = time.monotonic()
    try:
        images = [] if job.calibrate is None else _calibration_images(job.calibrate)
        folder = _compact(job) if job.model == OURS else _from_torch(job)
        if images:
            _calibrate(folder, images)
    except ImportError as error:
        extra = 'export' if job.model == OURS else 'train'
        if error.name == 'nncf':
            extra = 'int8'
        raise BrigesError(
            f'this export needs {error.name}; run: pip install "briges_ros[{extra}]"'
        ) from error
    except OSError as error:
        raise BrigesError(
            f'{error.filename or job.output} cannot be written ({error.strerror}); '
            'give another folder with -o'
        ) from error
    print(f'{folder}: exported in {time.monotonic() - start:.0f} s')


def _compact(job: ExportJob) -> Path:
    from briges_ros.network.compose import WEIGHTS, compose_compact

    if job.segmentation is not None or job.gates is not None:
        raise BrigesError(
            'the compact model brings its own segmentation encoder and gates; '
            '--segmentation and --gates go with a published depth network'
        )
    source = next((f / OURS for f in model_folders() if (f / OURS / WEIGHTS).is_file()), None)
    if source is None:
        raise BrigesError(
            f'no {OURS}/{WEIGHTS} in {", ".join(map(str, model_folders()))}; '
            'it comes with the source checkout'
        )
    folder = job.output or (checkout_models() or user_models()) / OURS
    with Console(stderr=True).status(f'exporting {OURS} to {folder}'):
        return compose_compact(source, folder, job.gate, job.tau_cross, job.tau_self)


def _calibration_images(folder: Path) -> list[Path]:
    """What to calibrate with; looked for, as is NNCF, before an export that takes a minute."""
    import nncf  # noqa: F401

    from briges_ros.network.int8 import IMAGES

    files = sorted(path for path in folder.rglob('*') if path.suffix.lower() in SUFFIXES)
    if not files:
        raise BrigesError(
            f'{folder} holds no images ({", ".join(SUFFIXES)}); '
            'give a folder with some dozens of what the camera sees'
        )
    return [files[i] for i in np.linspace(0, len(files) - 1, min(IMAGES, len(files))).astype(int)]


def _calibrate(folder: Path, images: list[Path]) -> None:
    from briges_ros.network.compose import WEIGHTS
    from briges_ros.network.int8 import add_graphs, calibrate, write_skeletons

    bundle = ModelBundle.load(folder)
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task(f'int8 from {len(images)} images', total=len(bundle.graphs) + 1)
        pictures = [
            np.asarray(decode_file(path, cv2.IMREAD_COLOR)[..., ::-1], np.uint8) for path in images
        ]
        graphs = calibrate(bundle, pictures, lambda: progress.advance(task))
    add_graphs(bundle, graphs)
    if (folder / WEIGHTS).is_file():  # a bundle among its sources: the next one is composed of them
        write_skeletons(bundle, graphs, folder)
    _, result = open_checked_engine(ModelBundle.load(folder), 'onnxruntime', 'int8')
    print(
        f'{folder}: int8 graphs, relative error {result.relative_error:.3f}, '
        f'correlation {result.correlation:.4f}'
    )


def _from_torch(job: ExportJob) -> Path:
    from briges_ros.network.compose import WEIGHTS
    from briges_ros.network.export import PublishedPair, export_bundle, open_folder, open_pair
    from briges_ros.network.gate import AttentionTemperature

    if job.gate is not None:
        raise BrigesError(
            '--gate is for the compact model that ships; a published pair takes --gates FILE, and '
            'your own folder has gates if gate.safetensors is in it'
        )
    try:
        temperature = AttentionTemperature(job.tau_cross, job.tau_self)
    except ValueError as error:
        raise BrigesError(str(error)) from error
    own = (Path(job.model) / WEIGHTS).is_file()
    if own and (job.segmentation is not None or job.gates is not None):
        raise BrigesError(
            f'{job.model} is a compact model of your own: put segmentation.safetensors and '
            'gate.safetensors into that folder instead of --segmentation and --gates'
        )
    pair = PublishedPair(job.model, job.segmentation, job.gates, job.accept_noncommercial)
    network, info = open_folder(Path(job.model)) if own else open_pair(pair)
    if not network.gates and temperature != AttentionTemperature():
        raise BrigesError('an attention temperature needs gates, and this model has none')
    folder = job.output or user_models() / info.name
    with Console(stderr=True).status(f'exporting {info.name} to {folder}'):
        return export_bundle(network, folder, info, temperature)
