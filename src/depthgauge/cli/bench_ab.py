"""`depthgauge bench ab`: variants of code, timed in turns."""

# ruff: noqa: PLC0415 - a command imports what it needs when it is called, so that help answers at once

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any

import click

from depthgauge.cli import output
from depthgauge.cli.answers import (
    NothingMeasuredError,
    as_factor,
    exit_code,
    finite,
    json_option,
    margin_option,
    percent,
    spelled,
)
from depthgauge.cli.bench_why import print_why, why_json
from depthgauge.cli.errors import sentences
from depthgauge.cli.numbers import SECONDS, THREADS

if TYPE_CHECKING:
    from depthgauge.stats import Estimate
    from depthgauge.timing import Interleaved, Sitting
    from depthgauge.timing.spending import Spent


@click.command()
@click.argument("variants", nargs=-1, metavar="VARIANT VARIANT...")
@click.option("--setup", default="pass", metavar="CODE", help="Setup code, run anew for each variant.")
@click.option(
    "--time",
    "statement",
    metavar="CODE",
    help="Statement to time, with git revisions as variants; `.` is the working tree.",
)
@click.option("--threads", type=THREADS, default=1, show_default=True, help="Intra-op threads.")
@click.option(
    "--device",
    metavar="cpu|cuda[:i]|auto",
    help="torch's default device for setup and variants, which have it as `device`, too.",
)
@click.option("--why", is_flag=True, help="Profile the variants afterwards: where they differ, part by part.")
@click.option(
    "--budget",
    type=SECONDS,
    metavar="SECONDS",
    help="Time to spend at most.  [default: 30, revisions 180]",
)
@margin_option
@json_option
@click.pass_context
def ab(
    context: click.Context,
    /,
    *,
    variants: tuple[str, ...],
    budget: float | None,
    margin: float,
    why: bool,
    as_json: bool,
    **setting: Any,
) -> None:
    r"""Time variants in turns, A B B A, and say which is faster; the first is the baseline.

    A variant is a Python statement, or with --time a git revision. The baseline runs twice in each turn: what it
    differs by from itself is the resolution. With --why a profiler says afterwards where a call's time goes: by torch's
    operator, or by Python's function where no operator runs.

    Exit codes: 0 no variant is slower than the first, 3 one is, 4 an answer is missing, 5 nothing was measured.

    \b
    Examples:
        depthgauge bench ab 'x.tanh()' 'x.sigmoid()' --setup 'import torch; x = torch.randn(1 << 16)'
        depthgauge bench ab 'x @ x' 'x.half() @ x.half()' --setup 'import torch; x = torch.randn(512, 512)' --why
        depthgauge bench ab main . --time 'gain("tanh")' --setup 'from depthgauge.theory import gain'
    """
    if len(variants) < 2:
        raise click.UsageError("a comparison takes two variants or more, the baseline first")
    setting["device"] = _device(setting["device"])
    done, spent = _timed(variants, setting, budget, as_factor(margin), why)
    if not done.sittings:
        raise NothingMeasuredError(
            "nothing was measured: not even one turn fits into the time; give it more by --budget"
        )
    _tell(variants, done, spent, setting, as_json=as_json)
    context.exit(exit_code(judgement.pace for judgement in done.judgements))


def _timed(
    variants: tuple[str, ...], setting: dict[str, Any], budget: float | None, margin: float, why: bool
) -> tuple[Interleaved, list[Spent]]:
    from depthgauge import timing
    from depthgauge.timing import variants as kinds

    seconds = budget or (30.0 if setting["statement"] is None else 180.0)
    spent: list[Spent] = []
    try:
        with _variants(variants, **setting) as sitting:
            done = timing.interleave(
                sitting,
                budget=seconds,
                margin=margin,
                progress=_line,
                expecting=lambda expected: _expect(expected, seconds),
            )
            if why and done.sittings:
                output.show("profiling the variants")
                spent = _spent(sitting, done.sittings + 1)
    except kinds.VariantError as error:
        raise NothingMeasuredError(str(error)) from error
    finally:
        output.show("")
    return done, spent


def _tell(
    variants: tuple[str, ...], done: Interleaved, spent: list[Spent], setting: dict[str, Any], *, as_json: bool
) -> None:
    from depthgauge.timing import variants as kinds

    threads, cores = setting["threads"], kinds.cores_for(setting["threads"])
    if as_json:
        told = {"threads": threads, "device": setting["device"], "cores": list(cores)}
        output.tell_json({**_as_json(variants, done), **told, **({"why": why_json(spent)} if spent else {})})
        return
    _print_variants(variants, done)
    if spent:
        print_why(spent)
    output.tell(
        f"{threads} thread{'s' * (threads > 1)}"
        + (f" on core {', '.join(map(str, cores))}" if cores else ", not pinned")
    )


