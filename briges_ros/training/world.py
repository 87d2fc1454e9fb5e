"""Several processes that train together, as torchrun starts them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from briges_ros.errors import BrigesError


@dataclass(frozen=True)
class World:
    """The processes that train together.

    Attributes:
        rank: of this process.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    def gather(self, values: Tensor) -> Tensor:
        """(N,) of each process -> (size * N,) of all, by rank."""
        if self.size == 1:
            return values
        everyone = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(everyone, values)
        return torch.cat(everyone)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()


def join_world(device: torch.device) -> World:
    """Join the processes that torchrun started; alone without it."""
    size = int(os.environ.get('WORLD_SIZE', '1'))
    if size == 1:
        return World()
    if not dist.is_initialized():
        # The first process computes the features, and the others wait for it.
        dist.init_process_group(
            'nccl' if device.type == 'cuda' else 'gloo', timeout=timedelta(days=1)
        )
    return World(dist.get_rank(), size)


def choose_device(name: str | None) -> torch.device:
    """The device of that name; default: CUDA if there is one, under torchrun one for each rank.

    Raises:
        BrigesError: torch has no such device here.
    """
    if name is None:
        name = 'cuda' if torch.cuda.is_available() else 'cpu'
    if name == 'cuda' and 'LOCAL_RANK' in os.environ:
        name = f'cuda:{os.environ["LOCAL_RANK"]}'
    try:
        device = torch.device(name)
        if device.type == 'cuda':
            torch.cuda.set_device(device)
        torch.zeros(1, device=device)
    except (
        RuntimeError,
        AssertionError,
    ) as error:
        reason = str(error).splitlines()[0]
        raise BrigesError(f'no device {name!r} here ({reason}); give --device cpu') from error
    return device
