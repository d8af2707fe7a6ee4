"""lm-eval's command line, in this process."""

from __future__ import annotations

import sys
from functools import partialmethod
from unittest import mock


def run_lm_eval(*words: object) -> None:
    """Call it with arguments. It knows the tasks of `--include_path` alone: reading all that it
    ships takes many seconds."""
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.tasks import TaskManager

    few = partialmethod(TaskManager.__init__, include_defaults=False)
    with (
        mock.patch.object(sys, "argv", ["lm-eval", *map(str, words)]),
        mock.patch.object(TaskManager, "__init__", few),
    ):
        cli_evaluate()
