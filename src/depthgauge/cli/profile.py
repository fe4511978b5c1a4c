"""`depthgauge profile`: the time of a model's training step, by operator."""

# ruff: noqa: PLC0415 - a command imports what it needs when it is called, so that help answers at once

from __future__ import annotations

import os
import shlex
import tempfile
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from depthgauge import float32
from depthgauge.cli import output
from depthgauge.cli.errors import nearest, sentences
from depthgauge.cli.inputs import input_options
from depthgauge.cli.naming import file_name
from depthgauge.cli.numbers import BATCH, PORT, SECONDS, THREADS
from depthgauge.cli.profile_pages import WithPages

if TYPE_CHECKING:
    import torch

    from depthgauge.factories import Input
    from depthgauge.workload import Training

Setting = dict[str, str | int | bool]

_DEFAULT = Path("runs", "profile")
_DTYPES = ("float32", "tf32", "bfloat16", "float16", "float64")


class _Dtype(click.Choice[str]):
    """A number format, by any name that `depthgauge.formats` knows it by."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The format's own name."""
        from depthgauge import formats

        names = {alias: fmt.name for fmt in formats.FORMATS for alias in fmt.aliases}
        return super().convert(names.get(value, value), param, ctx)


@click.command(cls=WithPages)
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option("--preset", default="small", show_default=True, metavar="NAME", help="Size of the model.")
@click.option(
    "--dtype", default="float32", show_default=True, type=_Dtype(_DTYPES), help="Format of weights and batch."
)
@input_options
@click.option(
    "--batch",
    default=64,
    show_default=True,
    type=BATCH,
    metavar="N",
    help="Examples a step; at most those that the model brings along.",
)
@click.option("--device", default="cpu", show_default=True, metavar="cpu|cuda[:i]|auto", help="Device of the step.")
@click.option(
    "--threads",
    default=1,
    show_default=True,
    type=THREADS,
    metavar="N",
    help="Intra-op threads of a CPU.",
)
@click.option("--compile", "compiled", is_flag=True, help="Run the model through torch.compile.")
@click.option(
    "--seconds",
    default=10.0,
    show_default=True,
    type=SECONDS,
    help="Approximate time to measure a model.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    default=_DEFAULT,
    show_default=True,
    help="Directory for traces and report; earlier profiles stay.",
)
@click.option("--open", "opens", is_flag=True, help="Show the traces of DIR in TensorBoard, on this machine alone.")
@click.option("--port", default=6006, show_default=True, type=PORT, help="Port for --open; 0: any free one.")
def profile(
    *,
    models: tuple[str, ...],
    seconds: float,
    out: Path,
    opens: bool,
    port: int,
    asked: Input | None,
    **setting: str | int | bool,
) -> None:
    r"""Profile a training step of each MODEL, down to the operator and the kernel, and write the report.

    MODEL is a name from `depthgauge list`, or your own package.module:factory.

    With --open, the traces of a directory are shown in TensorBoard instead, whose charts need the network; the report
    links to a timeline that needs none. With neither, the report of what is stored is written again.

    \b
    Two further commands, each with its own --help:
        depthgauge profile diff A B      where the step changed from profile A to B, operator by operator
        depthgauge profile trace TRACE   a trace as a page that opens without a network

    \b
    Examples:
        depthgauge profile resnet18
        depthgauge profile resnet50 --preset published --device cuda --dtype bfloat16 --batch 32
        depthgauge profile my_project.nets:make --input-shape 3,32,32 --compile
        depthgauge profile my_project.nets:make --tokens 50257 --input-shape 128
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
    from depthgauge.timing.conditions import pinned

    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its profiler warns of memory that is older than the trace
    with sentences():
        _check_place(out)
        settings = [_valid({"model": model, **setting}, asked) for model in dict.fromkeys(models)]
        for one in settings:
            with float32.multiplied(tf32=one["dtype"] == "tf32"), pinned(int(one["threads"])):
                _measure(one, asked, seconds, out)
        render_profiles(out)


def _check_place(out: Path) -> None:
    from depthgauge.reports.replacing import check_place

    check_place(out / "report", "profiles.json")


def _check_presets(models: tuple[str, ...]) -> None:
    from depthgauge.factories import is_factory

    for model in filter(is_factory, models):
        raise click.UsageError(f"{model!r} has no presets: --preset is a size of depthgauge's own models")


def _valid(setting: Setting, asked: Input | None) -> Setting:
    """Return the setting once its model and inputs are known to exist."""
    from depthgauge import environment, models
    from depthgauge.factories import is_factory

    model, device = str(setting["model"]), environment.device(str(setting["device"]))
    models.target(model, asked)
    if setting["dtype"] == "tf32" and device == "cpu":
        raise click.UsageError("tf32 is a format of CUDA's tensor cores; on a CPU use float32 or bfloat16")
    try:
        models.arguments(model, str(setting["preset"]))
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    options = {name: value for name, value in setting.items() if name != "preset" or not is_factory(model)}
    fed: Setting = {} if asked is None else {"input": ",".join(map(str, asked.shape)), "tokens": asked.tokens or 0}
    return {**options, **fed, "device": device}


def _measure(setting: Setting, asked: Input | None, seconds: float, out: Path) -> None:
    from depthgauge.isolation import stdout_to_stderr
    from depthgauge.profiling import ProfileError, capture
    from depthgauge.roofline import ceilings
    from depthgauge.store import storage_errors

    name, device = str(setting["model"]), str(setting["device"])
    training = _training(setting, asked)
    with storage_errors(f"the profile cannot be written to {out}"):
        (out / "profiles").mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out / "profiles").close()  # before anything is measured in vain
    output.say(f"{name}: measuring the device, then the step")
    try:
        with storage_errors(f"the profile cannot be written to {out}"), stdout_to_stderr():
            captured = capture(
                training,
                label=_label(setting),
                folder=out,
                ceilings=ceilings(device),
                setting={**setting, "optimizer": _optimizer_name(training.optimizer)},
                compiled=bool(setting["compiled"]),
                seconds=seconds,
                command=_command(setting, out),
            )
    except ProfileError as error:
        raise click.ClickException(str(error)) from error
    output.say(f"{name}: {captured.trace}")


def _optimizer_name(optimizer: torch.optim.Optimizer | None) -> str:
    return "SGD, momentum 0.9" if optimizer is None else type(optimizer).__name__


def _training(setting: Setting, asked: Input | None) -> Training:
    """The model and a batch for it, in the format and on the device asked for."""
    import torch

    from depthgauge import models
    from depthgauge.workload import Training, WorkloadError, moved

    device, count = str(setting["device"]), int(setting["batch"])
    numbers: torch.dtype = getattr(torch, "float32" if setting["dtype"] == "tf32" else str(setting["dtype"]))
    try:
        preset = str(setting.get("preset", "small"))
        made = models.training(str(setting["model"]), preset=preset, device=device, batch=count, asked=asked)
        batch = moved(made.first()[0], device, numbers)
    except (ValueError, WorkloadError) as error:
        raise click.UsageError(str(error)) from error
    except (Exception, SystemExit) as error:  # a factory may raise anything, and a size may be beyond torch
        raise click.ClickException(f"{setting['model']} cannot be made: {type(error).__name__}: {error}") from error
    made.model.to(numbers)
    return Training(made.model, [batch], made.loss, made.optimizer)


_USUAL: Setting = {
    "preset": "small", "input": "", "tokens": 0, "dtype": "float32", "batch": 64, "device": "cpu", "threads": 1,
    "compiled": False,
}  # fmt: skip
_FLAGS = {"compiled": "compile", "input": "input-shape"}  # where an option is not named as in a setting


def _unusual(setting: Setting) -> Setting:
    return {name: setting[name] for name, usual in _USUAL.items() if setting.get(name, usual) != usual}


def _label(setting: Setting) -> str:
    """Name a profile by the model and its unusual settings: `resnet18-published-bfloat16-batch32-cuda-compiled`."""
    parts = [str(setting["model"]).replace(":", ".")]
    for name, value in _unusual(setting).items():
        text = str(value).replace(":", "").replace(",", "x")
        parts.append(name if value is True else f"{name}{text}" if name in {"batch", "threads", "tokens"} else text)
    return file_name("-".join(parts))


def _command(setting: Setting, out: Path) -> str:
    arguments = ["depthgauge", "profile", str(setting["model"])]
    for name, value in _unusual(setting).items():
        arguments += [f"--{_FLAGS.get(name, name)}", *([] if value is True else [str(value)])]
    return shlex.join([*arguments, *([] if out == _DEFAULT else ["--out", str(out)])])


def render_profiles(out: Path) -> None:
    """Writes the report of the profiles in a directory, and prints its findings in a line a profile, and where it is.

    Raises:
        click.ClickException: there are none, or they cannot be read or written.
    """
    from depthgauge.profiling import ProfileError, TraceError
    from depthgauge.reports.profiles import render
    from depthgauge.store import storage_errors

    try:
        with storage_errors(f"the report of {out} cannot be written"):
            path = render(out, progress=output.say, found=lambda line: output.tell(output.plain(line)))
            output.tell(output.plain(str(path.with_name("index.html"))))
            output.tell(output.plain(str(path)))
    except (ProfileError, TraceError) as error:
        raise click.ClickException(str(error)) from error


# -- TensorBoard -------------------------------------------------------------------------------------------------------


def _serve(folder: Path, port: int) -> None:
    """Serve the traces on loopback until Ctrl-C."""
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
    output.tell(f"{url}#pytorch_profiler")
    output.say(
        "Without a network the plugin's views stay empty: it loads scripts from www.gstatic.com (charts) and"
        " cdnjs.cloudflare.com (Trace). depthgauge profile trace writes a timeline that needs none."
    )
    output.say("Ctrl-C stops it. A trace opens in Perfetto too: https://ui.perfetto.dev")
    threading.Event().wait()