def _device(asked: str | None) -> str:
    """The device's own name; nothing where none was asked for.

    Raises:
        click.UsageError: there is no such device.
    """
    if asked is None:
        return ""
    from depthgauge import environment

    with sentences():
        return environment.device(asked)


def _variants(
    variants: tuple[str, ...], *, statement: str | None, setup: str, threads: int, device: str
) -> contextlib.AbstractContextManager[Sitting]:
    from depthgauge.timing import variants as kinds

    if statement is None:
        return kinds.expressions(variants, setup=setup, threads=threads, device=device)
    return kinds.revisions(
        variants, statement=statement, setup=setup, threads=threads, device=device, progress=output.say
    )


def _expect(seconds: float, budget: float) -> None:
    """Say beforehand how long it takes, and whether an answer can be had in that time."""
    from depthgauge.timing.interleaving import FEWEST

    least = FEWEST * seconds
    if least > budget:
        there = f"{spelled(least)} at least, and there is {spelled(budget)}"
        output.say(f"an answer takes {there}: --budget {math.ceil(2 * least)}")
        return
    between = f"{max(least, 1):.0f} to {budget:.0f} s" if budget > 1 else f"{spelled(least)} to {spelled(budget)}"
    output.say(f"an answer takes {between}: it ends as soon as it is sharp (--budget)")


def _spent(sitting: Sitting, number: int) -> list[Spent]:
    """Profile each variant; by the same parts in all of them."""
    with sitting(number) as slots:
        variants: list[Any] = [slots[0], *slots[2:]]
        spent = [variant.why() for variant in variants]
        if len({each.by for each in spent}) > 1:
            spent = [variant.why("function") for variant in variants]
    return spent


def _line(sittings: int, seconds: float) -> None:
    output.show(f"{sittings} sittings, {seconds:.0f} s")


def _as_json(variants: tuple[str, ...], done: Interleaved) -> dict[str, Any]:
    def as_dict(effect: Estimate) -> dict[str, Any]:
        return {"ratio": finite(effect.value), "low": finite(effect.low), "high": finite(effect.high)}

    compared: list[dict[str, Any]] = [
        {
            "variant": variant,
            "seconds": seconds,
            **as_dict(judgement.ratio.effect),
            "verdict": str(judgement.pace),
            "resolvable": finite(judgement.resolvable),
        }
        for variant, seconds, judgement in zip(variants[1:], done.medians[1:], done.judgements, strict=True)
    ]
    return {
        "schema": 1,
        "baseline": {"variant": variants[0], "seconds": done.medians[0], **as_dict(done.judgements[0].itself)},
        "compared": compared,
        "resolution": finite(done.judgements[0].resolution),
        "resolvable": finite(done.resolvable),
        "sittings": done.sittings,
        "blocks": int(done.seconds.shape[1]),
        "elapsed": done.elapsed,
        "budget_spent": done.spent,
    }


def _print_variants(variants: tuple[str, ...], done: Interleaved) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("", "a call", "times A", "99 % interval", "", box=None, pad_edge=False)
    table.add_row(Text(output.plain(f"A  {variants[0]}")), spelled(done.medians[0]), "", "", Text("baseline"))
    for place, (variant, judgement) in enumerate(zip(variants[1:], done.judgements, strict=True)):
        effect = judgement.ratio.effect
        table.add_row(
            Text(output.plain(f"{chr(ord('B') + place)}  {variant}")),
            spelled(done.medians[1 + place]),
            f"{effect.value:.3f}",
            f"{effect.low:.3f} to {effect.high:.3f}" if math.isfinite(effect.high) else "none",
            Text(str(judgement.pace), style="bold"),
        )
    output.tell_table(table)
    resolution = done.judgements[0].resolution
    if math.isinf(done.resolvable):
        from depthgauge.timing.interleaving import FEWEST

        output.tell(
            f"Only {done.sittings} of at least {FEWEST} sittings fit into {done.elapsed:.0f} s; more time: --budget."
        )
        return
    each = done.seconds.shape[1]
    output.tell(
        f"Differences of {percent(done.resolvable)} or more are reported; A differs from itself by up to"
        f" {percent(resolution)}. {done.sittings} sittings of {each} block{'s' * (each > 1)}, {done.elapsed:.0f} s."
    )
