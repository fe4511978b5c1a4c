"""`depthgauge plan`: steps, time and learning rate at other batch sizes, from a training as it is."""

# ruff: noqa: PLC0415 - a command imports what it needs when it is called, so that help answers at once

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from depthgauge.cli import output
from depthgauge.cli.errors import sentences
from depthgauge.cli.numbers import EXAMPLES, SEVERAL, STEPS, THREADS, WARM
from depthgauge.cli.trainings import on_data, training_options
from depthgauge.digits import three

if TYPE_CHECKING:
    from depthgauge.planning import Plan
    from depthgauge.stats import Estimate


@click.command()
@click.argument("model")
@click.option("--batches", type=SEVERAL, metavar="N,N,...", help="Batch sizes.  [default: powers of two around it]")
@click.option(
    "--devices", type=SEVERAL, default=(1,), metavar="N,N,...", help="Devices that share a batch.  [default: 1]"
)
@click.option(
    "--steps", type=STEPS, default=1000, show_default=True, help="Steps that the training takes at its present batch."
)
@click.option(
    "--link",
    metavar="NAME|A,B",
    help="Link of the devices: nvlink, pcie, 100gbe, or seconds a message and seconds a byte, as 5e-6,1e-10.",
)
@click.option("--warm", type=WARM, help="Own steps along which the noise is measured.  [default: 100]")
@click.option(
    "--examples", type=EXAMPLES, default=1024, show_default=True, help="Examples of each measurement of the noise."
)
@training_options
@click.option("--device", default="cpu", show_default=True, metavar="cpu|cuda[:i]|auto", help="Device of the steps.")
@click.option("--threads", type=THREADS, default=1, show_default=True, help="Intra-op threads of a CPU.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
def plan(*, model: str, threads: int, as_json: bool, **asked: Any) -> None:
    r"""Plan a training at other batch sizes: steps, time, memory and learning rate, each with its 95 % interval.

    MODEL is a name from `depthgauge list`, or your own package.module:factory, which makes a depthgauge.Training, or a
    module that takes images.

    \b
    Examples:
        depthgauge plan mlp --data digits --devices 1,8
        depthgauge plan my_project.nets:training --batches 64,256,1024 --steps 20000
        depthgauge plan my_project.nets:training --devices 1,8,64 --link 1e-5,1e-10
    """
    from depthgauge.isolation import stdout_to_stderr
    from depthgauge.parallel import Link, ParallelError
    from depthgauge.planning import plan as planned
    from depthgauge.timing.conditions import pinned
    from depthgauge.workload import WorkloadError

    try:
        link = None if asked["link"] is None else Link.parse(asked["link"])
    except ParallelError as error:
        raise click.BadParameter(str(error), param_hint="'--link'") from error
    with sentences(), pinned(threads):
        training = on_data(model, asked, "plan")
        try:
            with stdout_to_stderr():
                found = planned(
                    training, batches=asked["batches"], devices=asked["devices"], steps=asked["steps"],
                    warm=asked["warm"], examples=asked["examples"], link=link,
                    progress=lambda text: output.show(f"{model}: {text}"),
                )  # fmt: skip
        except WorkloadError as error:
            raise click.ClickException(f"{model} cannot be planned: {error}") from error
        finally:
            output.show("")
    if as_json:
        output.tell_json(_as_dict(found))
    else:
        _print(found)


# -- the answer --------------------------------------------------------------------------------------------------------


def _print(found: Plan) -> None:
    from rich.table import Table

    several = any(row.extrapolated for row in found.rows)
    hours = ["device-hours"] * several
    table = Table(
        "batch", "devices", "steps", "examples", "seconds", *hours, "learning rate", "memory, MiB", box=None,
        pad_edge=False,
    )  # fmt: skip
    for row in found.rows:
        rate = row.factor if math.isnan(found.rate) else row.rate
        table.add_row(
            f"{row.batch:,}", f"{row.devices}{' *' * row.extrapolated}", _bracket(row.steps, _whole),
            _bracket(row.examples, _whole), _bracket(row.seconds),
            *(_bracket(row.device_hours) for _ in hours),
            ("x " if math.isnan(found.rate) else "") + _bracket(rate),
            "" if math.isnan(row.memory) else f"{row.memory / 2**20:,.1f}",
        )  # fmt: skip
    output.tell_table(table)
    if several:
        output.tell("* extrapolated")
    output.tell(f"\n{output.plain(found.line)}.")
    if found.bought:
        output.tell(f"{output.plain(found.bought)}.")
    for note in found.notes:
        output.tell(output.plain(note))


def _bracket(estimate: Estimate, spell: Callable[[float], str] = three) -> str:
    if math.isnan(estimate.value):
        return ""
    if math.isnan(estimate.low) or estimate.low == estimate.high:
        return spell(estimate.value)
    return f"{spell(estimate.value)} [{spell(estimate.low)}, {spell(estimate.high)}]"


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _as_dict(found: Plan) -> dict[str, Any]:
    """The plan for a program; null stands for what is not known, `inf` for what has no end."""
    frames = {"rows": found.to_frame(), "noise": found.noise_frame()}
    tables = {
        name: [{str(key): _plain(value) for key, value in row.items()} for row in frame.to_dict("records")]
        for name, frame in frames.items()
    }
    return {
        "batch": found.present, "steps": found.steps, "learning_rate": _plain(found.rate), "rule": found.rule,
        "critical_batch": _plain(found.critical.value), "critical_batch_low_95": _plain(found.critical.low),
        "critical_batch_high_95": _plain(found.critical.high), "decided": found.decided, "advice": found.line,
        "bought": found.bought, "notes": list(found.notes), **tables,
    }  # fmt: skip


def _plain(value: Any) -> Any:
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return None if math.isnan(value) else "inf" if value > 0 else "-inf"
