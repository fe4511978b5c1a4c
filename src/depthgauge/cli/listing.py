"""`depthgauge list`: what there is to run, read from the files without importing them."""

# ruff: noqa: PLC0415 - a command imports what it needs when it is called, so that help answers at once

from __future__ import annotations

import json
from typing import Any

import click

from depthgauge.cli.errors import sentences


def _studies(sources: tuple[str, ...]) -> list[dict[str, Any]]:
    from depthgauge.discovery import discover

    return [
        {
            "name": found.name,
            "question": found.question,
            "presets": list(found.presets),
            "claims": [{"id": claim.id, "text": claim.text} for claim in found.claims],
            "origin": found.origin,
            "problem": found.problem,
        }
        for found in discover(sources)
    ]


def _models(_sources: tuple[str, ...]) -> list[dict[str, Any]]:
    from depthgauge import models

    entries = map(models.entry, models.names())
    return [{"name": entry.name, "source": entry.source, "presets": list(entry.presets)} for entry in entries]


def _data(_sources: tuple[str, ...]) -> list[dict[str, Any]]:
    from depthgauge import data

    return [{"name": name} for name in data.names()]


# Section -> what lists it. None of them may import torch: a listing answers at once.
SECTIONS = {"studies": _studies, "models": _models, "data": _data}


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.option(
    "--studies", "sources", multiple=True, metavar="SOURCE", help="Studies of your own: file, folder, package."
)
def listing(as_json: bool, sources: tuple[str, ...]) -> None:
    r"""Show the studies with the claims that they answer, the models and the data sets.

    \b
    Example: every claim, for a program
        depthgauge list --json
    """
    with sentences():
        sections = {name: section(sources) for name, section in SECTIONS.items()}
    if as_json:
        click.echo(json.dumps({"schema": 1, **sections}, indent=1, ensure_ascii=False))
        return
    for study in sections["studies"]:
        click.echo(f"{click.style(study['name'], bold=True)}  {study['problem'] or study['question']}")
        for claim in study["claims"]:
            click.echo(f"    {claim['id']:<6}  {claim['text']}")
    for name in ("models", "data"):
        click.echo(f"{click.style(name, bold=True)}  {', '.join(item['name'] for item in sections[name])}")
