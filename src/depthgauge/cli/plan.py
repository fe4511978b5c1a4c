"""`depthgauge plan`: steps, time and learning rate at other batch sizes, from a training as it is."""

# ruff: noqa: PLC0415 - a command imports what it needs when it is called, so that help answers at once

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from depthgauge.cli import output
from depthgauge.cli.errors import sentences
from depthgauge.cli.numbers import BATCH, EXAMPLES, POSITIVE, SEVERAL, STEPS, THREADS, WARM

if TYPE_CHECKING:
    from depthgauge.planning import Plan
    from depthgauge.stats import Estimate
    from depthgauge.workload import Training

_RATES = {"sgd": 0.1, "momentum": 0.01, "adam": 1e-3, "adamw": 1e-3}
_OF_MODULES = ("preset", "data", "batch", "optimizer", "lr")  # what a factory's own Training says itself


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
@click.option("--preset", default="small", show_default=True, metavar="NAME", help="Size of one of our models.")
@click.option("--data", default="mnist5k", show_default=True, metavar="NAME", help="Data of a model without its own.")
@click.option("--batch", type=BATCH, default=32, show_default=True, help="Its present batch size.")
@click.option("--optimizer", type=click.Choice(list(_RATES)), default="sgd", show_default=True, help="Its optimizer.")
@click.option("--lr", type=POSITIVE, help="Its learning rate.  [default: 0.1; momentum 0.01; Adam 0.001]")
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
    import torch

    from depthgauge.isolation import stdout_to_stderr
    from depthgauge.parallel import Link, ParallelError
    from depthgauge.planning import plan as planned
    from depthgauge.workload import WorkloadError

    try:
        link = None if asked["link"] is None else Link.parse(asked["link"])
    except ParallelError as error:
        raise click.BadParameter(str(error), param_hint="'--link'") from error
    torch.set_num_threads(threads)
    with sentences():
        training = _training(model, asked)
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


def _training(spec: str, asked: dict[str, Any]) -> Training:
    """The factory's own training, or its module's on a data set."""
    from depthgauge import environment, models
    from depthgauge.factories import is_factory
    from depthgauge.workload import Training, WorkloadError

    device = environment.device(asked["device"])
    models.target(spec)
    dataset = _dataset(spec, asked["data"])
    sizes = {"input_shape": dataset.input_shape, "classes": dataset.classes}
    parameters = sizes if is_factory(spec) else {**sizes, "preset": asked["preset"]}
    try:
        made = models.training(spec, device=device, loss=_unset, **parameters)
    except (ValueError, WorkloadError, TypeError) as error:
        raise click.UsageError(str(error)) from error
    except (Exception, SystemExit) as error:  # a factory may raise anything
        raise click.ClickException(f"{spec} cannot be made: {type(error).__name__}: {error}") from error
    given = click.get_current_context().get_parameter_source
    named = [name for name in _OF_MODULES if given(name) is not ParameterSource.DEFAULT]
    if made.loss is not _unset:
        if named:
            raise click.UsageError(f"{spec} makes a Training, which has its own: leave --{named[0]} out")
        return made
    if is_factory(spec) and "preset" in named:
        raise click.UsageError(f"{spec!r} has no presets: --preset is a size of depthgauge's own models")
    return Training(made.model, _loader(dataset, asked["batch"], device), optimizer=_optimizer(spec, made.model, asked))


def _unset(_model: object, _batch: object) -> Any:
    """Loss of a module that brings none along; it is never called."""
    raise AssertionError


def _dataset(spec: str, name: str) -> Any:
    from depthgauge import data, models
    from depthgauge.factories import is_factory

    if not is_factory(spec) and models.arguments(spec).get("vocabulary") is not None:
        raise click.UsageError(
            f"{spec} takes tokens, for which there is no data here: name a factory that makes a depthgauge.Training"
        )
    try:
        dataset = data.load(name)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    except OSError as error:  # a data set that would have to be fetched
        raise click.ClickException(str(error)) from error
    if not dataset.classes or dataset.vocabulary is not None:
        raise click.UsageError(f"{name} has no images of classes: --data takes mnist5k, digits, fashion5k, ...")
    return dataset


def _loader(dataset: Any, batch: int, device: str) -> Any:
    import torch

    from depthgauge import seeding
    from depthgauge.seeding import Purpose

    part = dataset.train.to(device)
    if batch > len(part.x):
        raise click.UsageError(f"--batch {batch} is more than the {len(part.x):,} examples of {dataset.name}")
    return torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(part.x, part.y), batch_size=batch, shuffle=True, drop_last=True,
        generator=seeding.generator(0, Purpose.ORDER),
    )  # fmt: skip


def _optimizer(spec: str, model: Any, asked: dict[str, Any]) -> Any:
    import torch

    kind, parameters = asked["optimizer"], list(model.parameters())
    rate = asked["lr"] or _RATES[kind]
    if not parameters:
        raise click.ClickException(f"{spec} has no parameter that trains: there is nothing to plan")
    if kind == "adam":
        return torch.optim.Adam(parameters, lr=rate)
    if kind == "adamw":
        return torch.optim.AdamW(parameters, lr=rate)
    return torch.optim.SGD(parameters, lr=rate, momentum=0.9 if kind == "momentum" else 0.0)


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
            f"{row.batch:,}", f"{row.devices}{' *' * row.extrapolated}", _bracket(row.steps, ",.0f"),
            _bracket(row.examples, ",.0f"), _bracket(row.seconds, ".3g"),
            *(_bracket(row.device_hours, ".3g") for _ in hours),
            ("x " if math.isnan(found.rate) else "") + _bracket(rate, ".3g"),
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


def _bracket(estimate: Estimate, spec: str) -> str:
    if math.isnan(estimate.value):
        return ""
    if math.isnan(estimate.low) or estimate.low == estimate.high:
        return format(estimate.value, spec)
    return f"{estimate.value:{spec}} [{estimate.low:{spec}}, {estimate.high:{spec}}]"


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
