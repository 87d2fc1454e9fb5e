"""Model bundles: a folder with ``model.json``, ONNX graphs and a self-check.

A bundle is loaded whole or not at all: every file is checked by its sha256 first.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from briges_ros.errors import BrigesError

FORMAT = 3
GRAPHS = ('depth_encoder', 'segmentation_encoder', 'gate_decoder')
GATES = ('none', 'light', 'paper')
OUTPUTS = ('relative_inverse_depth', 'metric_depth')


class BundleError(BrigesError):
    """A bundle that is missing, not whole, or not one we can run."""


@dataclass(frozen=True)
class SegmentationInput:
    """What a gated bundle's segmentation encoder takes: the whole image, stretched.

    Attributes:
        mean, std: normalisation of RGB in [0, 1].
        size: (width, height) in pixels, whatever the camera; None if `patch` is given.
        patch: pixels for each of the depth encoder's patches along a side, so that the segmentation
            map lies exactly on the depth tokens; None if `size` is given.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    size: tuple[int, int] | None = None
    patch: int | None = None

    def __post_init__(self) -> None:
        if (self.size is None) == (self.patch is None):
            raise ValueError('segmentation_input needs either size or patch')
        pixels = self.size or (self.patch,)
        if not all(value is not None and value > 0 for value in (*self.std, *pixels)):
            raise ValueError('segmentation_input: size, patch and std must be positive')

    def pixels(self, columns: int, rows: int) -> tuple[int, int]:
        """(width, height) of the input that goes with a grid of depth patches."""
        if self.size is not None:
            return self.size
        assert self.patch is not None
        # An encoder that halves its grid once more needs two cells, also for a strip of an image.
        return self.patch * max(columns, 2), self.patch * max(rows, 2)


@dataclass(frozen=True)
class ModelBundle:
    """A checked bundle.

    Attributes:
        folder: where it lies.
        name, description, licence: for people.
        gate: which Bridging Gate the bundle holds: 'none', 'light' or 'paper'.
        output: what the network's output means; 'relative_inverse_depth': 1/z up to scale and
            shift, larger is nearer; 'metric_depth': metres.
        patch: pixels along a patch's side; network sizes are its multiples.
        token_budget: most patches at the default size.
        mean, std: normalisation of RGB in [0, 1].
        graphs: path of each ONNX graph, by name. A bundle with ``gate: none`` has no
            ``segmentation_encoder``.
        selfcheck: path of the reference inputs and of what each graph makes of them.
        int8_graphs: path of each graph with static quantisation (QuantizeLinear and
            DequantizeLinear around what an engine may compute in int8); empty if it has none.
        segmentation_input: of the segmentation encoder; None with ``gate: none``.
        tau_cross, tau_self: Attention Temperature Scaling that is folded into the gates; 1 = off.
        sources: what it was made of, with licences and sha256.
        sha256: of ``model.json``, which holds the sha256 of everything else.
    """

    folder: Path
    name: str
    description: str
    licence: str
    gate: str
    output: str
    patch: int
    token_budget: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    graphs: dict[str, Path]
    selfcheck: Path
    int8_graphs: dict[str, Path] = field(default_factory=dict)
    segmentation_input: SegmentationInput | None = None
    tau_cross: float = 1.0
    tau_self: float = 1.0
    sources: list[dict[str, str]] = field(default_factory=list)
    sha256: str = ''

    @classmethod
    def load(cls, name_or_path: str | Path) -> ModelBundle:
        """Find a bundle by name or path, and check it.

        Raises:
            BundleError: with what is wrong and how to mend it.
        """
        folder = find_bundle(name_or_path)
        path = folder / 'model.json'
        mend = f'make the bundle anew, e.g.: briges export {folder.name}'
        try:
            text = path.read_bytes()
            values: dict[str, Any] = json.loads(text)
            if values['format'] != FORMAT:
                raise BundleError(
                    f'{path} has format {values["format"]}, this version reads {FORMAT}; {mend}'
                )
            files = {**values['graphs'], 'selfcheck': values['selfcheck']}
            paths = {key: _checked_file(folder, entry, mend) for key, entry in files.items()}
            int8_graphs = {
                key: _checked_file(folder, entry, mend)
                for key, entry in values.get('int8_graphs', {}).items()
            }
            inputs, temperature = values['input'], values['attention_temperature']
            gate = str(values['gate'])
            gated = gate != 'none'
            bundle = cls(
                folder=folder,
                name=str(values['name']),
                description=str(values['description']),
                licence=str(values['licence']),
                gate=gate,
                output=str(values['output']),
                patch=int(inputs['patch']),
                token_budget=int(inputs['token_budget']),
                mean=_three(inputs['mean']),
                std=_three(inputs['std']),
                graphs={key: value for key, value in paths.items() if key != 'selfcheck'},
                selfcheck=paths['selfcheck'],
                int8_graphs=int8_graphs,
                segmentation_input=(
                    _segmentation_input(values['segmentation_input']) if gated else None
                ),
                tau_cross=float(temperature['cross']),
                tau_self=float(temperature['self']),
                sources=list(values['sources']),
                sha256=hashlib.sha256(text).hexdigest(),
            )
        except (OSError, ValueError, OverflowError, RecursionError) as error:
            raise BundleError(f'{path} cannot be read ({error}); {mend}') from error
        except (KeyError, TypeError, AttributeError) as error:
            raise BundleError(f'{path} lacks or garbles {error}; {mend}') from error
        if bundle.patch < 1 or bundle.token_budget < 1 or not all(s > 0 for s in bundle.std):
            raise BundleError(f'{path}: patch, token_budget and std must be positive; {mend}')
        if not all(map(math.isfinite, (*bundle.mean, *bundle.std))):
            raise BundleError(f'{path}: mean and std must be finite; {mend}')
        if not all(math.isfinite(tau) and tau > 0 for tau in (bundle.tau_cross, bundle.tau_self)):
            raise BundleError(f'{path}: attention_temperature must be positive; {mend}')
        if gate not in GATES:
            raise BundleError(f'{path}: unknown gate {gate!r}, known: {GATES}')
        if bundle.output not in OUTPUTS:
            raise BundleError(f'{path}: unknown output {bundle.output!r}, known: {OUTPUTS}')
        needed = set(GRAPHS) - (set() if gated else {'segmentation_encoder'})
        for graphs in (bundle.graphs, bundle.int8_graphs):
            if set(graphs) != needed and (graphs or graphs is bundle.graphs):
                raise BundleError(
                    f'{path}: graphs {sorted(graphs)}, expected {sorted(needed)}; {mend}'
                )
        return bundle

    def graphs_in(self, precision: str) -> dict[str, Path]:
        """The graphs that an engine of some precision starts from."""
        return self.int8_graphs if precision == 'int8' else self.graphs


