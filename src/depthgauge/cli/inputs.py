"""Options that describe a model's inputs, shared by every command that runs a model."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from depthgauge.cli.numbers import TOKENS
from depthgauge.factories import Input

_DIMENSIONS, _LARGEST = 8, 10**9
_SENTENCE = (32,)  # shape of one example of tokens, where only their number is given


def _shape(_context: click.Context, _option: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    try:
        shape = tuple(int(part) for part in value.split(","))
    except ValueError:
        shape = ()
    if not 0 < len(shape) <= _DIMENSIONS or not all(1 <= size <= _LARGEST for size in shape):
        raise click.BadParameter(f"{value!r} is not a shape such as 3,224,224: up to {_DIMENSIONS} sizes, each above 0")
    return shape


def input_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command `--input-shape` and `--tokens`; it is called with `asked`, an `Input` or None."""

    @click.option(
        "--input-shape",
        "shape",
        callback=_shape,
        metavar="N,N,...",
        help="Shape of one example, without the batch.  [default: the model's; else 1,28,28]",
    )
    @click.option(
        "--tokens",
        type=TOKENS,
        metavar="N",
        help="Examples are token ids below N, not N(0, 1).",
    )
    @functools.wraps(command)
    def with_input(*args: Any, shape: tuple[int, ...] | None, tokens: int | None, **options: Any) -> Any:
        asked = None if shape is None and tokens is None else Input(shape or _SENTENCE, tokens)
        return command(*args, asked=asked, **options)

    return with_input
