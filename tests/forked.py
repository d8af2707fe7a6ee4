"""Processes forked from a server that has imported everything: imports take longer than the tests.

`multiprocessing` has one server for all who ask, so that all must name the same modules.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

MINUTES = 15 * 60
ROOT = Path(__file__).resolve().parents[1]
# Before any test.
ENVIRONMENT = dict(os.environ)

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
    # What the test that happens to be the first has set is not for the others.
    with mock.patch.dict(os.environ, ENVIRONMENT, clear=True):
        forkserver.ensure_running()
    return context


def become(environment: Mapping[str, str]) -> None:
    """What a forked process does first: it takes the environment that it would have been given."""
    # See `pytest_runtest_setup` of tests/conftest.py.
    gc.freeze()
    os.environ.clear()
    os.environ.update(environment)


def run_python(*arguments: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """What `python SCRIPT ...` or `python -m MODULE ...` does in a folder.

    As in a process of its own, except that the frameworks are imported already: what the program
    registers, sets or leaves behind is gone with it.
    """
    words = [str(argument) for argument in arguments]
    with TemporaryDirectory() as place:
        files = [Path(place, name) for name in ("out", "err")]
        work = words, str(folder), *map(str, files), dict(os.environ)
        process = fork_server().Process(target=_run_python, args=work)
        process.start()
        try:
            process.join(MINUTES)
            assert process.exitcode is not None, f"{words} does not end"
        finally:
            process.kill()
            process.join()
        out, err = (file.read_text(encoding="utf-8") for file in files)
    return subprocess.CompletedProcess(words, process.exitcode, out, err)


def _run_python(
    words: Sequence[str], folder: str, out: str, err: str, environment: Mapping[str, str]
) -> None:
    become(environment)
    for stream, file in ((sys.stdout, out), (sys.stderr, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), stream.fileno())
    os.chdir(folder)
    # pytest adds the root of the checkout; a process of its own would not have it.
    path = [place for place in sys.path if Path(place).resolve() != ROOT]
    if words[0] == "-m":
        sys.path[:] = [folder, *path]
        sys.argv = list(words[1:])
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        # Of what is run as a folder, `runpy` puts the folder itself there, as Python does.
        sys.path[:] = path if Path(words[0]).is_dir() else [str(Path(words[0]).parent), *path]
        sys.argv = list(words)
        runpy.run_path(words[0], run_name="__main__")
