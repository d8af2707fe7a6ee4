"""The commands of the pages: every block runs in bash on tiny stand-ins; every mention exists.

A block runs unchanged, with its comments, redirections and here-documents. Programs are looked up
in a folder of stand-ins first: `forgetting` is this process. A program that cannot run here is
checked in another way; its stand-in says why.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import socket
import subprocess
import sys
import traceback
import webbrowser
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import pytest
import typer
from accelerate.commands.launch import launch_command_parser
from packaging.requirements import Requirement

from experiments.noise.__main__ import build_parser
from forgetting import Recipe, launch
from forgetting.cli import app, main
from forgetting.config import load_recipe
from forgetting.inspector import InspectorServer
from tests.documentation.conftest import (
    PAGES,
    ROOT,
    SMALL,
    blocks,
    code_spans,
    page_name,
    read_command,
)
from tests.forked import run_python

# What the detector finds in the stand-ins is nobody's concern.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("restored_logging", "with_few_trees"),
]

TAKES_A_RECIPE = {"run", "prepare", "reference", "score", "select", "train", "evaluate", "report"}


def our_command(arguments: list[str]) -> int:
    """`forgetting`, on few samples. Some commands are changed, each for the reason given here."""
    # Brackets mark optional arguments.
    command, *rest = [argument.strip("[]") for argument in arguments]
    params = read_command([command, *rest])
    if command == "demo":
        # Takes minutes, and has a test of its own: here, its plan.
        command, rest = "run", ["demo", "--dry-run", "--run-dir", "runs/plan", *rest]
    elif command == "reproduce" and params["name"] is not None:
        # Trains for minutes at the least, and has tests of its own: here, all recipes are written
        # and the commands printed.
        rest = [*rest, *([] if params["list_"] else ["--list"])]
    elif command == "audit" and params["model"] == "embedded":
        # The extra need not be installed, and the model takes minutes.
        rest = [*rest, "--model", "BASE"]
    elif command == "export":
        # The Hub has a test of its own: here, only the folder. An earlier block may have made it.
        if params["push_to_hub"] is not None:
            place = rest.index("--push-to-hub")
            del rest[place : place + 2]
        rest = [*rest, "--force"]
    elif command == "run" and "/studies/" in str(Path(params["recipe"]).resolve()):
        # The paper's models are not here: the plan, which needs none.
        rest = [*rest, "--dry-run"]
    elif command in {*TAKES_A_RECIPE, "sweep"}:
        rest = [*rest[:1], *(part for small in SMALL for part in ("--set", small)), *rest[1:]]
    elif command == "chat":
        # Pipes do not lead into this process.
        with mock.patch("sys.stdin", io.StringIO("Name three colors.\n")):
            return main([command, *rest])
    return main([command, *rest])


def read_accelerate(arguments: list[str]) -> int:
    """Needs several machines: accelerate's parser reads its options, ours the command in it."""
    verb, *rest = arguments
    options = launch_command_parser().parse_args(rest)
    assert (verb, options.module, options.training_script) == ("launch", True, "forgetting")
    assert Path(options.config_file).is_file()
    read_command(options.training_script_args)
    return 0


def read_pip(arguments: list[str]) -> int:
    """Needs the network: checks the files and names that it would install."""
    names = iter(arguments)
    assert next(names) == "install"
    for name in names:
        if name == "-c":
            assert Path(next(names)).is_file()
        elif name == ".":
            assert Path("pyproject.toml").is_file()
        else:
            Requirement(name)
    return 0


def read_hf(arguments: list[str]) -> int:
    """Asks for a password: checks that the command exists."""
    program = Path(sys.executable).with_name("hf")
    return subprocess.run(
        [program, *arguments, "--help"], check=True, capture_output=True
    ).returncode


def read_make(arguments: list[str]) -> int:
    """Installs for minutes, or runs this test: checks that the target exists."""
    return subprocess.run(["/usr/bin/make", "--dry-run", *arguments], check=True).returncode


