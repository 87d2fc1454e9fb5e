"""Files that a power cut leaves whole: checkpoints, and the markers of caches."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.progress import Progress

from briges_ros.training.checkpoint import load_checkpoint, save_checkpoint, write_whole
from briges_ros.training.datasets import Sample, frames_sha256
from briges_ros.training.feature_cache import ViewGroup, cached_views

CPU = torch.device('cpu')


class PowerCut(Exception):
    pass


@pytest.fixture
def synced(monkeypatch):
    """Inodes and sizes of the files that were forced to the disk, in order."""
    found, fsync = [], os.fsync

    def noted(file):
        found.append((os.fstat(file).st_ino, os.fstat(file).st_size))
        fsync(file)

    monkeypatch.setattr(os, 'fsync', noted)
    return found


def no_power(_file):
    raise PowerCut


WRITERS = {
    'checkpoint.pt': lambda path, number: save_checkpoint(path, {}, {'step': number}),
    'done': lambda path, number: write_whole(path, str(number)),
}


@pytest.mark.parametrize('name', WRITERS)
def test_a_file_has_its_name_only_when_its_content_is_on_the_disk(
    name, tmp_path, synced, monkeypatch
):
    write, path = WRITERS[name], tmp_path / name
    write(path, 1)
    assert synced == [(path.stat().st_ino, path.stat().st_size)]
    before = path.read_bytes()
    monkeypatch.setattr(os, 'fsync', no_power)
    with pytest.raises(PowerCut):
        write(path, 2)
    assert path.read_bytes() == before
    monkeypatch.undo()
    write(path, 3)
    assert path.read_bytes() != before
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_checkpoint_cut_while_it_is_written_leaves_the_last_one(tmp_path, monkeypatch):
    path = tmp_path / 'checkpoint.pt'
    save_checkpoint(path, {'lr': 1.0}, {'step': 1})
    monkeypatch.setattr(os, 'fsync', no_power)
    with pytest.raises(PowerCut):
        save_checkpoint(path, {'lr': 1.0}, {'step': 2})
    assert load_checkpoint(path, {'lr': 1.0}, CPU)['step'] == 1


class Frames:
    sharp = True

    def __init__(self, count, seed=0):
        self.pictures = np.random.default_rng(seed).integers(0, 256, (count, 60, 80, 3), np.uint8)

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        image = self.pictures[index]
        return Sample(f'frame {index}', image, image[..., 0] / np.float32(255) + np.float32(0.1))


class Trunk:
    """Stands in for the frozen trunk; counts what it sees."""

    first_adapted_block = 6

    def __init__(self):
        self.seen = 0

    def trunk(self, images):
        self.seen += len(images)
        means = images.mean(dim=(1, 2, 3))[:, None, None, None]
        return means.expand(-1, 2, 1 + 2 * 3, 384)


def test_a_cache_of_views_cut_while_it_is_marked_is_made_again(tmp_path, monkeypatch):
    def opened(trunk):
        group = ViewGroup('made-up', 42, 28, 1)
        with Progress(disable=True) as progress:
            return cached_views(Frames(9), group, trunk, tmp_path, 0, progress, CPU)

    with monkeypatch.context() as patch:
        patch.setattr(os, 'fsync', no_power)
        with pytest.raises(PowerCut):
            opened(Trunk())
    assert not list(tmp_path.glob('*.done'))
    again, later = Trunk(), Trunk()
    made = opened(again)
    assert again.seen == 9
    assert [p.read_text() for p in tmp_path.glob('*.done')] == ['9']
    np.testing.assert_array_equal(opened(later).trunk, made.trunk)
    assert later.seen == 0


def test_frames_are_known_by_name_image_and_depth():
    class Changed(Frames):
        def __init__(self, part):
            super().__init__(5)
            self.part = part

        def __getitem__(self, index):
            sample = super().__getitem__(index)
            if index == 4:
                others = {'name': 'x', 'image': 255 - sample.image, 'inverse': 2 * sample.inverse}
                return replace(sample, **{self.part: others[self.part]})
            return sample

    frames = [Frames(5), Frames(6), *(Changed(part) for part in ('name', 'image', 'inverse'))]
    assert frames_sha256(Frames(5)) == frames_sha256(frames[0])
    assert len({frames_sha256(each) for each in frames}) == len(frames)
