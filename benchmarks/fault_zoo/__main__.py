"""The command line of the fault zoo, from a checkout's root."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.fault_zoo.cases import CHECK, GROUPS, Case, names, run
from benchmarks.fault_zoo.halves import HALVES
from benchmarks.fault_zoo.peers import TOOLS
from benchmarks.fault_zoo.running import rows, run_all
from benchmarks.fault_zoo.tables import markdown, summary, within

ROWS = Path("runs/fault_zoo/rows.jsonl")


def main(arguments: list[str] | None = None) -> None:
    """Run, tell, or run one case."""
    options = _parser().parse_args(arguments)
    options.act(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fault_zoo", description=__doc__)
    commands = parser.add_subparsers(required=True)
    running = commands.add_parser("run", help="run what has no row yet, and store a row for each")
    running.add_argument("--rows", type=Path, default=ROWS, help="file of the rows")
    running.add_argument("--half", choices=HALVES, default="score")
    running.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS))
    running.add_argument("--tools", nargs="+", choices=(CHECK, *TOOLS), default=[CHECK])
    running.add_argument("--only", nargs="+", help="names of trainings")
    running.add_argument("--seed", type=int, default=1, help="from which trainings are made")
    running.add_argument("--count", type=int, default=120, help="generated trainings, of consecutive seeds")
    running.add_argument("--budget", type=float, default=30.0, help="seconds for a check")
    running.add_argument("--limit", type=float, default=150.0, help="seconds for a process")
    running.add_argument("--jobs", type=int, default=2, help="processes at a time")
    running.set_defaults(act=_run)
    telling = commands.add_parser("table", help="the scores as markdown")
    telling.add_argument("--rows", type=Path, default=ROWS)
    telling.add_argument("--json", type=Path, help="write the scores there, too")
    telling.add_argument("--docs", type=Path, help="write the tables into that page, between its two comments")
    telling.set_defaults(act=_table)
    one = commands.add_parser("one", help="one case, as JSON; its row goes to standard output")
    one.add_argument("case")
    one.set_defaults(act=_one)
    return parser


def _run(options: argparse.Namespace) -> None:
    wanted = [
        case
        for tool in options.tools
        for group in options.groups
        for case in _cases(options, tool, group)
        if options.only is None or case.name in options.only
    ]
    run_all(wanted, options.rows, jobs=options.jobs, limit=options.limit)


def _cases(options: argparse.Namespace, tool: str, group: str) -> list[Case]:
    """All cases of a group: of one seed, or, of generated trainings, of consecutive ones."""
    if group == "generated":
        seeds = range(options.seed, options.seed + options.count)
        return [Case(tool, group, "", "generated", seed, options.budget) for seed in seeds]
    return [Case(tool, group, options.half, name, options.seed, options.budget) for name in names(group, options.half)]


def _table(options: argparse.Namespace) -> None:
    stored = rows(options.rows)
    told = markdown(stored)
    sys.stdout.write(told)
    if options.docs is not None:
        options.docs.write_text(within(options.docs.read_text(), told))
    if options.json is not None:
        options.json.write_text(json.dumps({"scores": summary(stored), "rows": stored}, indent=1) + "\n")


def _one(options: argparse.Namespace) -> None:
    import torch  # noqa: PLC0415 - the other commands need none of it

    torch.set_num_threads(1)
    asked: dict[str, Any] = json.loads(options.case)
    sys.stdout.write("\n" + json.dumps(run(Case(**asked))) + "\n")


if __name__ == "__main__":
    main()
