"""The report of profiles: one page for each, and one that compares them.

path = render(folder)        # folder/report/report.md, with index.html beside it, from folder/profiles and traces
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from depthgauge.profiling import Capture, Opportunity, Profile, ProfileError, TraceError, analyse, read
from depthgauge.profiling.kinds import MATRIX
from depthgauge.profiling.timeline import COMMUNICATING, WAITING
from depthgauge.reports import profile_figures, style, trace_page
from depthgauge.reports.content import Drawing, drawn
from depthgauge.reports.escaping import slug
from depthgauge.reports.numbers import NOTHING, number, quantity
from depthgauge.reports.pages import HTML, MARKDOWN, described
from depthgauge.reports.profile_reading import READING
from depthgauge.reports.rendering import strict
from depthgauge.reports.replacing import replacing
from depthgauge.reports.side_by_side import by_format
from depthgauge.reports.tables import Column, Table, csv_text
from depthgauge.stats import Estimate

HELD = "profiles.json"  # the machine's view, by which a report of profiles is known
_SHOWN = 15  # rows of a table that are printed
_RESERVED = frozenset({"report", "index"})
_LARGEST = 3  # opportunities that are told


@dataclass(frozen=True)
class Page:
    """One profile as its page shows it."""

    label: str
    slug: str
    title: str
    settings: tuple[tuple[str, str], ...]
    answers: tuple[str, ...]
    opportunities: tuple[Opportunity, ...]
    others: tuple[Opportunity, ...]
    drawings: tuple[Drawing, ...]
    tables: tuple[Table, ...]
    environment: tuple[tuple[str, str], ...]
    command: str
    trace: str
    timeline: str = ""


def render(
    folder: Path, *, progress: Callable[[str], None] | None = None, found: Callable[[str], None] | None = None
) -> Path:
    """Write `report/` from the profiles stored in a folder, replacing an earlier one, and return its `report.md`.

    Args:
        folder: the profiles' place.
        progress: told in a few words what is being done.
        found: told once the report is written, for each profile, where the time goes and what could save most.

    Raises:
        ProfileError: nothing is stored there, or not all of it can be read.
        TraceError: a trace cannot be read.
    """
    tell = progress or (lambda _: None)
    stored = sorted((folder / "profiles").glob("*.json"))
    if not stored:
        raise ProfileError(f"there are no profiles in {folder}; depthgauge profile MODEL --out {folder} makes one")
    profiles: list[Profile] = []
    pages: list[Page] = []
    timelines: dict[str, str] = {}
    for path in stored:
        captured = Capture.read(path)
        tell(f"{captured.label}: analysing and drawing")
        with _belonging(path, folder / captured.trace):
            trace = read(folder / captured.trace)
            profiles.append(analyse(captured, trace))
            pages.append(_page(profiles[-1]))
            timelines[pages[-1].timeline] = trace_page.page(trace, captured.label)
    with replacing(folder / "report", HELD) as report:
        _write(report, profiles, pages)
        for name, text in timelines.items():
            (report / name).write_bytes(text.encode())
    if found:
        for profile in profiles:
            found(brief(profile))
    return folder / "report" / "report.md"


@contextmanager
def _belonging(path: Path, trace: Path) -> Iterator[None]:
    """A profile and a trace that were edited can contradict each other in more ways than can be looked for."""
    try:
        yield
    except TraceError:
        raise
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise ProfileError(f"{trace} cannot be the trace of {path}: {error}") from error


def _write(report: Path, profiles: Sequence[Profile], pages: Sequence[Page]) -> None:
    (report / "figures").mkdir()
    (report / "tables").mkdir()
    table, sides = _comparison(profiles), by_format(profiles)
    drawing = None
    if len(profiles) > 1:
        with style.drawing():
            drawing = drawn(profile_figures.comparison(profiles), outlines=False)
    for figure in [*([drawing] if drawing else []), *(each for page in pages for each in page.drawings)]:
        (report / "figures" / f"{figure.stem}.png").write_bytes(figure.png)
    for written in [table, *sides, *(inner for page in pages for inner in page.tables)]:
        (report / "tables" / f"{written.stem}.csv").write_bytes(written.csv)
    told = {"summary": _summary(profiles), "sides": sides, "reading": READING}
    about = {"pages": pages, "table": table, "drawing": drawing, **told}
    for page in pages:
        text = MARKDOWN.get_template("profile.md.j2").render(page=page, deep="##", alone=True, **about)
        (report / f"{page.slug}.md").write_bytes(text.encode())
    (report / "report.md").write_bytes(MARKDOWN.get_template("profiles.md.j2").render(**about).encode())
    (report / "index.html").write_bytes(HTML.get_template("profiles.html.j2").render(**about).encode())
    (report / HELD).write_bytes(_as_json(profiles, pages).encode())


# -- one profile -------------------------------------------------------------------------------------------------------


def _page(profile: Profile) -> Page:
    captured = profile.capture
    stem = slug(captured.label, _RESERVED)
    with style.drawing():
        figures = (profile_figures.step(profile), profile_figures.roofline(profile), profile_figures.memory(profile))
        # Twenty profiles have sixty figures of a thousand shapes each: as pixels they take a fifth of their outlines.
        drawings = tuple(drawn(figure, stem, outlines=False) for figure in figures)
    settings = {name: str(value) for name, value in captured.setting.items()}
    return Page(
        label=captured.label,
        slug=stem,
        title=f"Profile of {settings.get('model', captured.label)}",
        settings=tuple((name, {"True": "yes", "False": "no"}.get(value, value)) for name, value in settings.items()),
        answers=answers(profile),
        opportunities=profile.opportunities[:_LARGEST],
        others=profile.opportunities[_LARGEST:],
        drawings=drawings,
        tables=_tables(profile, stem),
        environment=tuple(described(captured.fingerprint)),
        command=captured.command,
        trace=captured.trace,
        timeline=f"{stem}.trace.html",
    )


def brief(profile: Profile) -> str:
    """Summarize in a line where the time of a step goes and what could save most."""
    spent = ", ".join(f"{name} {profile.phase(name):.0%}" for name in ("forward", "backward", "optimizer"))
    largest = _largest(profile)
    saving = f"; could save most: {largest}" if largest != NOTHING else ""
    return f"{profile.capture.label}: {quantity(profile.seconds.value, 's')} a step, {spent}{saving}"


def answers(profile: Profile) -> tuple[str, ...]:
    """Describe the profile in sentences."""
    captured = profile.capture
    sentences = [_speed(profile), _phases(profile)]
    if profile.on_host:
        sentences.append(
            f"For {profile.waiting:.0%} of the traced step no operator computes: the time of Python, dispatch, "
            "autograd's bookkeeping and the profiler itself. On a CPU this takes the place "
            "of a device's waiting for its host."
        )
    else:
        sentences.append(
            f"For {profile.waiting:.0%} of the step the device waits for the host to launch its next work."
        )
    communicating = float(profile.timeline.loc[profile.timeline["state"] == COMMUNICATING, "share"].sum())
    sentences.append(
        f"Communication that nothing hides takes {communicating:.1%} of the step."
        if communicating
        else "There is no communication: one process, one device."
    )
    sentences.append(_cores(profile))
    parts = ", ".join(f"{name} {_bytes(size)}" for name, size in profile.peak.items() if size)
    sentences.append(f"Memory peaks at {_bytes(sum(profile.peak.values()))}: {parts}.")
    ratio, cost = profile.overhead.effect, ""
    if ratio.has_interval:
        cost = f" [{number(ratio.low, 3)}, {number(ratio.high, 3)}] (n = {ratio.n} turns, 99 %)"
    sentences.append(
        f"Under the profiler a step takes {number(ratio.value, 3)} times as long{cost}; the step's time above is taken "
        "without it."
    )
    if captured.setting.get("compiled"):
        sentences.append(f"The first step, with its compilation, took {quantity(captured.first, 's')}.")
    return tuple(sentences)


def _speed(profile: Profile) -> str:
    step, captured = profile.seconds, profile.capture
    between = f" [{quantity(step.low, 's')}, {quantity(step.high, 's')}]" if step.has_interval else ""
    examples, flops = (
        quantity(number, "").strip() for number in (captured.examples / step.value, float(profile.flops))
    )
    text = (
        f"A training step takes {quantity(step.value, 's')}{between}: {examples} examples a second. It is {flops} "
        f"operations of matrix work, at {quantity(profile.flop_rate, 'FLOP/s')}"
    )
    dtype = str(captured.setting.get("dtype", captured.precision))
    peak = captured.ceilings.flops.get(dtype)
    return text + (f", {profile.flop_rate / peak:.1%} of this device's best {dtype} product." if peak else ".")


def _phases(profile: Profile) -> str:
    forward, backward, optimizer = (profile.phase(name) for name in ("forward", "backward", "optimizer"))
    points = profile.points
    work = {phase: float(points.loc[points["phase"] == phase, "flops"].sum()) for phase in ("forward", "backward")}
    ratio = f"{backward / forward:.2g} times as long as forward" if forward else "all the time"
    flops = f", for {work['backward'] / work['forward']:.2g} times the operations" if work["forward"] else ""
    return (
        f"Forward takes {forward:.0%} of it, backward {backward:.0%}, the optimizer {optimizer:.0%}. Backward takes "
        f"{ratio}{flops}."
    )


def _cores(profile: Profile) -> str:
    if profile.tensor_cores is None:
        return "Tensor cores: not applicable, a CPU has none."
    if profile.tensor_cores.empty:
        return "Tensor cores: there is no matrix work that could use them."
    used = zip(profile.tensor_cores["dtype"].astype(str), profile.tensor_cores["share"], strict=True)
    parts = (f"{dtype or 'unknown format'} {share:.0%}" for dtype, share in used)
    return f"Share of the matrix work's time in kernels that use tensor cores, by their names: {', '.join(parts)}."


def _bytes(size: float) -> str:
    for factor, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= factor:
            return f"{number(size / factor, 3)} {unit}"
    return f"{size:.0f} B"


# -- tables ------------------------------------------------------------------------------------------------------------


def _tables(profile: Profile, stem: str) -> tuple[Table, ...]:
    operators = _work_table("operators", f"{stem}.operators", profile.operators, ("name", "kind"))
    phases = profile.timeline.pivot_table(index="phase", columns="state", values="seconds", sort=False)
    phases = phases.loc[:, (phases > 0).any()].loc[(phases > 0).any(axis=1)]
    table = phases.assign(all=phases.sum(axis=1)).reset_index()
    labels = {WAITING: "no operator runs"} if profile.on_host else {}
    columns = [
        Column("phase", numeric=False, cells=tuple(map(str, table["phase"]))),
        *(
            Column(labels.get(name, str(name)), True, tuple(quantity(value, "s") for value in table[name]))
            for name in table.columns[1:]
        ),
    ]
    timeline = Table("timeline", f"{stem}.timeline", csv_text(profile.timeline), tuple(columns), len(table), shown=True)
    points = Table(
        "operators by shape", f"{stem}.shapes", csv_text(profile.points), (), len(profile.points), shown=False
    )
    kernels = []
    if len(profile.kernels):
        kernels.append(_work_table("kernels", f"{stem}.kernels", profile.kernels, ("name", "operator", "tensor_cores")))
    return (timeline, operators, *kernels, points)


def _work_table(name: str, stem: str, frame: pd.DataFrame, words: Sequence[str]) -> Table:
    """A table of work, its first rows with units."""
    some = frame.head(_SHOWN)
    columns = [
        *(Column(word.replace("_", " "), False, tuple(_word(value) for value in some[word])) for word in words),
        Column("calls", True, tuple(f"{calls:g}" for calls in some["calls"])),
        Column("self time", True, tuple(quantity(value, "s") for value in some["seconds"])),
        Column("share", True, tuple(f"{value:.1%}" for value in some["share"])),
        Column("FLOP rate", True, tuple(_rate(value, "FLOP/s") for value in some["flop_rate"])),
        Column("byte rate", True, tuple(_rate(value, "B/s") for value in some["byte_rate"])),
        Column(
            "of the roofline",
            True,
            tuple(NOTHING if math.isnan(share) else f"{share:.0%}" for share in some["of_floor"]),
        ),
    ]
    return Table(name, stem, csv_text(frame), tuple(columns), len(frame), shown=True)


def _word(value: object) -> str:
    text = {"True": "yes", "False": "no"}.get(str(value), str(value))
    return text if len(text) <= 60 else f"{text[:57]}…"


def _rate(value: float, unit: str) -> str:
    return NOTHING if math.isnan(value) else quantity(value, unit)


def _percent(value: float) -> str:
    return NOTHING if math.isnan(value) else f"{value:.0%}"


def _digits(value: float) -> str:
    return NOTHING if math.isnan(value) else number(value, 3)


# The numbers that profiles are compared by: name, value, and how a reader sees it. Units of the bare numbers in a file
# are in `_UNITS`; cells carry their own.
_COMPARED: tuple[tuple[str, Callable[[Profile], float], Callable[[float], str]], ...] = (
    ("step", lambda profile: profile.seconds.value, lambda value: quantity(value, "s")),
    (
        "examples a second",
        lambda profile: profile.capture.examples / profile.seconds.value,
        lambda value: f"{value:,.0f}",
    ),
    ("FLOP rate", lambda profile: profile.flop_rate, lambda value: quantity(value, "FLOP/s")),
    ("backward / forward", lambda profile: profile.phase("backward") / (profile.phase("forward") or math.nan), _digits),
    ("operator calls", lambda profile: float(profile.points["calls"].sum()), lambda value: f"{value:,.0f}"),
    ("matrix work", lambda profile: float(_matrix(profile)["share"].sum()), _percent),
    ("of the roofline", lambda profile: _ratio(_matrix(profile)), _percent),
    ("nothing computes", lambda profile: profile.waiting, _percent),
    ("peak memory", lambda profile: sum(profile.peak.values()), _bytes),
    ("under the profiler", lambda profile: profile.overhead.effect.value, _digits),
)


_UNITS = {"step": "step (s)", "FLOP rate": "FLOP rate (FLOP/s)", "peak memory": "peak memory (B)"}
_BEST = "could save most"


def _largest(profile: Profile) -> str:
    """The largest bound of those that do not overlap."""
    largest = next((opportunity for opportunity in profile.opportunities if opportunity.exclusive), None)
    return f"{largest.name}, up to {largest.share:.0%}" if largest else NOTHING


def _summary(profiles: Sequence[Profile]) -> tuple[str, ...]:
    """Describe the spread of the profiles, in a sentence for each of some numbers."""
    sentences = {
        "backward / forward": "Backward takes {} times as long as forward",
        "matrix work": "Matrix products, convolutions and attention take {} of a step",
        "of the roofline": "This matrix work comes to {} of the roofline",
        "nothing computes": "Nothing computes for {} of a step",
        "under the profiler": "The profiler makes a step {} times as long",
    }
    summary = []
    for name, value, spell in _COMPARED:
        known = sorted((value(each), each.capture.label) for each in profiles if not math.isnan(value(each)))
        if name in sentences and known:
            (low, least), (high, most) = known[0], known[-1]
            middle = spell(statistics.median(value for value, _ in known))
            between = f"{spell(low)} ({least}) to {spell(high)} ({most})"
            summary.append(f"{sentences[name].format(middle)} in the median, {between}.")
    return tuple(summary)


def _matrix(profile: Profile) -> pd.DataFrame:
    return profile.points[profile.points["kind"].isin(MATRIX)]


def _ratio(matrix: pd.DataFrame) -> float:
    return float(matrix["floor"].sum() / matrix["seconds"].sum()) if len(matrix) else math.nan


def _comparison(profiles: Sequence[Profile]) -> Table:
    labels = [profile.capture.label for profile in profiles]
    values = {name: list(map(value, profiles)) for name, value, _ in _COMPARED}
    best = list(map(_largest, profiles))
    frame = pd.DataFrame({"profile": labels, **values, _BEST: best}).rename(columns=_UNITS)
    columns = (
        Column("profile", numeric=False, cells=tuple(labels)),
        *(Column(name, numeric=True, cells=tuple(map(spell, values[name]))) for name, _, spell in _COMPARED),
        Column(_BEST, numeric=False, cells=tuple(best)),
    )
    return Table("comparison", "comparison", csv_text(frame), columns, len(profiles), shown=True)


def _as_json(profiles: Sequence[Profile], pages: Sequence[Page]) -> str:
    """`profiles.json`: strict JSON, keys sorted."""
    entries = {
        page.label: {
            "setting": dict(profile.capture.setting),
            "seconds": _estimate(profile.seconds),
            "overhead": _estimate(profile.overhead.effect),
            "flops": profile.flops,
            "waiting": profile.waiting,
            "shares": profile_figures.shares(profile),
            "peak_memory": sum(profile.peak.values()),
            "opportunities": [asdict(item) for item in profile.opportunities],
            "tables": {table.name: f"tables/{table.stem}.csv" for table in page.tables},
            "figures": [f"figures/{item.stem}.png" for item in page.drawings],
            "environment": dict(profile.capture.fingerprint),
        }
        for profile, page in zip(profiles, pages, strict=True)
    }
    return json.dumps(strict({"schema": 1, "profiles": entries}), sort_keys=True, indent=1, allow_nan=False) + "\n"


def _estimate(estimate: Estimate) -> dict[str, float]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high, "n": estimate.n}
