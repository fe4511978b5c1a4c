"""Costs of the studies of a run, kept in its directory: whole ones for estimates, open ones for the run that resumes.

ledger = Ledger(store, "quick", {"walk": chunks})     # with the chunks of the first stages
ledger.add(chunk, seconds=3.1, second=False)
ledger.end("walk")                                    # `costs` of run.json has it now
ledger.stop()                                         # and `spent` what was not ended
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import replace

from depthgauge import costs
from depthgauge.costs import Part, Table
from depthgauge.remaining import counted, group
from depthgauge.store import Store, StoreError
from depthgauge.study import Chunk


class Ledger:
    """The costs of one run.

    Args:
        store: the run's directory.
        preset: what is run.
        first: study -> the chunks of its first stage, those that earlier runs have finished among them.
    """

    def __init__(self, store: Store, preset: str, first: Mapping[str, Iterable[Chunk]]) -> None:
        self._store = store
        self._preset = preset
        self._whole = {study: counted(chunks) for study, chunks in first.items()}
        self._spent: dict[str, dict[str, Part]] = {}

    def add(self, chunk: Chunk, seconds: float, *, second: bool) -> None:
        """Add what a chunk took, in this machine's seconds."""
        study, part = group(chunk)
        parts = self._spent.setdefault(study, {})
        cost = Part.of(len(chunk.cases), seconds * costs.speed(), alone=chunk.exclusive, second=second)
        parts[part] = parts.get(part, Part()) + cost

    def end(self, study: str) -> None:
        """Record what a study has cost, with the runs of the same request that were stopped, or had ended, before."""
        spent = self._table("spent")
        stopped = spent.get(study, {}).get(self._preset, {})
        now = self._resumed(study, stopped)
        if not any(map(_some, now.values())):
            return
        known = self._table("costs")
        now = costs.resumed(known.get(study, {}).get(self._preset, {}), now)
        if not any(cost.cases for cost in now.values()):  # of a second stage alone nothing can be scaled
            return
        known = _with(known, study, self._preset, now)
        self._store.record(costs=costs.told(known), spent=costs.told(_with(spent, study, self._preset, {})))

    def stop(self) -> None:
        """Record what the studies have spent that are open; where the directory takes no more, nothing."""
        spent = self._table("spent")
        for study in list(self._spent):
            now = self._resumed(study, spent.get(study, {}).get(self._preset, {}))
            spent = _with(spent, study, self._preset, now)
        if spent:
            with contextlib.suppress(StoreError):
                self._store.record(spent=costs.told(spent))

    def _resumed(self, study: str, before: Mapping[str, Part]) -> Mapping[str, Part]:
        """What this run has spent on a study, added to what was spent before on the same request."""
        spent, whole = self._spent.pop(study, {}), self._whole[study]
        parts = {part: replace(spent.get(part, Part()), whole=float(whole[part])) for part in {**whole, **spent}}
        return costs.resumed(before, parts)

    def _table(self, entry: str) -> Table:
        return costs.read(self._store.run.get(entry, {}))


def _some(cost: Part) -> bool:
    return cost.seconds > 0 or cost.alone > 0 or cost.second > 0 or cost.cases > 0


def _with(table: Table, study: str, preset: str, parts: Mapping[str, Part]) -> Table:
    """The table with these costs of a study at a preset in place of others; without it where there are none."""
    presets = {name: each for name, each in {**table.get(study, {}), preset: parts}.items() if each}
    others = {name: each for name, each in table.items() if name != study}
    return {**others, study: presets} if presets else others
