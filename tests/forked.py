"""Processes forked from a server that has imported everything: imports take longer than the tests.

`multiprocessing` has one server for all who ask, so that all must name the same modules.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import ForkServerContext

# A process that is forked imports none of these again.
PRELOAD = [
    "forgetting.pipeline",
    "forgetting.stages.corpus_scores",
    "forgetting.stages.corpus_detection",
    "forgetting.stages.corpus_selection",
    "forgetting.stages.copies",
    "forgetting.training.fit",
    "forgetting.report",
    "forgetting.cli",
    "sklearn.ensemble",
]


def fork_server() -> ForkServerContext:
    """The context whose processes are forked from the server; their number does not matter."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context
