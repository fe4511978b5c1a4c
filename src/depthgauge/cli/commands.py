"""A group of commands that names the nearest where there is none of that name."""

from __future__ import annotations

import difflib
from typing import Any

import click


class Commands(click.Group):
    """A group of commands, the whole program's or one within it."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """The command of that name; where there is none, the error names the nearest."""
        name = args[0] if args else ""
        if name and not name.startswith("-") and self.get_command(ctx, name) is None:
            near = difflib.get_close_matches(name, self.commands, n=1)
            listed = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(self.commands))}"
            raise click.UsageError(f"there is no command {name!r}; {listed}", ctx)
        return super().resolve_command(ctx, args)
