"""Numerics in a test suite: a training that is sound, two versions that are the same, figures that do not drift.

    def test_training(numerics):
        numerics.check(training()).assert_sound()

    def test_new_attention(numerics):
        numerics.assert_same(OldAttention(), NewAttention(), batch)

    def test_loss_after_100_steps(numerics):
        numerics.drift("loss", train, seeds=range(8), margin=0.02).assert_same()

pytest has the fixture `numerics` where depthgauge is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from depthgauge import precision
from depthgauge.checking import Checked, Status, check
from depthgauge.drifting import Drift, Make, measured
from depthgauge.workload import Training


@dataclass(frozen=True)
class Soundness:
    """A check within a test.

    Attributes:
        checked: the answers.
    """

    checked: Checked

    def assert_sound(self, *, allow: Iterable[str] = (), undecided: bool = True) -> None:
        """Fail where something is broken, or where nothing could be measured.

        Args:
            allow: kinds of findings, or ids of questions, that may be broken.
            undecided: whether questions may stay undecided.

        Raises:
            AssertionError: with what is broken and what to do, then the card.
        """
        __tracebackhide__ = True
        complaints = self._complaints(frozenset([allow] if isinstance(allow, str) else allow), undecided=undecided)
        if complaints:
            raise AssertionError("\n".join([*complaints, "", card(self.checked)]).rstrip())

    def _complaints(self, allow: frozenset[str], *, undecided: bool) -> list[str]:
        answers = self.checked.asked
        if answers and all(answer.status is Status.UNDECIDED for answer in answers):
            return [f"nothing could be measured: {answers[0].says}"]
        found = [
            f"{answer.id}: {finding.text}{f' Do: {finding.advice}' if finding.advice else ''}"
            for answer in answers
            for finding in answer.findings
            if finding.status is Status.BROKEN and not {finding.kind, answer.id} & allow
        ]
        if not undecided:
            open_ones = [answer for answer in answers if answer.status is Status.UNDECIDED and answer.id not in allow]
            found += [f"{answer.id} is undecided: {answer.says}" for answer in open_ones]
        return found


def card(checked: Checked) -> str:
    """The answers of a check as text: its card."""
    return str(getattr(checked, "card", "")) or "\n".join(
        f"{answer.status:9} {answer.id}: {answer.says}" for answer in checked.asked
    )


class Numerics:
    """The fixture.

    Args:
        folder: where baselines of the test's file are.
        update: whether baselines are written.
        note: shows a title and a text with the test's report where it fails, or where all reports are asked for.
        test: name of the test.
        stored: path of each baseline that the session has stored -> the test that has.
    """

    def __init__(
        self,
        folder: Path,
        *,
        update: bool,
        note: Callable[[str, str], object] = lambda *_: None,
        test: str = "this test",
        stored: dict[Path, str] | None = None,
    ) -> None:
        self._folder = folder
        self._update = update
        self._note = note
        self._test = test
        self._stored = {} if stored is None else stored
        self._own: set[Path] = set()

    def check(self, training: Training | nn.Module, *arguments: Any, **options: Any) -> Soundness:
        """Check a training as `depthgauge.check` does, with the same arguments; budget: 10 seconds by default.

        Raises:
            WorkloadError: what is given is no training.
        """
        found = Soundness(check(training, *arguments, **{"budget": 10.0, **options}))
        self._note("numerics", card(found.checked))
        return found

    def assert_same(self, old: nn.Module, new: nn.Module, batch: Any, **options: Any) -> None:
        """Fail where two versions of a module differ by more than rounding explains; the first such layer is named.

        Args:
            old: one version.
            new: another, whose submodules have the same names as far as they are to be compared.
            batch: what both are called with: a tensor, a tuple of arguments, or a mapping of arguments by name.
            **options: of `precision.compare`.

        Raises:
            AssertionError: they differ, or nothing could be compared.
        """
        __tracebackhide__ = True
        comparison = precision.compare(old, new, batch, **options)
        self._note("numerics", str(comparison))
        if comparison.same:
            return
        if comparison.same is None:
            raise AssertionError("nothing could be compared: no output and no gradient of a floating-point type")
        beyond = comparison.to_frame().query("size > 1").head(10)
        table = beyond[["layer", "direction", "tensor", "error", "band", "size"]]
        raise AssertionError(f"{comparison}\n{table.to_string(index=False, float_format='{:.3g}'.format)}")

    def drift(
        self,
        name: str,
        make: Make,
        *,
        seeds: Sequence[int] = tuple(range(8)),
        margin: float | Mapping[str, float] | None = None,
        ratio: float | None = None,
    ) -> Drift:
        """Hold figures over seeds against those stored beside the tests, and say different, same, or inconclusive.

        `pytest --numerics-update` stores them: commit the file. Each seed is held against the same seed before; the
        verdict follows from the interval of the mean difference and the margin, never from one number.

        Args:
            name: of the baseline; none twice in a file of tests.
            make: `make(seed)`, a number or a mapping of names to numbers.
            seeds: at least 5, or 6 to tell a difference; all figures together are one family at 95 %.
            margin: the largest change of the mean that does not matter, for all figures, or by name.
            ratio: the same as a factor, `1.05`, for figures above zero; in place of `margin`.

        Raises:
            ValueError: neither margin nor ratio, or both; no seeds, or one twice; a name that is no file's, or another
                baseline's that was stored just now; `make(seed)` gives no numbers.
            FileNotFoundError: there is no baseline yet; the message says how to store one.
            OSError: the baseline cannot be written.
        """
        __tracebackhide__ = True
        if not name or Path(name).name != name:
            raise ValueError(f"{name!r} is no name of a file: a baseline lies in the folder beside its tests")
        path = self._folder / f"{name}.json"
        if self._update:
            self._check_free(path)
        found = measured(path, make, seeds, margin, ratio, update=self._update)
        if self._update:
            self._stored[path] = self._test
            self._own.add(path)
        return found

    def _check_free(self, path: Path) -> None:
        """Check that nobody has stored a baseline in this session, but for an earlier run of this test.

        Raises:
            ValueError: another test has, or this one has.
        """
        __tracebackhide__ = True
        owner = self._stored.get(path, self._test)
        if owner != self._test or path in self._own:
            raise ValueError(
                f"{path} was stored just now by {owner}: give each baseline a name of its own, and the parameters of a"
                ' test a place in it, as in numerics.drift(f"loss_{depth}", ...)'
            )
