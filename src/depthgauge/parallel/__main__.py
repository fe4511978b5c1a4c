"""Collectives of this machine, or of all nodes that torchrun has started this on: times, bandwidths, alpha and beta.

python -m depthgauge.parallel
torchrun --nproc-per-node 8 -m depthgauge.parallel --most 1G
torchrun --nnodes 2 --node-rank 0 --nproc-per-node 8 --rdzv-endpoint HOST:29500 --rdzv-backend c10d ...
"""

from __future__ import annotations

import datetime
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pandas as pd
import torch
from torch import distributed

from depthgauge import environment
from depthgauge.foreign import describe_error
from depthgauge.parallel.collectives import NAMES, held, links, measure, sizes_between, table
from depthgauge.parallel.group import Group, backend_of
from depthgauge.parallel.launching import check, launch
from depthgauge.parallel.naming import ParallelError
from depthgauge.theory import Algorithm

_FEWEST = 6  # rounds that an interval of a median takes
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_LIMIT, _PATIENCE = 1800.0, 120.0  # seconds of all, and of one wait for the others


class _Bytes(click.ParamType[int]):
    name = "bytes"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """16M is 16 x 2^20."""
        found = re.fullmatch(r"(\d{1,12})([KMG]?)", str(value).upper())
        if found is None or int(found[1]) * _UNITS[found[2]] < 4:
            self.fail(f"{value!r} is no size from 4 bytes, such as 4, 64K or 16M", param, ctx)
        return int(found[1]) * _UNITS[found[2]]


@click.command()
@click.option("--least", type=_Bytes(), default="4", show_default=True, help="Smallest buffer, in bytes.")
@click.option(
    "--most", type=_Bytes(), default="16M", show_default=True, help="Largest buffer; K, M and G are powers of 1024."
)
@click.option("--factor", type=click.FloatRange(1.1), default=4.0, show_default=True, help="From a size to the next.")
@click.option("--rounds", type=click.IntRange(1), default=12, show_default=True, help="Durations of each size.")
@click.option(
    "--collective",
    "names",
    multiple=True,
    default=NAMES,
    type=click.Choice([*NAMES, "broadcast"]),
    help="Given once for each that is timed.  [default: the first three]",
)
@click.option("--algorithm", type=click.Choice(["ring", "doubling"]), default="ring", show_default=True,
              help="Formula of the fitted line.")  # fmt: skip
