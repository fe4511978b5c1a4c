"""The house style of figures, in one place.

`drawing()` is the context in which a study's `plot` runs: whatever matplotlibrc, backend or style its caller has, the
figure comes out the same, no window opens, and everything is as before afterwards. A study therefore sets no font, no
colour and no size of its own: it takes the colours of the cycle (`C0` .. `C6`) and the default map.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import matplotlib as mpl
from cycler import cycler
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.transforms import BboxBase

from depthgauge.drawing import lay_out
from depthgauge.drawing.palette import FAINT, INK, PALETTE, SEQUENTIAL
from depthgauge.reports import images

RESOLUTION = 150
PAD = 0.08  # inches around what is drawn
_COMPRESSED = {"png": images.with_palette, "svg": images.with_short_numbers}
_METADATA: dict[str, dict[str, None]] = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}

# Sizes are in points on a figure 6.8 inches wide: halved, the smallest print is still 5.5 points.
STYLE: dict[Any, Any] = {  # matplotlib types its keys by name, differently in every version
    "figure.figsize": (6.8, 4.25),
    "figure.dpi": RESOLUTION,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "figure.max_open_warning": 0,
    "figure.titlesize": 13,
    "savefig.dpi": RESOLUTION,
    "savefig.facecolor": "white",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: no other machine's fonts
    "font.size": 12,
    "mathtext.fontset": "dejavusans",
    "text.color": INK,
    "axes.titlesize": 12.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.labelsize": 12,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.9,
    "axes.facecolor": "white",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.prop_cycle": cycler(color=PALETTE),
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "xtick.major.size": 4,
    "ytick.major.size": 4,
    "xtick.minor.size": 2.2,
    "ytick.minor.size": 2.2,
    "lines.linewidth": 1.9,
    "lines.markersize": 5.5,
    "lines.solid_capstyle": "round",
    "errorbar.capsize": 0,
    "legend.frameon": False,
    "legend.fontsize": 11,
    "legend.title_fontsize": 11,
    "legend.handlelength": 1.6,
    "image.cmap": SEQUENTIAL,
    "svg.fonttype": "path",
    "svg.hashsalt": "depthgauge",
    "timezone": "UTC",
    "interactive": False,
}


@contextmanager
def drawing() -> Iterator[None]:
    """A figure drawn in here has the house style, on the Agg backend; figures opened in here are closed at the end."""
    # Read past rcParams' own lookup, which would choose (and load) a window system where none was chosen yet.
    backend = dict.__getitem__(mpl.rcParams, "backend")
    loaded = plt._backend_mod
    opened = set(plt.get_fignums())
    with mpl.rc_context(), warnings.catch_warnings():
        # seaborn's figure-level functions lay a figure out by themselves, which replaces our layout: as it should
        warnings.filterwarnings("ignore", "The figure layout has changed to tight", UserWarning)
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)  # a title in another script
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        plt._backend_mod = None
        dict.__setitem__(mpl.rcParams, "backend", "agg")
        gc.freeze()  # canvases are cyclic: collecting them would go through every imported module each time
        try:
            yield
        finally:
            gc.unfreeze()
            for number in plt.get_fignums():
                if number not in opened:
                    plt.close(number)
            plt._backend_mod = loaded
            dict.__setitem__(mpl.rcParams, "backend", backend)


def png(figure: Figure) -> bytes:
    """The figure as PNG: the same bytes for the same drawing, without a date or a program's name."""
    return files(figure, "png")[0]


def files(figure: Figure, *formats: str) -> tuple[bytes, ...]:
    """The figure in every format, laid out once, as small as it gets; SVG has its text as outlines."""
    lay_out(figure)
    layout = figure.get_layout_engine()
    whole = figure.get_tightbbox().padded(PAD)
    with mpl.rc_context({"figure.autolayout": False, "figure.constrained_layout.use": False}):
        figure.set_layout_engine(None)  # with one, saving would draw the figure once more to lay it out
        saved = tuple(_saved(figure, suffix, whole) for suffix in formats)
    if layout is not None:
        figure.set_layout_engine(layout)
    return saved


def _saved(figure: Figure, suffix: str, whole: BboxBase) -> bytes:
    buffer = BytesIO()
    options: dict[str, Any] = {"format": suffix, "bbox_inches": whole, "metadata": _METADATA[suffix]}
    if suffix == "png":
        options["pil_kwargs"] = {"compress_level": 1}  # it is compressed once more
    figure.savefig(buffer, **options)
    return _COMPRESSED[suffix](buffer.getvalue())
