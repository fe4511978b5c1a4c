"""Rendering of stored results: tables, figures and pages.

    report = render(read(directory), studies)   # DIR/report/report.md, with index.html beside it

A report is a pure function of what is stored and of the studies' analyses: rendered twice, it has the same bytes.
"""

from depthgauge.reports.rendering import IncompleteReportError, LostStudyError, render

__all__ = ["IncompleteReportError", "LostStudyError", "render"]
