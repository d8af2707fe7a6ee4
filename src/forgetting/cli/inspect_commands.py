"""`inspect`: the tokens of a run or of a data file, in a browser or a terminal."""

from __future__ import annotations

import contextlib
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from forgetting.cli.groups import RESULTS, app
from forgetting.cli.options import (
    ColumnsOption,
    EscapedOption,
    FieldOption,
    LimitOption,
    QualityOption,
    source_options,
)
from forgetting.console import setup_logging
from forgetting.errors import InputError, did_you_mean

out = Console(emoji=False)


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
            "--reference",
            help="Reference model, so that the measure is `influence` instead of `base_loss`.",
        ),
    ] = None,
    limit: LimitOption = None,
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
    field: FieldOption = None,
    columns: ColumnsOption = None,
    escaped: EscapedOption = False,
    quality: QualityOption = None,
    terminal: Annotated[
        bool, typer.Option("--terminal", help="Show the samples here instead of in a browser.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the worst samples as JSON.")
    ] = False,
    samples: Annotated[
        int | None,
        typer.Option(
            "--samples",
            min=1,
            help="Samples to print with --json, or --terminal in a file or pipe. Default: 10.",
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            metavar="NAME=VALUE",
            help="Print only samples of this kind, source or text, such as kind=repetition "
            "(repeatable).",
        ),
    ] = None,
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
    setup_logging(as_json)
    path = Path(target)
    if model is None and not path.is_dir():
        raise InputError(not_a_run(path))
    if model is None and reference is not None:
        raise InputError("--reference is compared with a base model. Pass --model as well")
    for name, value in (("--field", field), ("--columns", columns), ("--escaped", escaped)):
        if model is None and value:
            raise InputError(f"{name} is for a data file. Pass the model that scores it: --model")
    if model is not None and variant is not None:
        raise InputError("--variant is for a run directory. A data file has none: remove it")
    for name, is_given in (("--samples", samples is not None), ("--filter", bool(only))):
        if is_given and not terminal and not as_json:
            raise InputError(f"{name} is for --terminal and --json. The page has its own filters")
    chosen = _chosen(only or ())
    reading = source_options(field, columns, escaped)
    from forgetting.auditing.browsing import browse_folder, is_audit
    from forgetting.inspecting import open_run, score_data
    from forgetting.inspector import Filters, InspectorServer, show_in_terminal, usual_port
    from forgetting.inspector import as_json as printed

    if model is not None:
        path = score_data(
            target, model, reference, quality=quality, limit=limit, run_dir=run_dir, **reading
        )
    if variant is None and is_audit(path):
        inspection = browse_folder(path, quality)
    else:
        inspection = open_run(path, variant, quality)
    filters, number = Filters(**chosen), samples or 10
    if as_json:
        typer.echo(printed(inspection, filters, number, by_quality=quality is not None))
        return
    if terminal:
        show_in_terminal(inspection, out, filters, number, by_quality=quality is not None)
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


def _chosen(given: Sequence[str]) -> dict[str, str]:
    """What samples are filtered by, from `--filter`."""
    chosen = {}
    for each in given:
        name, equals, value = each.partition("=")
        if name not in ("kind", "source", "text") or not equals:
            raise InputError(f"--filter {each}: pass kind=VALUE, source=VALUE or text=VALUE")
        chosen[name] = value
    return chosen


def not_a_run(path: Path) -> str:
    """Why a path cannot be inspected, and what to do."""
    if path.is_file():
        return f"{path} is a data file. Pass the model that scores it with --model"
    folders = [str(folder) for folder in path.parent.glob("*") if folder.is_dir()]
    hint = did_you_mean(str(path), folders)
    return f"there is no run directory {path}. {hint or 'Pass a run directory or a data file'}"
