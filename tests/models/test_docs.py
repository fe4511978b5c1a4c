"""The page about models says what the catalog says, and its examples run."""

from __future__ import annotations

import re
from pathlib import Path

from depthgauge import data, models

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")


def spelled(operations: int) -> str:
    for letter, unit in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if operations >= unit:
            return f"{operations / unit:.3g} {letter}"
    return str(operations)


def test_the_table_is_the_catalogs() -> None:
    rows = []
    for name in models.names():
        for number, (preset, size) in enumerate(models.entry(name).sizes.items()):
            shown = "" if number else name
            forward, backward = spelled(size.forward_flops), spelled(size.backward_flops)
            rows.append(f"| {shown} | {preset} | {size.parameters:,} | {forward} | {backward} |")
    start = PAGE.index("|---|---|---:|---:|---:|\n") + len("|---|---|---:|---:|---:|\n")
    assert PAGE[start : PAGE.index("\n\n", start)] == "\n".join(rows), "\n".join(rows)


def test_every_data_set_is_listed() -> None:
    for name, source in data.SOURCES.items():
        assert f"| {name} | {source.summary} | {source.origin} | {source.license} |" in PAGE


def test_the_text_is_as_long_and_as_hard_as_the_page_says() -> None:
    plays = data.load("shakespeare", context=1)
    assert f"single characters, {plays.vocabulary} of them" in PAGE
    assert f"`memoryless_loss`, {plays.truth['memoryless_loss']:.3f} nats a character" in PAGE
    characters = f"({len(plays.test) + 1:,} characters; {len(plays.train) + 1:,} to train)"
    assert characters in " ".join(PAGE.split())


def test_the_examples_run() -> None:
    namespace: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert blocks
    for block in blocks:
        exec(block, namespace)
