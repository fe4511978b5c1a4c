"""The training that a command is about: a factory's own, or a model's on a data set."""

# ruff: noqa: PLC0415 - a command imports what it needs when it is called, so that help answers at once

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from depthgauge.cli.numbers import BATCH, POSITIVE

if TYPE_CHECKING:
    from depthgauge.factories import Input
    from depthgauge.workload import Training

_RATES = {"sgd": 0.1, "momentum": 0.01, "adam": 1e-3, "adamw": 1e-3}
_OF_MODULES = ("preset", "data", "batch", "optimizer", "lr")  # what a factory's own Training says itself
_OPTIONS = (
    click.option("--preset", default="small", show_default=True, metavar="NAME", help="Size of one of our models."),
    click.option(
        "--data", default="mnist5k", show_default=True, metavar="NAME", help="Data of a model without its own."
    ),
    click.option("--batch", type=BATCH, default=32, show_default=True, help="Its present batch size."),
    click.option(
        "--optimizer", type=click.Choice(list(_RATES)), default="sgd", show_default=True, help="Its optimizer."
    ),
    click.option("--lr", type=POSITIVE, help="Its learning rate.  [default: 0.1; momentum 0.01; Adam 0.001]"),
)


def training_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of a model that brings no training along: `--preset`, `--data`, `--batch`, ..."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def given(names: tuple[str, ...] = _OF_MODULES) -> list[str]:
    """Return those of the options that the command line names."""
    source = click.get_current_context().get_parameter_source
    return [name for name in names if source(name) is not ParameterSource.DEFAULT]


def on_data(spec: str, asked: Mapping[str, Any], purpose: str) -> Training:
    """The factory's own training, or its module's, or one of our models', on a data set.

    Args:
        spec: a model's name, or `package.module:factory`.
        asked: the options of `training_options`, and `device`.
        purpose: what it is for, as a verb: `plan`.

    Raises:
        click.UsageError: there is no such model, data or size, or an option is of no use with it.
        click.ClickException: the factory fails, or its module has nothing to train.
    """
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
    named = given()
    if made.loss is not _unset:
        if named:
            raise click.UsageError(f"{spec} makes a Training, which has its own: leave --{named[0]} out")
        return made
    if is_factory(spec) and "preset" in named:
        raise click.UsageError(f"{spec!r} has no presets: --preset is a size of depthgauge's own models")
    return Training(
        made.model, _loader(dataset, asked["batch"], device), optimizer=_optimizer(spec, made.model, asked, purpose)
    )


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


def _optimizer(spec: str, model: Any, asked: Mapping[str, Any], purpose: str) -> Any:
    import torch

    kind, parameters = asked["optimizer"], list(model.parameters())
    rate = asked["lr"] or _RATES[kind]
    if not parameters:
        raise click.ClickException(f"{spec} has no parameter that trains: there is nothing to {purpose}")
    if kind == "adam":
        return torch.optim.Adam(parameters, lr=rate)
    if kind == "adamw":
        return torch.optim.AdamW(parameters, lr=rate)
    return torch.optim.SGD(parameters, lr=rate, momentum=0.9 if kind == "momentum" else 0.0)


# -- a factory that brings all along -----------------------------------------------------------------------------------


class _Moved:
    """Batches on another device than they come from; of all else it says what they say."""

    def __init__(self, batches: Any, device: str) -> None:
        self.batches = batches
        self.device = device

    def __iter__(self) -> Iterator[Any]:
        return _all_moved(self.batches, self.device)

    def __len__(self) -> int:
        return len(self.batches)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "batches":  # which a copy has none of at first
            raise AttributeError(name)
        return getattr(self.batches, name)


def _all_moved(batches: Any, device: str) -> Iterator[Any]:
    """What they hold, on a device."""
    from depthgauge.workload import moved

    return map(partial(moved, device=device), batches)


def _on(batches: Any, device: str) -> Any:
    """The batches on a device: an iterator stays one, which goes on where it is."""
    return _all_moved(batches, device) if isinstance(batches, Iterator) else _Moved(batches, device)


def own(spec: str, asked: Input | None, device: str | None) -> Training:
    """The training that a factory makes; for a module the one on inputs that it, or the user, describes.

    Args:
        spec: `package.module:factory`.
        asked: inputs that the user describes.
        device: moves model and batches there; None leaves them where the factory put them.

    Raises:
        click.UsageError: there is no such factory, or it cannot be called, or makes something else.
        click.ClickException: the factory raises.
    """
    from depthgauge import environment, models
    from depthgauge.factories import TargetError, line
    from depthgauge.foreign import as_line, contained, original
    from depthgauge.workload import DrawnLabels, Training, WorkloadError

    where = None if device is None else environment.device(device)
    try:
        with contained():
            made = models.training(spec, asked=asked, device=where)
    except (TargetError, WorkloadError) as error:
        raise click.UsageError(str(error)) from error
    except Exception as error:
        raised = original(error)
        told = f"{spec} raised {type(raised).__name__} when it was called: {as_line(raised)} {line(raised)}"
        raise click.ClickException(told.rstrip()) from error
    if isinstance(made.loss, DrawnLabels):
        if made.first()[0].assumed and not models.target(spec).takes("input_shape"):
            raise click.UsageError(
                f"{spec} makes a {type(made.model).__name__}, and nothing says what it takes: return a"
                " depthgauge.Training(model, batches, loss, optimizer), or say by --input-shape what an example is"
            )
        return made
    if where is None:
        return made
    return Training(made.model, _on(made.batches, where), made.loss, made.optimizer)
