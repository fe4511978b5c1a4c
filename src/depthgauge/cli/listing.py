"""`depthgauge list`: studies, models and data sets, read from the files without importing them."""

# ruff: noqa: PLC0415 - a command imports what it needs when it is called, so that help answers at once

from __future__ import annotations

import ast
import json
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from depthgauge import topics
from depthgauge.cli import output
from depthgauge.cli.errors import sentences
from depthgauge.digits import three


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
            "topic": study.topic,
        }
        for study in discover(sources)
    ]


def _claims(sources: tuple[str, ...]) -> list[dict[str, Any]]:
    """Every claim of every study, in the order of a report's questions, with what the published reports say of it."""
    from depthgauge.discovery import discover

    package = find_spec("depthgauge.reports")
    assert package is not None
    assert package.origin is not None
    published = json.loads((Path(package.origin).parent / "published_claims.json").read_bytes())["claims"]
    claims = [
        {
            "id": claim.id,
            "text": claim.text,
            "study": study.name,
            "topic": claim.topic,
            "published": [
                {name: said[name] for name in ("machine", "preset", "status", "says")}
                for said in published.get(claim.id, ())
                if said["study"] == study.name and not study.foreign
            ],
        }
        for study in discover(sources)
        for claim in study.claims
    ]
    return sorted(claims, key=lambda claim: (topics.place(claim["topic"]), *_noted(claim)))


def _noted(claim: Mapping[str, Any]) -> tuple[bool, str]:
    """Sort the claims of the course notes first, by their number, and leave the others in their order."""
    return ("/" in claim["id"], "" if "/" in claim["id"] else claim["id"])


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


_STATUS = len("not applicable")
_UNBROKEN = 10_000  # columns where nobody looks: a line is a record

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
    "claims": _claims,
    "models": _models,
    "activations": _activations,
    "initializations": _initializations,
    "data": _data,
}


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.option("--claims", "as_claims", is_flag=True, help="Every claim, and what became of it in the published run.")
@click.option(
    "--studies", "sources", multiple=True, metavar="SOURCE", help="Studies of your own: file, folder, package."
)
def listing(as_json: bool, as_claims: bool, sources: tuple[str, ...]) -> None:
    r"""Show the studies, the claims that they answer, the models and the data sets.

    \b
    Examples: every claim with its status in the published run; all there is, for a program
        depthgauge list --claims
        depthgauge list --json
    """
    with sentences():
        sections = {name: section(sources) for name, section in SECTIONS.items()}
    if as_json:
        output.tell_json({"schema": 1, **sections})
    elif as_claims:
        _tell_claims(sections["claims"], {study["name"]: study["question"] for study in sections["studies"]})
    else:
        _tell_all(sections)


# -- for readers -------------------------------------------------------------------------------------------------------


def _tell_all(sections: Mapping[str, list[dict[str, Any]]]) -> None:
    studies = sorted(sections["studies"], key=lambda study: topics.place(study["topic"]))
    lines = []
    for study in studies:
        claims = f" ({count} claim{'s' if count > 1 else ''})" if (count := len(study["claims"])) else ""
        lines.append((study["name"], study["problem"] or f"{study['question']}{claims}"))
    _tell_group("studies", lines)
    hint = "depthgauge list --claims shows the claims, and what became of them in the published run"
    output.tell(f"\n{_wrapped('  ', hint)}\n")
    _tell_group("models", [(model["name"], _sizes(model)) for model in sections["models"]])
    output.tell("")
    described = ("summary", "origin", "license")
    _tell_group("data", [(one["name"], "; ".join(one[part] for part in described)) for one in sections["data"]])
    for name in ("activations", "initializations"):
        output.tell(
            f"\n{click.style(name, bold=True)}\n{_wrapped('  ', ', '.join(one['name'] for one in sections[name]))}"
        )


def _sizes(model: Mapping[str, Any]) -> str:
    return "; ".join(
        f"{preset} {size['parameters']:,} parameters, {three(size['forward_flops'] / 1e6)} MFLOP forward"
        for preset, size in model["presets"].items()
    )


def _tell_claims(claims: list[dict[str, Any]], questions: Mapping[str, str]) -> None:
    """Each claim once, under the question of the first study that asks it, with the answers of all."""
    from depthgauge.topics import BY_NAME

    by_id: dict[str, list[dict[str, Any]]] = {}
    for claim in claims:
        by_id.setdefault(claim["id"], []).append(claim)
    groups: dict[str, list[tuple[str, str]]] = {}
    for name, asked in by_id.items():
        topic = BY_NAME.get(asked[0]["topic"])
        question = topic.question if topic else questions[asked[0]["study"]] or asked[0]["study"]
        groups.setdefault(question, []).append((name, _became(asked)))
    for place, (question, lines) in enumerate(groups.items()):
        _tell_group(f"\n{question}" if place else question, lines)


def _became(claims: list[dict[str, Any]]) -> str:
    """A claim behind what the published reports say of it; each study's words after its name, where studies differ."""
    said = {claim["study"]: each for claim in claims for each in claim["published"]}
    statuses = {study: each["status"].replace("_", " ") for study, each in said.items()}
    words = {study: each["says"] or statuses[study] for study, each in said.items()}
    if len(set(words.values())) > 1:
        kinds = {*statuses.values()}
        status, more = (
            kinds.pop() if len(kinds) == 1 else "differs",
            "; ".join(f"{study}: {word}" for study, word in words.items()),
        )
    else:
        status, more = next(iter(statuses.values()), "unpublished"), next((each["says"] for each in said.values()), "")
    return f"{status:<{_STATUS}}  {claims[0]['text']}{f' ({more})' if more else ''}"


def _tell_group(title: str, lines: Sequence[tuple[str, str]]) -> None:
    """A group's title, and its names beside what is said of them; below each other where the terminal is narrow."""
    output.tell(click.style(title, bold=True))
    width = max((len(name) for name, _ in lines), default=0)
    for name, text in lines:
        if 3 * width > _columns():
            output.tell(f"  {output.plain(name)}\n{_wrapped('      ', text)}")
        else:
            output.tell(_wrapped(f"  {output.plain(name):{width}}  ", text))


def _wrapped(first: str, text: str) -> str:
    return textwrap.fill(
        output.plain(text), _columns(), initial_indent=first, subsequent_indent=" " * len(first), break_on_hyphens=False
    )


def _columns() -> int:
    return output.columns() if sys.stdout.isatty() else _UNBROKEN