def _segmentation_input(entry: Any) -> SegmentationInput:
    values = dict(entry)
    size, patch = values.get('size'), values.get('patch')
    if size is not None:
        width, height = size
        size = int(width), int(height)
    return SegmentationInput(
        mean=_three(values['mean']),
        std=_three(values['std']),
        size=size,
        patch=None if patch is None else int(patch),
    )


def _three(values: Any) -> tuple[float, float, float]:
    first, second, third = (float(value) for value in values)
    return first, second, third


def _checked_file(folder: Path, entry: dict[str, str], mend: str) -> Path:
    path = folder / Path(entry['file']).name  # a bundle never reaches outside its folder
    if not path.is_file():
        raise BundleError(f'{path} is missing; {mend}')
    if file_sha256(path) != entry['sha256']:
        raise BundleError(f'{path} is corrupt (its sha256 is not the one in model.json); {mend}')
    if 'data_file' in entry:  # the weights of a graph that is too large for one ONNX file
        _checked_file(folder, {'file': entry['data_file'], 'sha256': entry['data_sha256']}, mend)
    return path


def file_sha256(path: Path) -> str:
    """Hex digest of a file."""
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def user_models() -> Path:
    """The user's own folder of bundles."""
    data = os.environ.get('XDG_DATA_HOME') or Path.home() / '.local' / 'share'
    return Path(data) / 'briges_ros' / 'models'


def checkout_models() -> Path | None:
    """``models/`` of the source checkout that this module runs from, if it does."""
    root = Path(__file__).resolve().parents[2]
    return root / 'models' if (root / 'package.xml').is_file() else None


def model_folders() -> list[Path]:
    """Where bundles are looked for by name, first hit wins."""
    folders = [Path(p) for p in os.environ.get('BRIGES_MODELS', '').split(os.pathsep) if p]
    checkout = checkout_models()
    if checkout is not None:
        folders.append(checkout)
    folders.append(user_models())
    for prefix in [*os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep), sys.prefix]:
        if prefix:
            folders.append(Path(prefix) / 'share' / 'briges_ros' / 'models')
    return list(dict.fromkeys(folders))


def find_bundle(name_or_path: str | Path) -> Path:
    """The folder of a bundle, by path or by name.

    Raises:
        BundleError: there is none.
    """
    text = str(name_or_path)
    path = Path(text).expanduser()
    if (path / 'model.json').is_file():
        return path
    if os.sep in text:
        raise BundleError(f'{path} holds no model.json; give the folder of a model bundle')
    folders = model_folders()
    for folder in folders:
        if text and (folder / text / 'model.json').is_file():
            return folder / text
    raise BundleError(
        f'no model bundle named {text!r} in {", ".join(map(str, folders))}; '
        'run: briges export compact'
    )
