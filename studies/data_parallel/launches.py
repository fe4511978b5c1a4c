"""Work of ranks in one launch: with time enough on a machine that does other things too, and answers or the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from depthgauge import parallel
from depthgauge.study import Context

LIMIT, PATIENCE = 3000.0, 60.0  # seconds: of a launch, which at `full` takes minutes, and of a collective


def launched(
    function: Callable[..., Any] | str, *arguments: Any, ranks: int, device: str, context: Context
) -> tuple[Any, ...]:
    """Call a function in each rank of a group, and return the answers of all.

    Args:
        function: as `parallel.launch` takes it.
        *arguments: what it gets beside its `Group`.
        ranks: number of processes.
        device: `cpu` or `cuda`.
        context: its folder holds what processes leave to each other.

    Raises:
        RuntimeError: a rank ended otherwise; the message says which, and how.
    """
    return answers(
        parallel.launch(
            function, *arguments, ranks=ranks, device=device, limit=LIMIT, patience=PATIENCE, folder=context.scratch
        )
    )


def answers(outcome: parallel.Outcome) -> tuple[Any, ...]:
    """The answers of all ranks.

    Raises:
        RuntimeError: one ended otherwise; the message says which, and how.
    """
    if not outcome.well:
        raise RuntimeError(outcome.why)
    return outcome.answers
