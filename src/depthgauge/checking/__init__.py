"""One check of a user's own training: seven questions, and for each an answer that can be acted on.

import depthgauge

found = depthgauge.check(model, loader, loss=loss, optimizer=optimizer)
print(found.card)
found.answers["signal"].status, found.answers["signal"].advice
"""

from __future__ import annotations

from depthgauge.checking.answers import Answer, Finding, Kind, Measure, Status, Tried
from depthgauge.checking.asking import check
from depthgauge.checking.questions import QUESTIONS, Question
from depthgauge.checking.result import Checked

__all__ = ["QUESTIONS", "Answer", "Checked", "Finding", "Kind", "Measure", "Question", "Status", "Tried", "check"]
