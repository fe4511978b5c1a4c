"""Batch normalization: how many numbers its statistics rest on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from depthgauge.checking.answers import Finding, Kind, Measure, Status
from depthgauge.checking.words import listed, percent, plural
from depthgauge.workload import Training

FAULT = 2  # examples: a ResNet-50's error on ImageNet is 23.6 % at 32 an accelerator, 24.8 at 8, 27.3 at 4, 34.7 at 2
SMALL = 8  # (Wu and He 2018, arXiv:1803.08494, table 2)

KINDS = {
    "norm_batch": Kind(
        "fault",
        f"batch normalization in train mode over {FAULT} examples or fewer; where they give it two numbers a"
        f" channel, its"
        " outputs are -1 and 1 whatever comes in (Wu and He 2018, arXiv:1803.08494: 11 points of error at 2 examples)",
    ),
    "small_norm_batch": Kind(
        "property",
        f"batch normalization in train mode over fewer than {SMALL} examples (ibid.: 4 points of error at 4,"
        f" below 2 at 8)",
    ),
    "last_batch": Kind(
        "fault",
        "the last batch of an epoch holds one example, of which a batch normalization has one number a channel: it"
        " raises there; where it has more, as of an image's places, it is none",
    ),
}


def normalizes(training: Training) -> list[str]:
    """Names of the layers that normalize by the batch's own statistics, over one device."""
    return [
        name
        for name, each in training.model.named_modules()
        if isinstance(each, nn.modules.batchnorm._BatchNorm)
        and not isinstance(each, nn.SyncBatchNorm)
        and (each.training or not each.track_running_stats)
    ]


def read(training: Training, batch: Any, loader: Any) -> Iterator[Finding]:
    """Find too small a batch for batch normalization; nothing where there is none."""
    names = normalizes(training)
    if not names:
        return
    counts = _counts(training, names, batch)
    if counts:
        yield from _small(counts)
    first, rest = _sizes(loader)
    single = [name for name, (_, numbers) in counts.items() if numbers <= first]
    if rest == 1 and single:
        yield Finding(
            "last_batch", Status.BROKEN,
            f"the last batch of an epoch holds one example, of which batch normalization ({listed(single)}) has one"
            " number a channel: it has no variance, and raises",
            "leave it out: DataLoader(..., drop_last=True)", "every batch has statistics", ("batches", *single[:5]),
            Measure("examples of the last batch", 1, unit="examples"),
        )  # fmt: skip


def _small(counts: dict[str, tuple[int, int]]) -> Iterator[Finding]:
    examples, numbers = min(counts.values())
    where = [name for name, (each, _) in counts.items() if each == examples]
    if examples >= SMALL:
        return
    spread = math.sqrt(2 / max(examples - 1, 1))
    text = (
        f"batch normalization ({listed(where)}) takes its mean and variance from {plural(examples, 'example')}: such"
        f" a variance is wrong by {percent(spread)}"
    )
    if numbers <= FAULT:
        text += ", and of two numbers a channel it makes -1 and 1, whatever they are"
    fault = examples <= FAULT
    yield Finding(
        "norm_batch" if fault else "small_norm_batch",
        Status.BROKEN if numbers <= FAULT else Status.LOOK, text,
        f"raise the batch to {SMALL} examples or more, or put nn.GroupNorm in its place",
        f"the variance's error falls to {percent(math.sqrt(2 / (SMALL - 1)))} at {SMALL} examples, and to 25 % at 32",
        tuple(where[:5]), Measure("examples of a normalization", examples, unit="examples"),
    )  # fmt: skip


def _counts(training: Training, names: list[str], batch: Any) -> dict[str, tuple[int, int]]:
    """Examples, and numbers a channel, that each of these layers gets in a pass."""
    found: dict[str, tuple[int, int]] = {}
    modules = dict(training.model.named_modules())

    def seen(name: str, module: nn.Module, given: Tensor) -> None:
        channels = max(int(getattr(module, "num_features", 0) or 1), 1)
        found[name] = min(found.get(name, (1 << 62, 0)), (len(given), given.numel() // channels))

    with training.untouched():
        for name in names:
            modules[name].register_forward_pre_hook(lambda module, args, name=name: seen(name, module, args[0]))
        training.value(batch)
    return found


def _sizes(loader: Any) -> tuple[int, int]:
    """Examples of an epoch's first batch and of its last, where a loader says so; 0 where it does not."""
    size, drop = getattr(loader, "batch_size", None), getattr(loader, "drop_last", True)
    try:
        count = len(loader.sampler)
    except Exception:  # noqa: BLE001 - a stranger's loader
        return 0, 0
    if not isinstance(size, int) or size < 2 or drop:
        return 0, 0
    return min(size, count), count % size or size
