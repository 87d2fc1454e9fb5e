"""Weights from files: safetensors only, and only if they fit the network exactly.

A pickle can run any code when it is opened, so none is opened. A checkpoint that fits only partly
would leave random weights in the network without a word, so it is refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from briges_ros.errors import BrigesError

PICKLE_SUFFIXES = ('.bin', '.ckpt', '.pickle', '.pkl', '.pt', '.pth')
HEADER = 9  # bytes: the length of the header as a little-endian uint64, then a brace


def load_checked(module: nn.Module, path: Path) -> None:
    """Load a safetensors file whose tensors are exactly those of a module.

    Args:
        module: gets the values in place, in its own dtype and on its own device. Unchanged if the
            file is refused.
        path: the file.

    Raises:
        BrigesError: a pickle, a broken file, or one with missing, extra or misshapen tensors; the
            message names the first tensor that differs, in alphabetical order.
    """
    load_tensors(module, read_tensors(path), path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU, by name.

    Raises:
        BrigesError: there is no such file, it is a pickle, or it is not whole.
    """
    mend = 'give a .safetensors file'
    try:
        with path.open('rb') as file:
            start = file.read(HEADER)
    except OSError as error:
        raise BrigesError(f'{path} cannot be read ({error.strerror}); {mend}') from error
    # The length of a safetensors header may begin with the bytes of a pickle, hence the brace.
    safetensors = len(start) == HEADER and start.endswith(b'{')
    pickled = not safetensors and start.startswith((b'PK', b'\x80'))
    if pickled or path.suffix.lower() in PICKLE_SUFFIXES:
        raise BrigesError(
            f'{path} is a pickle, which can run any code when it is opened; convert it to '
            'safetensors where you trust it (transformers: from_pretrained, then save_pretrained)'
        )
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise BrigesError(f'{path} is no whole safetensors file ({error}); get it anew') from error


def read_frozen(path: Path) -> dict[str, str]:
    """Digests of the frozen parts that a file's tensors were trained beside.

    Returns:
        `briges_ros.network.briges.state_sha256` by part, as gate training wrote it into the
        metadata of what it released; empty if the file says nothing of it.

    Args:
        path: a file that `read_tensors` takes.

    Raises:
        BrigesError: the metadata is broken.
    """
    with safe_open(path, 'pt') as file:
        text = (file.metadata() or {}).get('frozen', '{}')
    try:
        frozen = json.loads(text)
    except json.JSONDecodeError:
        frozen = None
    if not isinstance(frozen, dict) or not all(isinstance(d, str) for d in frozen.values()):
        raise BrigesError(f'{path}: its metadata "frozen" is no table of digests; get it anew')
    return frozen


def load_tensors(module: nn.Module, tensors: Mapping[str, Tensor], origin: Path) -> None:
    """Load tensors that are exactly those of a module; see `load_checked`.

    Args:
        module: gets the values in place.
        tensors: by the module's names.
        origin: what an error is about.

    Raises:
        BrigesError: as `load_checked`.
    """
    expected = module.state_dict()
    differing = [
        name
        for name in sorted(expected.keys() | tensors.keys())
        if name not in expected
        or name not in tensors
        or expected[name].shape != tensors[name].shape
        or expected[name].is_floating_point() != tensors[name].is_floating_point()
    ]
    if differing:
        first = differing[0]
        raise BrigesError(
            f'{origin} does not fit the network: {first} is {_kind(tensors.get(first))} in the '
            f'file and {_kind(expected.get(first))} in the network, and so on for '
            f'{len(differing)} of {len(expected)} tensors; give the weights of this very network'
        )
    module.load_state_dict(dict(tensors))


def _kind(tensor: Tensor | None) -> str:
    if tensor is None:
        return 'missing'
    shape = str(list(tensor.shape))
    return shape if tensor.is_floating_point() else f'{shape} {tensor.dtype}'.replace('torch.', '')


def empty_on_cpu(module: nn.Module) -> nn.Module:
    """Give a module that was made on the meta device memory, with nothing useful in it yet.

    Large networks are made so, because their random initialisation takes longer than loading.

    Raises:
        ValueError: a buffer is not in the state dict, so that loading would leave it undefined.
    """
    if unsaved := {name for name, _ in module.named_buffers()} - module.state_dict().keys():
        raise ValueError(f'{sorted(unsaved)} would stay undefined')
    return module.to_empty(device=torch.device('cpu'))


def put_in_place(partial: Path, path: Path) -> None:
    """Give a finished file its name; what had it before is whole until then.

    Without the fsync a power cut may leave the new name with no content: file systems are free to
    write the name first.
    """
    with partial.open('rb') as file:
        os.fsync(file.fileno())
    partial.replace(path)
