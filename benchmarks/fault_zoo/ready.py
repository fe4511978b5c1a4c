"""Imports that every case needs, made once: the process that all cases are forked from imports this module."""

from __future__ import annotations

import torch

from benchmarks.fault_zoo import cases, halves
from depthgauge.checking.asking import kernels

__all__ = ["cases"]

torch.set_num_threads(1)
for _half in halves.HALVES:
    halves.faults(_half)
    halves.sounds(_half)
kernels()
