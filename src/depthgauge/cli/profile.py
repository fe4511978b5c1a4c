"""`depthgauge profile`: where the time of a model's training step goes."""

# ruff: noqa: PLC0415 - a command imports what it needs when it is called, so that help answers at once

from __future__ import annotations

import os
import shlex
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from depthgauge import seeding
from depthgauge.cli.errors import nearest, sentences
from depthgauge.seeding import Purpose

if TYPE_CHECKING:
    import torch
    from torch import nn

Setting = dict[str, str | int | bool]

_DEFAULT = Path("runs", "profile")
_OWN = (1, 28, 28)  # what a model of one's own is offered, as by `depthgauge run --model`
_DTYPES = ("float32", "tf32", "bfloat16", "float16", "float64")


class _Dtype(click.Choice[str]):
    """A number format, by any name that `depthgauge.formats` knows it by."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The format's own name."""
        from depthgauge import formats

        names = {alias: fmt.name for fmt in formats.FORMATS for alias in fmt.aliases}
        return super().convert(names.get(value, value), param, ctx)


def _shape(_context: click.Context, _option: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    try:
        shape = tuple(int(part) for part in value.split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise click.BadParameter(f"{value!r} is no shape, such as 3,224,224")
    return shape


@click.command()
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option("--preset", default="small", show_default=True, metavar="NAME", help="Size of the model.")
@click.option("--dtype", default="float32", show_default=True, type=_Dtype(_DTYPES), help="Of weights and batch.")
@click.option(
    "--input-shape",
    "shape",
    callback=_shape,
    metavar="N,N,...",
    help="Of one example.  [default: the preset's; 1,28,28 for a model of your own]",
)
@click.option(
    "--batch", default=64, show_default=True, type=click.IntRange(min=1), metavar="N", help="Examples a step."
)
@click.option("--device", default="cpu", show_default=True, metavar="cpu|cuda[:i]|auto", help="Where the step runs.")
@click.option(
    "--threads",
    default=1,
    show_default=True,
    type=click.IntRange(min=1),
    metavar="N",
    help="Intra-op threads of a CPU.",
)
@click.option("--compile", "compiled", is_flag=True, help="Run the model through torch.compile.")
@click.option(
    "--seconds",
    default=10.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="To spend on measuring a model, roughly.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    default=_DEFAULT,
    show_default=True,
    help="Gets traces and report; profiles that are there stay.",
)
@click.option("--open", "opens", is_flag=True, help="Show the traces of DIR in TensorBoard, on this machine alone.")
@click.option("--port", default=6006, show_default=True, type=click.IntRange(0, 65535), help="For --open; 0: any.")
def profile(
    *,
    models: tuple[str, ...],
    seconds: float,
    out: Path,
    opens: bool,
    port: int,
    shape: tuple[int, ...] | None,
    **setting: str | int | bool,
) -> None:
    r"""Profile a training step of each MODEL, down to the operator and the kernel, and write the report.

    MODEL is a name that `depthgauge list` tells, or package.module:factory of your own.

    With --open, the traces of a directory are shown in TensorBoard instead. With neither, the report of what is stored
    is written again.

    \b
    Examples:
        depthgauge profile resnet18
        depthgauge profile resnet50 --preset published --device cuda --dtype bfloat16 --batch 32
        depthgauge profile my_project.nets:make --input-shape 3,32,32 --compile
        depthgauge profile --open runs/profile
    """
    if opens:
        if len(models) > 1:
            raise click.UsageError("--open takes one directory: depthgauge profile --open DIR")
        _serve(Path(models[0]) if models else out, port)
        return
    if not models and not any((out / "profiles").glob("*.json")):
        raise click.UsageError(
            f"there are no profiles in {out}; depthgauge profile MODEL --out {out} makes one{nearest(out)}"
        )
    if click.get_current_context().get_parameter_source("preset") is not ParameterSource.DEFAULT:
        _check_presets(models)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its profiler warns of memory that is older than the trace
    with sentences():
        settings = [_checked({"model": model, **setting}, shape) for model in dict.fromkeys(models)]
        for one in settings:
            _measure(one, shape, seconds, out)
        render_profiles(out)


def _check_presets(models: tuple[str, ...]) -> None:
    from depthgauge.target import own

    for model in filter(own, models):
        raise click.UsageError(f"{model!r} has no presets: --preset is a size of depthgauge's own models")


def _checked(setting: Setting, shape: tuple[int, ...] | None) -> Setting:
    """What was asked, once it is known to be there."""
    from depthgauge import environment, models
    from depthgauge.target import own

    model, device = str(setting["model"]), environment.device(str(setting["device"]))
    models.target(model)
    if setting["dtype"] == "tf32" and device == "cpu":
        raise click.UsageError("tf32 is a format of CUDA's tensor cores; on a CPU use float32 or bfloat16")
    try:
        models.arguments(model, str(setting["preset"]))
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    kept = {name: value for name, value in setting.items() if name != "preset" or not own(model)}
    asked = {} if shape is None else {"input": ",".join(map(str, shape))}
    return {**kept, **asked, "device": device, "optimizer": "SGD, momentum 0.9"}


def _measure(setting: Setting, shape: tuple[int, ...] | None, seconds: float, out: Path) -> None:
    import torch

    from depthgauge.profiling import ProfileError, capture
    from depthgauge.roofline import ceilings
    from depthgauge.store import plainly

    name, device = str(setting["model"]), str(setting["device"])
    torch.set_num_threads(int(setting["threads"]))
    torch.set_float32_matmul_precision("high" if setting["dtype"] == "tf32" else "highest")
    click.echo(f"{name}: measuring the device, then the step", err=True)
    model, batch = _made(setting, shape)
    try:
        with plainly(f"the profile cannot be written to {out}"):
            captured = capture(
                model,
                batch,
                _Loss(),
                torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9),
                label=_label(setting),
                folder=out,
                ceilings=ceilings(device),
                setting=setting,
                compiled=bool(setting["compiled"]),
                seconds=seconds,
                command=_command(setting, out),
            )
    except ProfileError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{name}: {captured.trace}", err=True)


def _made(setting: Setting, shape: tuple[int, ...] | None) -> tuple[nn.Module, torch.Tensor]:
    """The model and a batch for it, in the format and on the device asked for."""
    import torch

    from depthgauge import models
    from depthgauge.target import own

    name, device, count = str(setting["model"]), str(setting["device"]), int(setting["batch"])
    numbers: torch.dtype = getattr(torch, "float32" if setting["dtype"] == "tf32" else str(setting["dtype"]))
    try:
        if own(name):
            shape = shape or _OWN
            model = models.build(name, device=device, input_shape=shape, classes=10)
            batch = torch.randn((count, *shape), generator=seeding.generator(0, Purpose.INPUTS)).to(device)
        else:
            asked: dict[str, Any] = {} if shape is None else {"input_shape": shape}
            preset = str(setting["preset"])
            model = models.build(name, preset=preset, device=device, **asked)
            batch = models.example(name, preset=preset, batch=count, device=device, **asked)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    return model.to(numbers), batch.to(numbers) if batch.is_floating_point() else batch


class _Loss:
    """Cross-entropy against labels drawn once; the mean square where there is but one output."""

    def __init__(self) -> None:
        self.labels: torch.Tensor | None = None

    def __call__(self, out: torch.Tensor) -> torch.Tensor:
        import torch
        from torch.nn.functional import cross_entropy

        classes = out.shape[-1]
        if classes == 1:
            return out.square().mean()
        scores = out.reshape(-1, classes)
        if self.labels is None:
            generator = seeding.generator(0, Purpose.LABELS)
            self.labels = torch.randint(classes, (len(scores),), generator=generator).to(out.device)
        return cross_entropy(scores, self.labels)


_USUAL: Setting = {
    "preset": "small", "input": "", "dtype": "float32", "batch": 64, "device": "cpu", "threads": 1, "compiled": False
}  # fmt: skip
_FLAGS = {"compiled": "compile", "input": "input-shape"}  # where an option is not named as in a setting


def _unusual(setting: Setting) -> Setting:
    return {name: setting[name] for name, usual in _USUAL.items() if setting.get(name, usual) != usual}


def _label(setting: Setting) -> str:
    """`resnet18`, `resnet18-published-bfloat16-batch32-cuda-compiled`: what is not as usual, beside the name."""
    parts = [str(setting["model"]).replace(":", ".")]
    for name, value in _unusual(setting).items():
        text = str(value).replace(":", "").replace(",", "x")
        parts.append(name if value is True else f"{name}{text}" if name in {"batch", "threads"} else text)
    return "-".join(parts)


def _command(setting: Setting, out: Path) -> str:
    words = ["depthgauge", "profile", str(setting["model"])]
    for name, value in _unusual(setting).items():
        words += [f"--{_FLAGS.get(name, name)}", *([] if value is True else [str(value)])]
    return shlex.join([*words, *([] if out == _DEFAULT else ["--out", str(out)])])


def render_profiles(out: Path) -> None:
    """Writes the report of the profiles in a directory, and prints where it is.

    Raises:
        click.ClickException: there are none, or they cannot be read or written.
    """
    from depthgauge.profiling import ProfileError, TraceError
    from depthgauge.reports.profiles import render
    from depthgauge.store import plainly

    try:
        with plainly(f"the report of {out} cannot be written"):
            click.echo(str(render(out, progress=lambda line: click.echo(line, err=True))))
    except (ProfileError, TraceError) as error:
        raise click.ClickException(str(error)) from error


# -- TensorBoard -------------------------------------------------------------------------------------------------------


def _serve(folder: Path, port: int) -> None:
    """Serves the traces on loopback until it is stopped."""
    traces = folder / "traces" if (folder / "traces").is_dir() else folder
    if not any(traces.rglob("*.pt.trace.json*")):
        raise click.UsageError(
            f"there are no traces in {folder}; depthgauge profile MODEL --out {folder} makes one{nearest(folder)}"
        )
    if missing := [name for name in ("tensorboard", "torch_tb_profiler") if find_spec(name) is None]:
        raise click.ClickException(
            f"--open needs TensorBoard with PyTorch's profiler plugin ({' and '.join(missing)} not found):"
            " pip install 'depthgauge[profile]'"
        )
    from tensorboard import default, program

    board = program.TensorBoard(default.get_plugins())
    board.configure(argv=[None, "--logdir", str(traces), "--host", "127.0.0.1", "--port", str(port)])
    try:
        url = board.launch()
    except program.TensorBoardServerException as error:
        raise click.ClickException(f"TensorBoard cannot be started on port {port}: {error}; use --port 0") from error
    click.echo(f"{url}#pytorch_profiler")
    click.echo("Ctrl-C stops it. A trace opens in Perfetto too: https://ui.perfetto.dev", err=True)
    threading.Event().wait()