@click.option("--ranks", type=click.IntRange(1, 512), default=2, show_default=True, help="Ranks, without torchrun.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="[default: cuda where each rank here has a device]")
@click.option("--csv", type=click.Path(path_type=Path, dir_okay=False), help="File for all durations.")
def main(*, device: str | None, ranks: int, algorithm: Algorithm, csv: Path | None, **asked: Any) -> None:
    """Time collectives by size, and fit alpha seconds a message and beta seconds a byte, each with a 95 % interval.

    Started by torchrun, on any number of nodes, all ranks take part and rank 0 prints; else it starts ranks here.
    """
    joined = distributed.is_torchelastic_launched()
    here, everywhere = (int(os.environ[f"{where}WORLD_SIZE"]) if joined else ranks for where in ("LOCAL_", ""))
    device = device or _device(here)
    _check_memory(here, held(asked["names"], asked["most"], everywhere), device)
    try:
        work = (sizes_between(asked["least"], asked["most"], asked["factor"]), asked["rounds"], asked["names"])
        frame = _joined(device, work) if joined else _launched(ranks, device, work)
    except ValueError as error:  # ParallelError is one
        raise click.ClickException(str(error)) from error
    if frame is None:
        return
    if csv is not None:
        try:
            frame.to_csv(csv, index=False)
        except OSError as error:
            raise click.ClickException(f"{csv} cannot be written: {describe_error(error)}") from error
    for line in shown(frame, algorithm):
        click.echo(line)
    ranks = int(frame["ranks"].iloc[0])
    local = int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
    if 1 < local < ranks:
        click.echo(
            f"{ranks} ranks lie on several machines, {local} on this one: alpha and beta are those of one flat link in"
            " place of the two kinds, inside a machine and between them, and hold for as many machines as these."
        )
    if local > (cores := environment.cores()):
        click.echo(f"{local} ranks here share {cores} cores: on a CPU the scheduler's turns are in these figures.")


def _check_memory(here: int, each: int, device: str) -> None:
    """Refuse what the ranks here could not hold together; a CUDA device refuses it by itself.

    Raises:
        click.ClickException: one sentence.
    """
    if device == "cpu" and here * each > (there := environment.available_memory()):
        raise click.ClickException(
            f"buffers of so many bytes take {each / 2**30:.3g} GiB in each of {here} ranks here, and there are"
            f" {there / 2**30:.3g} GiB available: lower --most"
        )


def _launched(ranks: int, device: str, work: tuple[Any, ...]) -> pd.DataFrame:
    outcome = launch(measure, *work, ranks=ranks, device=device, limit=_LIMIT, patience=_PATIENCE)
    if not outcome.well:
        raise ParallelError(outcome.why)
    frame: pd.DataFrame = outcome.answers[0]
    return frame


def _joined(device: str, work: tuple[Any, ...]) -> pd.DataFrame | None:
    """The frame in rank 0 of the group that torchrun started this process for; None in the others."""
    check(int(os.environ["LOCAL_WORLD_SIZE"]), device)
    group = Group.here(device, _PATIENCE)
    distributed.init_process_group(backend_of(device), timeout=datetime.timedelta(seconds=_PATIENCE))
    frame = measure(group, *work)
    distributed.destroy_process_group()
    return frame if group.rank == 0 else None


def _device(ranks: int) -> str:
    return "cuda" if torch.cuda.device_count() >= ranks else "cpu"


def shown(frame: pd.DataFrame, algorithm: Algorithm = "ring") -> Iterator[str]:
    """The lines that are printed for durations from `measure`."""
    ranks = int(frame["ranks"].iloc[0])
    counted = int(frame["round"].nunique())
    bounds = (
        "medians with 95 % intervals"
        if counted >= _FEWEST
        else f"medians of {counted} rounds; an interval takes {_FEWEST}"
    )
    yield f"{ranks} rank{'s' if ranks > 1 else ''}, torch {torch.__version__}; {bounds}"
    yield f"{'':15}{'bytes':>12}  {'us':28}{'algorithm':>10}{'bus GB/s':>10}  fitted us"
    for row in table(frame, algorithm).to_dict("records"):
        timed = _micro(row["seconds"], row["low_95"], row["high_95"])
        fitted = _micro(row["fitted"], row["fitted_low_95"], row["fitted_high_95"])
        rates = "".join(f"{row[name] / 1e9:>10.3g}" for name in ("algorithm_bandwidth", "bus_bandwidth"))
        yield f"{row['collective']:15}{row['bytes']:>12}  {timed:28}{rates}  {fitted}".rstrip()
    found = links(frame, algorithm)
    yield from (f"{link} by {algorithm}" for link in found.values())
    if any(link.bounded for link in found.values()):
        yield "Intervals take sizes as independent: if neighbours depart alike from the line they are too narrow."
    if ranks > 1 and not found:
        yield "No line was fitted: it takes several sizes of an all-reduce, a reduce-scatter or an all-gather."
    yield "algorithm: bytes over seconds, what a caller gets. bus: what each rank sends in a ring over seconds, to be"
    yield "held against a link's speed, and near 1 / beta for large buffers."


def _micro(*seconds: float) -> str:
    value, low, high = (f"{1e6 * each:.4g}" for each in seconds)
    return f"{value} [{low}, {high}]" if all(map(math.isfinite, seconds[1:])) else value


if __name__ == "__main__":
    main()
