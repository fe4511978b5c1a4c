"""The process group that a rank is in."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Group:
    """A rank's place in its process group, which is torch's default one.

    Attributes:
        rank: its number, from 0.
        ranks: number of ranks.
        device: where it computes: `cpu`, or a CUDA device of its own.
    """

    rank: int
    ranks: int
    device: torch.device

    @staticmethod
    def here(device: str) -> Group:
        """The place that torchrun gave this process."""
        own = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if device.startswith("cuda") else torch.device("cpu")
        if own.type == "cuda":
            torch.cuda.set_device(own)
        return Group(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), own)


def device_for(ranks: int, asked: str) -> str:
    """The kind of device that as many ranks run on: `cuda` where each gets one of its own, else `cpu`."""
    return "cuda" if asked.startswith("cuda") and torch.cuda.device_count() >= ranks else "cpu"


def backend_of(device: str) -> str:
    """The backend by which ranks on such a device talk; on CUDA gloo as well, for tensors of the host."""
    return "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