def read_python(arguments: list[str]) -> int:
    """Trains for minutes: checks that the program exists and that its help has the options."""
    verb, module, *rest = arguments
    assert verb == "-m"
    done = run_python("-m", module, "--help", folder=ROOT)
    print(done.stderr, file=sys.stderr)
    assert done.returncode == 0
    assert {word for word in rest if word.startswith("--")} <= set(re.split(r"[^\w-]", done.stdout))
    return 0


PROGRAMS: dict[str, Program] = {
    "forgetting": our_command,
    "python": read_python,
    "accelerate": read_accelerate,
    "pip": read_pip,
    "make": read_make,
    "hf": read_hf,
}
# A cluster of one node: what is submitted runs at once, the first of an array.
SCRIPTS = {
    "srun": '#!/bin/sh\nexec "$@"\n',
    "scontrol": "#!/bin/sh\necho node0\necho node1\n",
    "sbatch": "#!/bin/bash\nSLURM_ARRAY_TASK_ID=1 exec bash -eu ${@: -1}\n",
}
CLUSTER = {"SLURM_JOB_NODELIST": "node[0-1]", "SLURM_NNODES": "2", "SLURM_NODEID": "0"}


Program = Callable[[list[str]], int]
"""Arguments to exit code; what it prints goes to the block that called it."""

# Asks the process of the test, which has imported everything already.
ASK = """#!{python} -SE
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as line:
    line.connect({address!r})
    stream = line.makefile("rw")
    stream.write(json.dumps([os.path.basename(sys.argv[0]), sys.argv[1:], os.getcwd()]) + "\\n")
    stream.flush()
    out, err, code = json.loads(stream.readline())
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(code)
"""


