"""Published networks: which there are, under which licences, and how to open them.

    network = open_published('depth-anything-v2-small').network   # from the Hugging Face hub
    network = open_published('downloads/my-folder').network       # config.json + model.safetensors

Every entry of the catalogue is pinned to a commit of its hub repository, so the same weights come
every time. Where the commit is not known to us, the entry says so with None: then "main" is taken,
and the commit and the sha256 of what came are in the ``sources`` of the result.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from briges_ros.errors import BrigesError
from briges_ros.inference.bundle import file_sha256
from briges_ros.network.checkpoints import PICKLE_SUFFIXES, load_tensors, read_tensors
from briges_ros.network.depth_anything import (
    DepthAnything,
    depth_anything_tensors,
    empty_depth_anything,
)
from briges_ros.network.sam import Sam2Encoder, SamEncoder, empty_sam, empty_sam2, sam_tensors

CONFIG = 'config.json'
WEIGHTS = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
UNKNOWN_LICENCE = 'unknown: that of the folder'


@dataclass(frozen=True)
class Entry:
    """One published network.

    Attributes:
        name: what we call it.
        hub_id: its repository on the Hugging Face hub.
        revision: the commit there; None where it is not known, which means the newest.
        sha256: of ``model.safetensors`` at that commit, where it is known: a copy in a folder is
            recognised by it, and so is its licence.
        licence: SPDX identifier, as the repository declares it or, where it does not or is laxer,
            as the authors' README does: docs/models.md.
        noncommercial: the licence forbids commercial use.
    """

    name: str
    hub_id: str
    revision: str | None
    sha256: str | None
    licence: str = 'Apache-2.0'
    noncommercial: bool = False


def _restricted(name: str, hub_id: str, revision: str, sha256: str | None) -> Entry:
    return Entry(name, hub_id, revision, sha256, 'CC-BY-NC-4.0', noncommercial=True)


V2 = 'depth-anything/Depth-Anything-V2'
ENTRIES = (
    Entry(
        'depth-anything-v1-small',
        'LiheYoung/depth-anything-small-hf',
        '25216a913fa218ccb7d58cce818d52b728b6c1f6',
        None,
    ),
    Entry('depth-anything-v1-base', 'LiheYoung/depth-anything-base-hf', None, None),
    Entry(
        'depth-anything-v1-large',
        'LiheYoung/depth-anything-large-hf',
        '27ccb0920352c0c37b3a96441873c8d37bd52fb6',
        None,
    ),
    Entry(
        'depth-anything-v2-small',
        f'{V2}-Small-hf',
        '5426e4f0f36572d16453bbda7a8389317b1bef99',
        '3152477ce0d8d6978d76b995120de97cb5b928701fd0f817769f59e249a16b70',
    ),
    _restricted(
        'depth-anything-v2-base',
        f'{V2}-Base-hf',
        'b1958afc87fb45a9e3746cb387596094de553ed8',
        None,
    ),
    _restricted(
        'depth-anything-v2-large',
        f'{V2}-Large-hf',
        '7581137eff8d4e94f6e796d3baea0e9fa79b22d2',
        '4e01e34ed5549b529b70b92d53226bc370f03041977b390d3dde45d47f516cf9',
    ),
    Entry(
        'depth-anything-v2-metric-indoor-small',
        f'{V2}-Metric-Indoor-Small-hf',
        '8078d68a9c75a972131914f6afd0c1723be0da7f',
        'e990eb82fbf11b05b7813261196a2b841bdcf5a05f64396724a8987fa90504a3',
    ),
    _restricted(
        'depth-anything-v2-metric-indoor-base',
        f'{V2}-Metric-Indoor-Base-hf',
        'c6d9784685727bfc6d0a7b5452ce94afaee1e7f5',
        '8b902f5d9a8c8a9520f3a8c6a00afe442b464eff5aaf0cb405d1da721cd9f79f',
    ),
    _restricted(
        'depth-anything-v2-metric-indoor-large',
        f'{V2}-Metric-Indoor-Large-hf',
        'd2fc6a93601aabb1139a3bf0ebfcb4e89c67817f',
        '04d3295ff4f9cbee72b8998a85930fe870b45ba4431e7af47415fbded02388ca',
    ),
    Entry(
        'depth-anything-v2-metric-outdoor-small',
        f'{V2}-Metric-Outdoor-Small-hf',
        'fd2c22027eaf20374204f14099b8341e1925ad39',
        'ad065c77a7421ca55159a1f0db9433397a607690f2d76bb8a6fc54b1be7a3124',
    ),
    _restricted(
        'depth-anything-v2-metric-outdoor-base',
        f'{V2}-Metric-Outdoor-Base-hf',
        '5b575fded0346068343a6d96d0ce3ab6dbc9fb49',
        '1f2e9ed13ee39126686994669f8d1bfd9cd8f093a4d2a0891e5a0e5263b480c9',
    ),
    _restricted(
        'depth-anything-v2-metric-outdoor-large',
        f'{V2}-Metric-Outdoor-Large-hf',
        '4eab4cf1983c2801c515804005214de56a4b67cc',
        '15f7de4b22f1b1194847ea694ee9ed6395563ba5cd52b70b87901f183c232c9a',
    ),
    Entry(
        'sam-vit-base',
        'facebook/sam-vit-base',
        '70c1a07f894ebb5b307fd9eaaee97b9dfc16068f',
        None,
    ),
    Entry(
        'sam-vit-large',
        'facebook/sam-vit-large',
        '6851e0441005b0fb96f2cc4dfac472f3d1b14af1',
        'a57e1b13cd1545938dfcbc9fb26df7f60de6650237a9383382a874a623564b81',
    ),
    Entry(
        'sam-vit-huge',
        'facebook/sam-vit-huge',
        '87aecf0df4ce6b30cd7de76e87673c49644bdf67',
        'edfb0462392541fca9af44ff039bfb32dbd0c939997f3abb77a26e23af7afd7c',
    ),
    Entry(
        'sam2.1-hiera-tiny',
        'facebook/sam2.1-hiera-tiny',
        'de431c4043854a71d8101e17995dfe596bf101a5',
        '48c14467e5cf9e51870511feb72c89688e82dd74523142c0538b663e193ac2a7',
    ),
    Entry(
        'sam2.1-hiera-small',
        'facebook/sam2.1-hiera-small',
        'ee5bba1d82bb8749febdf90f45e84b687142ba03',
        '0a4067b11ce1e23d5229203f11c718a823060d15a4b23fa2372a7d4b77cbbc60',
    ),
    Entry(
        'sam2.1-hiera-base-plus',
        'facebook/sam2.1-hiera-base-plus',
        'b7320756a13354e7530a63935656d35b2f91a290',
        '2012733a0de5d03efd1bba550a2847c4551be9ef2e0d497c83074df66189f780',
    ),
    Entry(
        'sam2.1-hiera-large',
        'facebook/sam2.1-hiera-large',
        '665f8e2ad61cf5f53d65644ff27c8ee525124610',
        'dc407dce21301fd94abb395c5099b4f2c455fdc8a8f261ac3d0ea6d4cd197230',
    ),
)
CATALOGUE = {entry.name: entry for entry in ENTRIES}


@dataclass(frozen=True)
class OpenedNetwork:
    """A published network with its weights.

    Attributes:
        name: its name in the catalogue, or the folder's.
        licence: of the weights.
        network: for inference, on the CPU, frozen.
        sources: for a bundle's ``model.json``: one entry for each file of weights, with its sha256.
    """

    name: str
    licence: str
    network: DepthAnything | SamEncoder | Sam2Encoder
    sources: list[dict[str, str]]


def open_published(
    name_or_folder: str | Path,
    accept_noncommercial: bool = False,
    report: Callable[[str], None] = print,
    before_neck: bool = False,
) -> OpenedNetwork:
    """Open a published network by its name in the catalogue, or from a folder.

    Args:
        name_or_folder: a name is downloaded once, into the cache of huggingface_hub. A folder holds
            ``config.json`` and ``model.safetensors``, or shards of that with their index.
        accept_noncommercial: needed for weights that must not be used commercially.
        report: gets a line with the licence before anything is downloaded.
        before_neck: only for SAM: return the map before the neck; see `SamEncoder`.

    Raises:
        BrigesError: unknown name, licence not accepted, hub out of reach, or a folder that does not
            hold one of the networks we know, whole, as safetensors.
    """
    entry = CATALOGUE.get(str(name_or_folder))
    if entry is not None:
        _refuse_restricted(entry, accept_noncommercial)
        report(
            f'{entry.name}: {entry.hub_id} at {entry.revision or "main"}, licence {entry.licence}'
        )
        folder = _download(entry)
    else:
        folder = Path(name_or_folder).expanduser()
        if not folder.is_dir():
            raise BrigesError(
                f'{name_or_folder} is neither a folder nor a published network; there are: '
                + ', '.join(CATALOGUE)
            )
    files = _weights(folder)
    digests = {file.name: file_sha256(file) for file in files}
    downloaded = str(name_or_folder) in CATALOGUE
    if downloaded and entry is not None and entry.sha256 not in (None, *digests.values()):
        raise BrigesError(
            f'{folder} has weights with sha256 {", ".join(digests.values())}, and {entry.name} has '
            f'{entry.sha256}; delete that folder and download it again, from the hub itself'
        )
    source = {'name': folder.resolve().name}  # not its path: a bundle names no folder of a machine
    if entry is None:
        entry = next((e for e in ENTRIES if e.sha256 in digests.values()), None)
        if entry is not None:
            _refuse_restricted(entry, accept_noncommercial)
    if entry is not None:
        # A snapshot of the hub lies in a folder with the name of its commit.
        revision = entry.revision or folder.resolve().name
        source = {'name': entry.name, 'hub_id': entry.hub_id, 'revision': revision}
    licence = UNKNOWN_LICENCE if entry is None else entry.licence
    network = _load(folder, files, before_neck)
    return OpenedNetwork(
        name=source['name'],
        licence=licence,
        network=network,
        sources=[
            {**source, 'file': name, 'sha256': digest, 'licence': licence}
            for name, digest in digests.items()
        ],
    )


def _refuse_restricted(entry: Entry, accepted: bool) -> None:
    if entry.noncommercial and not accepted:
        raise BrigesError(
            f'{entry.name} is licensed {entry.licence}, which forbids commercial use; '
            'to use it nevertheless, give --accept-noncommercial'
        )


def _download(entry: Entry) -> Path:
    """The folder with the configuration and the weights, from the hub or its cache."""
    try:
        folder = snapshot_download(
            entry.hub_id,
            revision=entry.revision,
            allow_patterns=[CONFIG, WEIGHTS, '*.safetensors*'],
        )
    except Exception as error:  # of the hub, of the HTTP library under it, of the disk
        raise BrigesError(
            f'{entry.hub_id} cannot be downloaded ({_first_line(error)}); '
            f'get its {CONFIG} and {WEIGHTS} elsewhere and give their folder, or set HF_ENDPOINT '
            'to a mirror or HF_HOME to a folder with a filled cache'
        ) from error
    return Path(folder)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _weights(folder: Path) -> list[Path]:
    """The files of weights in a folder, sorted."""
    index = folder / INDEX
    if index.is_file():
        try:
            names = set(json.loads(index.read_text())['weight_map'].values())
            # Path.name, so that an index reaches nothing outside its folder.
            files = [folder / Path(name).name for name in sorted(names)]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BrigesError(f'{index} cannot be read ({error}); get it anew') from error
        for file in files:
            if not file.is_file():
                raise BrigesError(f'{file} is missing, which {INDEX} names; get it too')
        return files
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    for file in sorted(folder.iterdir()):
        if file.suffix in PICKLE_SUFFIXES:
            read_tensors(file)  # says why not, and what to do
    raise BrigesError(f'{folder} has no {WEIGHTS}; give a folder as the Hugging Face hub has them')


def _load(
    folder: Path, files: list[Path], before_neck: bool
) -> DepthAnything | SamEncoder | Sam2Encoder:
    path = folder / CONFIG
    try:
        config: dict[str, Any] = json.loads(path.read_text())
        kind = config['model_type']
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BrigesError(
            f'{path} cannot be read ({error}); get it from where the weights are from'
        ) from error
    if before_neck and kind != 'sam':
        raise BrigesError(f'{folder} is {kind}, and only sam has features before a neck')
    published = {name: tensor for file in files for name, tensor in read_tensors(file).items()}
    network: DepthAnything | SamEncoder | Sam2Encoder
    try:
        if kind == 'depth_anything':
            network = empty_depth_anything(config)
            tensors = depth_anything_tensors(published, network)
        elif kind == 'sam':
            network, tensors = empty_sam(config, before_neck), sam_tensors(published)
        elif kind in ('sam2', 'sam2_video'):
            network, tensors = empty_sam2(config), sam_tensors(published)
        else:
            raise BrigesError(f'model_type {kind!r} is not depth_anything, sam, sam2 or sam2_video')
    except Exception as error:  # transformers has many words for a configuration it cannot use
        raise BrigesError(
            f'{path} describes no network that we know ({_first_line(error)}); '
            'get it from where the weights are from'
        ) from error
    load_tensors(network, tensors, folder)
    network.eval().requires_grad_(False)
    return network
