"""Which frames train and which score, from the lists in ``splits/`` of a data folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from briges_ros.errors import BrigesError

SPLITS = ('train', 'held_out')


def check_split(split: str) -> None:
    """Refuse a split that is not one: a typing error must not score on training frames."""
    if split not in SPLITS:
        raise BrigesError(f'no split {split!r}; choose from {", ".join(SPLITS)}')


def split_list(root: Path, split: str) -> Path:
    """Where the list of a split lies."""
    return root / 'splits' / f'{split}.txt'


def read_list(path: Path) -> list[str]:
    """The lines of a list without blank ones and comments (#); an empty list is refused."""
    try:
        lines = [line.strip() for line in path.read_text(encoding='utf-8').splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise BrigesError(f'{path}: not a readable text file ({error})') from error
    entries = [line for line in lines if line and not line.startswith('#')]
    if not entries:
        raise BrigesError(f'{path} lists nothing; write one frame or folder a line')
    return entries


def choose(names: Sequence[str], root: Path, split: str) -> list[str]:
    """The names that belong to a split.

    An entry of a list is a name, or a folder that stands for all names below it.
    ``splits/held_out.txt`` says what scores, ``splits/train.txt`` what trains; without the latter
    all the rest trains. What is held out never trains, whatever the other list says.

    Args:
        names: of all frames, with '/' between their folders.
        root: the data folder.
        split: 'train' or 'held_out'.

    Raises:
        BrigesError: an unknown split, held-out frames without a list, an entry that no frame
            bears (a typing error would let frames train that should not), or nothing left.
    """
    check_split(split)
    held_out_list, train_list = split_list(root, 'held_out'), split_list(root, 'train')
    if split == 'held_out' and not held_out_list.is_file():
        raise BrigesError(
            f'{held_out_list} is missing: list in it what never trains, one frame or folder a line'
        )
    held_out = _listed(names, held_out_list) if held_out_list.is_file() else set()
    if split == 'held_out':
        return [name for name in names if name in held_out]
    train = _listed(names, train_list) if train_list.is_file() else set(names)
    chosen = [name for name in names if name in train and name not in held_out]
    if not chosen:
        raise BrigesError(f'{root}: all {len(names)} frames are held out by {held_out_list}')
    return chosen


def _listed(names: Sequence[str], path: Path) -> set[str]:
    entries = {entry.rstrip('/') for entry in read_list(path)}
    chosen, used = set(), set()
    for name in names:
        found = entries.intersection(_with_folders(name))
        if found:
            chosen.add(name)
            used |= found
    unused = sorted(entries - used)
    if unused:
        raise BrigesError(f'{path} lists {unused[0]!r}, which is neither a frame nor a folder')
    return chosen


def _with_folders(name: str) -> Iterator[str]:
    """'a/b/c' -> 'a', 'a/b', 'a/b/c'."""
    parts = name.split('/')
    for count in range(1, len(parts) + 1):
        yield '/'.join(parts[:count])
