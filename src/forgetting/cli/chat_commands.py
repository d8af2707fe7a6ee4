"""`chat`: a model of a run answers what is typed, or each line of a pipe."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from forgetting.cli.groups import RESULTS, app
from forgetting.cli.inspect_commands import not_a_run
from forgetting.cli.options import JsonOption
from forgetting.console import setup_logging
from forgetting.errors import InputError
from forgetting.escaping import visible

if TYPE_CHECKING:
    from forgetting.chatting import Chat

NEW, LEAVE = "/new", "/exit"
out = Console()


@app.command(
    rich_help_panel=RESULTS, epilog="Example: forgetting chat runs/mine --variant weighted"
)
def chat(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")],
    variant: Annotated[
        str | None,
        typer.Option(
            "--variant",
            help="Variant that answers, or `base`. Default: the one that the report recommends.",
        ),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens",
            min=1,
            help="Maximum number of tokens of an answer. Default: evaluation.answer_tokens.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Talk to a model of a run. From a pipe, every line is a prompt of its own."""
    setup_logging(as_json)
    if not run_dir.is_dir():
        raise InputError(not_a_run(run_dir))
    from forgetting.chatting import open_chat

    model = open_chat(run_dir, variant, max_new_tokens=max_tokens)
    try:
        if sys.stdin.isatty() and not as_json:
            _talk(model)
        else:
            _answer_lines(model, as_json)
    except UnicodeDecodeError as error:
        raise InputError("the prompt is not UTF-8. Convert it, and ask again") from error


def _answer_lines(model: Chat, as_json: bool) -> None:
    for line in sys.stdin:
        if not (prompt := line.strip()):
            continue
        answer = model.answer([{"role": "user", "content": prompt}])
        if as_json:
            entry = {"variant": model.variant, "prompt": prompt, "answer": answer}
            answer = json.dumps(entry, ensure_ascii=False)
        elif sys.stdout.isatty():
            answer = visible(answer)
        typer.echo(answer)


def _talk(model: Chat) -> None:
    out.print(
        f"{model.variant} answers. {NEW} begins a new conversation, {LEAVE} or Ctrl-D ends.",
        markup=False,
        highlight=False,
    )
    turns: list[dict[str, str]] = []
    while True:
        try:
            prompt = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            out.print()
            return
        if prompt == LEAVE:
            return
        if prompt == NEW:
            turns = []
            continue
        if not prompt:
            continue
        try:
            answer = model.answer([*turns, {"role": "user", "content": prompt}])
        except InputError as error:
            out.print(str(error), style="red", markup=False, highlight=False)
            continue
        turns += [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": answer},
        ]
        # A terminal would obey the control characters of an answer.
        out.print(visible(answer), markup=False, highlight=False)
