"""`export`: a run's corpus or one of its models, as a folder or on the Hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from forgetting.cli.groups import RESULTS, app
from forgetting.cli.options import JsonOption, QuietOption
from forgetting.console import print_path, setup_logging

out = Console(emoji=False)


@app.command(rich_help_panel=RESULTS, epilog="Example: forgetting export runs/mine --what clean")
def export(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")],
    what: Annotated[
        Literal["data", "clean", "model", "adapter"],
        typer.Option(
            "--what",
            help="data: the corpus with polarity, token weights and quality, for a trainer. "
            "clean: the conversations without the worst samples, which go to removed.jsonl. "
            "model: full weights, with the adapter merged. adapter: the adapter alone.",
        ),
    ] = "data",
    variant: Annotated[
        str | None,
        typer.Option("--variant", help="Variant to export. Default: forgetting, or the first."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", help="Output folder. Default: exports/RECIPE-VARIANT-WHAT."),
    ] = None,
    format: Annotated[
        Literal["parquet", "jsonl"] | None,
        typer.Option(
            "--format", help="File format of a corpus. Default: parquet; jsonl for clean."
        ),
    ] = None,
    drop_worst: Annotated[
        float | None,
        typer.Option(
            "--drop-worst",
            metavar="SHARE",
            help="Share of samples that `clean` drops. Default: 0.1.",
        ),
    ] = None,
    by: Annotated[
        Literal["quality", "negatives"] | None,
        typer.Option(
            "--by",
            help="How `clean` ranks samples. quality (default): by mean quality. negatives: by "
            "the share of negative tokens.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
    push_to_hub: Annotated[
        str | None,
        typer.Option(
            "--push-to-hub",
            metavar="REPO",
            help="Push the export to this Hub repository, which is private unless --public is set.",
        ),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Make the Hub repository public.")
    ] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Export a run's corpus or a trained model, with its card, to a folder or the Hub."""
    setup_logging(quiet or as_json)
    from forgetting.export import export_run

    try:
        result = export_run(
            run_dir,
            what,
            variant=variant,
            output=output,
            format=format,
            drop_worst=drop_worst,
            by=by,
            force=force,
            push_to_hub=push_to_hub,
            public=public,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt("Nothing was written.") from None
    if as_json:
        typer.echo(json.dumps({"output": str(result.path), "url": result.url}))
        return
    out.print(result.sentence, soft_wrap=True, markup=False, highlight=False)
    print_path("Output folder:", result.path)
    if result.url is not None:
        print_path("On the Hub:   ", result.url)
    out.print("Load it with")
    for line in result.loading:
        out.print(f"    {line}", soft_wrap=True, markup=False, highlight=False)
