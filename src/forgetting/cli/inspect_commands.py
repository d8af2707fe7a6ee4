"""`inspect`: the tokens of a run or of a data file, in a browser or a terminal."""

from __future__ import annotations

import contextlib
import webbrowser
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from forgetting.cli.groups import RESULTS, app
from forgetting.console import setup_logging
from forgetting.errors import InputError, did_you_mean

out = Console()


@app.command(rich_help_panel=RESULTS, epilog="Example: forgetting inspect runs/mine")
def inspect(
    target: Annotated[
        str, typer.Argument(metavar="RUN|DATA", help="Run directory, audit, or a data file.")
    ],
    model: Annotated[
        str | None, typer.Option("--model", help="Base model that scores DATA: a folder or Hub id.")
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference", help="Reference model. Default: none, and quality is `base_loss`."
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Read only the first N records of DATA.")
    ] = None,
    run_dir: Annotated[
        Path | None,
        typer.Option("--run-dir", help="Folder for DATA's scores. Default: runs/inspect-NAME."),
    ] = None,
    variant: Annotated[
        str | None,
        typer.Option(
            "--variant", help="Variant whose selection is shown. Default: forgetting, or the first."
        ),
    ] = None,
    terminal: Annotated[
        bool, typer.Option("--terminal", help="Show the samples here instead of in a browser.")
    ] = False,
    port: Annotated[
        int | None,
        typer.Option(
            "--port",
            min=0,
            max=65535,
            help="Port of the page; 0 picks a free one. Default: the same for the same run, if it "
            "is free.",
        ),
    ] = None,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")
    ] = True,
) -> None:
    """Browse tokens and their quality in a local, read-only page."""
    setup_logging()
    path = Path(target)
    if model is None and not path.is_dir():
        raise InputError(not_a_run(path))
    if model is None and reference is not None:
        raise InputError("--reference is compared with a base model. Pass --model as well")
    from forgetting.auditing.browsing import browse_folder, is_audit
    from forgetting.inspecting import open_run, score_data
    from forgetting.inspector import InspectorServer, show_in_terminal, usual_port

    if model is not None:
        path = score_data(target, model, reference, limit=limit, run_dir=run_dir)
    if variant is None and is_audit(path):
        inspection = browse_folder(path)
    else:
        inspection = open_run(path, variant)
    if terminal:
        show_in_terminal(inspection, out)
        return
    if port is None:
        port = usual_port(inspection.run.fingerprint)
    with InspectorServer(inspection, port) as server:
        out.print("Inspector:", server.url, style="bold", soft_wrap=True, highlight=False)
        out.print("The page is read-only and served to this machine only. Press Ctrl-C to stop.")
        if browser:
            webbrowser.open(server.url)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


def not_a_run(path: Path) -> str:
    """Why a path cannot be inspected, and what to do."""
    if path.is_file():
        return f"{path} is a data file. Pass the model that scores it with --model"
    folders = [str(folder) for folder in path.parent.glob("*") if folder.is_dir()]
    hint = did_you_mean(str(path), folders)
    return f"there is no run directory {path}. {hint or 'Pass a run directory or a data file'}"
