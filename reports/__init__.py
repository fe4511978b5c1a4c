"""Tables, figures and pages: what is stored, rendered.

    report = render(read(directory), studies)   # DIR/report/report.md, with index.html beside it

A report is a pure function of what is stored and of the studies' analyses: the same store renders to the same bytes.
"""

from depthgauge.reports.content import Stored
from depthgauge.reports.rendering import IncompleteReportError, render

__all__ = ["IncompleteReportError", "Stored", "render"]
