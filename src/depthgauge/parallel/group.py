"""The process group that a rank is in."""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed

PATIENCE = 20.0
"""Seconds that a collective waits for the others, unless it is told otherwise."""


@dataclass(frozen=True)
class Group:
    """A rank's place in its process group, which is torch's default one.

    Attributes:
        rank: its number, from 0.
        ranks: number of ranks.
        device: where it computes: `cpu`, or a CUDA device of its own.
        patience: seconds that a collective waits for the other ranks.
    """

    rank: int
    ranks: int
    device: torch.device
    patience: float = PATIENCE

    @staticmethod
    def here(device: str, patience: float = PATIENCE) -> Group:
        """The place that torchrun gave this process."""
        own = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if device.startswith("cuda") else torch.device("cpu")
        if own.type == "cuda":
            torch.cuda.set_device(own)
        return Group(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), own, patience)

    def of_first(self, ranks: int) -> Any:
        """Make a process group of the first so many ranks, as patient as this; every rank calls it, whether in or not.

        torch's own default is half an hour with gloo, whatever the default group was given.
        """
        return distributed.new_group(list(range(ranks)), timeout=datetime.timedelta(seconds=self.patience))


def device_for(ranks: int, asked: str) -> str:
    """The kind of device that as many ranks run on: `cuda` where each gets one of its own, else `cpu`."""
    return "cuda" if asked.startswith("cuda") and torch.cuda.device_count() >= ranks else "cpu"


def backend_of(device: str) -> str:
    """The backend by which ranks on such a device talk; on CUDA gloo as well, for tensors of the host."""
    return "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