class Shell:
    """Runs blocks in bash, in which programs are functions of this process, or scripts.

    Args:
        folder: where the stand-ins for the programs are put.
        programs: by name; called in the current directory of the caller.
        scripts: by name, for the shell.
    """

    def __init__(self, folder: Path, programs: dict[str, Program], scripts: dict[str, str]) -> None:
        self._programs = programs
        self._bin = folder / "bin"
        self._bin.mkdir()
        # An address has room for a hundred characters, and temporary folders may be longer.
        self._address = os.path.relpath(folder / "ask")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self._address)
        self._listener.listen()
        self._listener.settimeout(0.05)
        address = str((folder / "ask").resolve())
        texts = {name: ASK.format(python=sys.executable, address=address) for name in programs}
        for name, text in {**texts, **scripts}.items():
            (self._bin / name).write_text(text)
            (self._bin / name).chmod(0o755)

    def run(self, text: str, folder: Path) -> subprocess.CompletedProcess[str]:
        """Run a block; the first command that fails ends it, as -e has it."""
        environment = {**os.environ, "PATH": f"{self._bin}:/usr/bin:/bin"}
        with subprocess.Popen(
            ["bash", "-eu", "-o", "pipefail", "-c", text],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as shell:
            while shell.poll() is None:
                with contextlib.suppress(TimeoutError):
                    self._answer(self._listener.accept()[0])
            out, err = shell.communicate()
        return subprocess.CompletedProcess(text, shell.returncode, out, err)

    def _answer(self, line: socket.socket) -> None:
        with line, line.makefile("rw") as stream:
            name, arguments, folder = json.loads(stream.readline())
            out, err = io.StringIO(), io.StringIO()
            with (
                contextlib.chdir(folder),
                contextlib.redirect_stdout(out),
                contextlib.redirect_stderr(err),
            ):
                try:
                    code = self._programs[name](arguments)
                except (Exception, SystemExit):
                    code = traceback.print_exc() or 1
            stream.write(json.dumps([out.getvalue(), err.getvalue(), code]) + "\n")


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    return Shell(tmp_path_factory.mktemp("shell"), PROGRAMS, SCRIPTS)


@pytest.fixture(autouse=True)
def _a_machine_to_show(monkeypatch):
    """A browser and many accelerators, which are not used; a server that Ctrl-C ends at once."""

    def interrupted(self):
        raise KeyboardInterrupt

    def read_only(recipe, run_dir, stages=None, *, processes=None, config=None, quiet=False):
        launch.launch_options(["worker"], processes, config)
        # The leading process would be elsewhere: there are no results to show.
        return False

    monkeypatch.setattr(InspectorServer, "serve_forever", interrupted)
    monkeypatch.setattr(webbrowser, "open", lambda url: url.startswith("http://127.0.0.1:"))
    # Several processes have tests of their own: here, accelerate reads what it would be given.
    monkeypatch.setattr("forgetting.cli.run_commands.launch", read_only)
    monkeypatch.setattr(launch, "_num_accelerators", lambda: 16)
    for name, value in CLUSTER.items():
        monkeypatch.setenv(name, value)


SHELL_BLOCKS = blocks("sh")
# Scripts for a scheduler: their second line may give a name.
JOBS = {
    block: next(iter(re.findall(r"^# (\S+)$", block.text, re.MULTILINE)), "job.sbatch")
    for block in SHELL_BLOCKS
    if block.text.startswith("#!")
}


@pytest.fixture(scope="module")
def desk(workplace):
    """The workplace, with the recipes and the scripts that pages speak of before they show them."""
    (workplace / "mine.yaml").write_text("extends: quickstart\n")
    (workplace / "compare.yaml").write_text("extends: forgetting\n")
    for block, name in JOBS.items():
        (workplace / name).write_text(block.text)
    return workplace


@pytest.mark.parametrize("block", SHELL_BLOCKS, ids=str)
def test_a_block_runs(block, shell, desk):
    text = f"sbatch {JOBS[block]}" if block in JOBS else block.text
    done = shell.run(text, desk)
    assert done.returncode == 0, done.stderr
    if re.search(r"^forgetting run mine\.yaml\s*(#.*)?$", text, re.MULTILINE):
        assert (desk / "runs" / "mine" / "report" / "index.html").is_file()


@pytest.mark.parametrize("text", ["forgetting run mine.yaml --nope", "forgetting walk", "nothing"])
def test_a_block_that_is_wrong_fails(text, shell, desk):
    assert shell.run(f"true\n{text}\necho done", desk).returncode != 0


OPTIONS = {
    name: {text for option in command.params for text in (*option.opts, *option.secondary_opts)}
    for name, command in typer.main.get_command(app).commands.items()
}
# Ours, those of the noise benchmark, and those of `accelerate launch`, which a page may mention.
ALL_OPTIONS = set(launch_command_parser()._option_string_actions).union(*OPTIONS.values())
ALL_OPTIONS |= set(build_parser()._option_string_actions)


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_commands_and_options_that_a_page_mentions_exist(page):
    for span in code_spans(page):
        program, *rest = span.split()
        options = {word for word in (program, *rest) if re.fullmatch(r"--[a-z_-]+", word)}
        if program == "forgetting" and rest and not rest[0].startswith("--"):
            assert options <= OPTIONS[rest[0]] | {"--help"}, span
        elif program.startswith("--"):
            assert options <= ALL_OPTIONS, span
        elif program == "make":
            read_make(rest)


FIELD = re.compile(rf"({'|'.join(Recipe.model_fields)})\.([a-z_.]+)(?:[:=] ?(\S+))?")


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_fields_that_a_page_mentions_exist(page):
    schema = Recipe.model_json_schema()
    for span in code_spans(page):
        match = FIELD.fullmatch(span)
        if match is None:
            continue
        section, path, value = match.groups()
        if value is None and section == "forgetting" and is_importable(span):
            continue
        if value is not None:
            # A recipe whose variants read every section.
            load_recipe("arena", [f"{section}.{path}={value}"])
            continue
        node = schema["properties"][section]
        for name in path.split("."):
            node = fields_of(node, schema["$defs"])[name]


def fields_of(node, sections):
    """The fields of a section, also of one that may be null."""
    arms = [arm for arm in node.get("anyOf", [node]) if "$ref" in arm]
    return sections[arms[0]["$ref"].rsplit("/", 1)[1]]["properties"]


def is_importable(name):
    """Whether it is a module, or something in one."""
    module, _, attribute = name.rpartition(".")
    try:
        return find_spec(name) is not None or hasattr(import_module(module), attribute)
    except ModuleNotFoundError:
        return False
