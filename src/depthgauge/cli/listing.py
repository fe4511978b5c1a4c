"""`depthgauge list`: studies, models and data sets, read from the files without importing them."""

# ruff: noqa: PLC0415 - a command imports what it needs when it is called, so that help answers at once

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from depthgauge.cli import output
from depthgauge.cli.errors import sentences


def _studies(sources: tuple[str, ...]) -> list[dict[str, Any]]:
    from depthgauge.discovery import discover

    return [
        {
            "name": study.name,
            "question": study.question,
            "presets": list(study.presets),
            "claims": [{"id": claim.id, "text": claim.text} for claim in study.claims],
            "origin": study.origin,
            "problem": study.problem,
        }
        for study in discover(sources)
    ]


def _models(_sources: tuple[str, ...]) -> list[dict[str, Any]]:
    from depthgauge import models

    return [
        {
            "name": entry.name,
            "source": entry.source,
            "presets": {
                preset: {
                    "parameters": sizes.parameters,
                    "forward_flops": sizes.forward_flops,
                    "backward_flops": sizes.backward_flops,
                }
                for preset, sizes in entry.sizes.items()
            },
        }
        for entry in map(models.entry, models.names())
    ]


def _data(_sources: tuple[str, ...]) -> list[dict[str, Any]]:
    from depthgauge import data

    return [
        {"name": name, "summary": source.summary, "origin": source.origin, "license": source.license}
        for name, source in data.SOURCES.items()
    ]


_NOT_ELEMENTWISE = {"GLU", "LogSoftmax", "MultiheadAttention", "RReLU", "Softmax", "Softmax2d", "Softmin", "Threshold"}


def _activations(_sources: tuple[str, ...]) -> list[dict[str, Any]]:
    """The names of `theory.activation_names()`, read from torch's source."""
    torch = find_spec("torch")
    assert torch is not None
    assert torch.origin is not None
    module = Path(torch.origin).parent / "nn" / "modules" / "activation.py"
    classes = [name for name in ast.literal_eval(_constant(module, "__all__")) if name not in _NOT_ELEMENTWISE]
    names = ("leaky_relu" if name == "LeakyReLU" else name.lower() for name in classes)  # as torch.nn.functional has it
    return [{"name": name} for name in sorted({"identity", *names})]


def _initializations(_sources: tuple[str, ...]) -> list[dict[str, Any]]:
    package = find_spec("depthgauge.initialization")
    assert package is not None
    assert package.origin is not None
    schemes = _constant(Path(package.origin).parent / "catalog.py", "SCHEMES")
    return [{"name": ast.literal_eval(key)} for key in _keys(schemes)]


def _constant(path: Path, name: str) -> ast.expr:
    for statement in ast.parse(path.read_bytes()).body:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        value = getattr(statement, "value", None)
        if isinstance(value, ast.expr) and any(isinstance(t, ast.Name) and t.id == name for t in targets):
            return value
    raise LookupError(f"{path} assigns no {name}")


def _keys(dictionary: ast.expr) -> Iterator[ast.expr]:
    if isinstance(dictionary, ast.Dict):
        yield from (key for key in dictionary.keys if key is not None)


# Section -> what lists it. None of them may import torch: a listing answers at once.
SECTIONS = {
    "studies": _studies,
    "models": _models,
    "activations": _activations,
    "initializations": _initializations,
    "data": _data,
}


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
        output.tell_json({"schema": 1, **sections})
        return
    for study in sections["studies"]:
        output.tell(f"{click.style(study['name'], bold=True)}  {study['problem'] or study['question']}")
        for claim in study["claims"]:
            output.tell(f"    {claim['id']:<6}  {claim['text']}")
    for model in sections["models"]:
        sizes = (
            f"{preset} {size['parameters']:,} parameters, {size['forward_flops'] / 1e6:,.3g} MFLOP forward"
            for preset, size in model["presets"].items()
        )
        output.tell(f"{click.style('model', bold=True)} {model['name']}  {'; '.join(sizes)}")
    for source in sections["data"]:
        description = "; ".join((source["summary"], source["origin"], source["license"]))
        output.tell(f"{click.style('data', bold=True)} {source['name']}  {description}")
    for name in ("activations", "initializations"):
        output.tell(f"{click.style(name, bold=True)}  {', '.join(item['name'] for item in sections[name])}")
