"""`depthgauge profile`: where the time of a model's training step goes."""

# ruff: noqa: PLC0415 - a command imports what it needs when it is called, so that help answers at once

from __future__ import annotations

import os
import shlex
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from depthgauge.cli.errors import sentences

if TYPE_CHECKING:
    import torch
    from torch import nn

_DEFAULT = Path("runs", "profile")
_DTYPES = ("float32", "tf32", "bfloat16", "float16", "float64")


@click.command()
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option("--preset", default="small", show_default=True, metavar="NAME", help="Size of the model.")
@click.option("--dtype", default="float32", show_default=True, type=click.Choice(_DTYPES), help="Of weights and batch.")
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
    preset: str,
    dtype: str,
    batch: int,
    device: str,
    threads: int,
    compiled: bool,
    seconds: float,
    out: Path,
    opens: bool,
    port: int,
) -> None:
    r"""Profile a training step of each MODEL, down to the operator and the kernel, and write the report.

    With --open, the traces of a directory are shown in TensorBoard instead. With neither, the report of what is stored
    is written again.

    \b
    Examples:
        depthgauge profile resnet18
        depthgauge profile resnet50 transformer --preset published --device cuda --dtype bfloat16 --batch 32
        depthgauge profile --open runs/profile
    """
    if opens:
        if len(models) > 1:
            raise click.UsageError("--open takes one directory: depthgauge profile --open DIR")
        _serve(Path(models[0]) if models else out, port)
        return
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its profiler warns of memory that is older than the trace
    with sentences():
        from depthgauge.profiling import ProfileError, TraceError

        try:
            for model in dict.fromkeys(_known(models, preset)):
                _measure(model, preset, dtype, batch, device, threads, seconds, out, compiled=compiled)
            _report(out)
        except (ProfileError, TraceError) as error:
            raise click.ClickException(str(error)) from error


def _known(names: tuple[str, ...], preset: str) -> tuple[str, ...]:
    from depthgauge import models

    try:
        for name in names:
            models.arguments(name, preset)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    return names


def _measure(
    name: str,
    preset: str,
    dtype: str,
    batch: int,
    device: str,
    threads: int,
    seconds: float,
    out: Path,
    *,
    compiled: bool,
) -> None:
    import torch

    from depthgauge import environment, models
    from depthgauge.profiling import capture
    from depthgauge.roofline import ceilings
    from depthgauge.store import plainly

    device = environment.device(device)
    if dtype == "tf32" and device == "cpu":
        raise click.UsageError("tf32 is a format of CUDA's tensor cores; on a CPU use float32 or bfloat16")
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
    setting: dict[str, str | int | bool] = {
        "model": name,
        "preset": preset,
        "dtype": dtype,
        "batch": batch,
        "device": device,
        "threads": threads,
        "compiled": compiled,
        "optimizer": "SGD, momentum 0.9",
    }
    click.echo(f"{name}: measuring the device, then the step", err=True)
    numbers = getattr(torch, "float32" if dtype == "tf32" else dtype)
    model = models.build(name, preset=preset, device=device).to(numbers)
    example = models.example(name, preset=preset, batch=batch, device=device)
    with plainly(f"the profile cannot be written to {out}"):
        captured = capture(
            model,
            example.to(numbers) if example.is_floating_point() else example,
            _Loss(),
            torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9),
            label=_label(setting),
            folder=out,
            ceilings=ceilings(device),
            setting=setting,
            compiled=compiled,
            seconds=seconds,
            command=_command(setting, out),
        )
    click.echo(f"{name}: {captured.trace}", err=True)


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
            generator = torch.Generator().manual_seed(0)
            self.labels = torch.randint(classes, (len(scores),), generator=generator).to(out.device)
        return cross_entropy(scores, self.labels)


_USUAL = {"preset": "small", "dtype": "float32", "batch": 64, "device": "cpu", "threads": 1, "compiled": False}


def _label(setting: dict[str, str | int | bool]) -> str:
    """`resnet18`, `resnet18-published-bfloat16-batch32-cuda-compiled`: what is not as usual, beside the name."""
    spelled = {"batch": f"batch{setting['batch']}", "threads": f"threads{setting['threads']}", "compiled": "compiled"}
    unusual = [name for name, usual in _USUAL.items() if setting[name] != usual]
    parts = (spelled.get(name, str(setting[name]).replace(":", "")) for name in unusual)
    return "-".join([str(setting["model"]).replace(":", "."), *parts])


def _command(setting: dict[str, str | int | bool], out: Path) -> str:
    words = ["depthgauge", "profile", str(setting["model"])]
    for name, usual in _USUAL.items():
        if setting[name] != usual:
            words += ["--compile"] if name == "compiled" else [f"--{name}", str(setting[name])]
    return shlex.join([*words, *([] if out == _DEFAULT else ["--out", str(out)])])


def _report(out: Path) -> None:
    from depthgauge.reports.profiles import render
    from depthgauge.store import plainly

    with plainly(f"the report of {out} cannot be written"):
        click.echo(str(render(out, progress=lambda line: click.echo(line, err=True))))


# -- TensorBoard -------------------------------------------------------------------------------------------------------


def _serve(folder: Path, port: int) -> None:
    """Serves the traces on loopback until it is stopped."""
    traces = folder / "traces" if (folder / "traces").is_dir() else folder
    if not any(traces.rglob("*.pt.trace.json*")):
        raise click.UsageError(f"there are no traces in {folder}; depthgauge profile MODEL --out {folder} makes one")
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
