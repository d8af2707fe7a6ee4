"""Says what an audit found, for people and for programs.

Input: an `Audit` and its flagged records. Output: lines and tables on standard output, or an
object for JSON. Writes no files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from forgetting.auditing.audit import Audit
from forgetting.auditing.flagged import END, NUM_WORST, FlaggedRecord, span_fields, words_of
from forgetting.auditing.suspicion import ASSUMED_SHARE, is_suspicion
from forgetting.console import print_path, print_table
from forgetting.escaping import visible
from forgetting.method.measures import DETECTOR, Measure
from forgetting.rundir.findings import KindFinding, ShareRange

SUSPECTED = (
    f"Suspicions only: if {ASSUMED_SHARE:.0%} of the tokens were bad, these would be the "
    "likeliest. Most may be fine, and `clean` drops none of them."
)
PLANTED = (
    "AUROC, precision and recall: measured on planted noise. Precision is the share of planted "
    "noise among the tokens marked as this kind, recall the share of its tokens that are marked."
)
NOT_MEASURED = "–: not measured, because too few tokens are planted or marked."
COUNTED = (
    "Bad tokens: the sum of the probabilities of being bad. Flagged records: those with a token "
    "that is bad with a probability of 1/2 or more."
)
ENDS = f"{END}: the response ends here, and that it does may be what is wrong."
LEAST = 0.05
"""Fewer bad tokens than these would be rounded to none."""
CONTEXT = 60
"""Characters that are shown before and after a bad span, and of a long one from both ends."""


def verdict_sentences(audit: Audit) -> list[str]:
    """The shares of bad tokens and records, and how far to trust them."""
    summary = audit.findings
    sentences = []
    if audit.num_judged < audit.num_usable:
        sentences.append(
            f"Judged so far: {audit.num_judged:,} of {audit.num_usable:,} records, a random part."
        )
    if summary.found and summary.tokens is not None and summary.samples is not None:
        sentences.append(
            f"About {_range(summary.tokens)} of the response tokens are bad. "
            f"{100 * summary.samples.share:.1f} % of the records hold one that is bad with a "
            "probability of 1/2 or more."
        )
    else:
        sentences.append(summary.verdict)
    report = summary.report
    if report is not None:
        sentences.append(
            f"Of noise that was planted into {summary.num_copies:,} copies of your records, "
            f"{_percent(report.recall)} of the tokens were found"
            + ("." if report.precision is None else f" (precision {_percent(report.precision)}).")
        )
    sentences.append(f"Judged by {audit.model_name}. A larger model finds more: pass --model.")
    for source in audit.data.sources:
        if rejected := sum(source.rejected.values()):
            reasons = ", ".join(f"{reason}: {n}" for reason, n in source.rejected.items())
            one = rejected == 1
            were = (
                f"{'record' if one else 'records'} could not be used and {'was' if one else 'were'}"
            )
            sentences.append(f"{rejected:,} {were} not judged: {reasons}.")
        if repeated := source.duplicates + source.near_duplicates:
            sentences.append(f"{repeated:,} records repeat another one.")
    return sentences


def print_verdict(
    audit: Audit, found: Sequence[FlaggedRecord], measure: Measure | None = None
) -> None:
    """Print the verdict, the tables, the worst records, and where the files are.

    Args:
        measure: the one that ranks the records; None: the detector ranks them.
    """
    out = Console(emoji=False)
    for sentence in verdict_sentences(audit):
        out.print(sentence, markup=False, highlight=False)
    kinds = audit.findings.kinds
    if kinds:
        header = ["kind of noise", "AUROC", "precision", "recall"]
        rows = [_kind_row(kind) for kind in kinds]
        if audit.findings.found:
            header.append("share of your tokens")
            rows = [
                [*row, _percent_or_none(kind.share)] for row, kind in zip(rows, kinds, strict=True)
            ]
        print_table(header, rows, 1)
        if audit.findings.report is not None:
            _explain(out, PLANTED)
            if any(None in (kind.auroc, kind.precision, kind.recall) for kind in kinds):
                _explain(out, NOT_MEASURED)
    header = ["source", "records", "tokens", "bad tokens (estimate)", "flagged records"]
    sources = [
        [
            visible(source.source),
            f"{source.num_samples:,}",
            f"{source.num_tokens:,}",
            f"{source.num_bad_tokens:,.0f}",
            f"{source.num_bad_samples:,}",
        ]
        for source in audit.findings.by_source
    ]
    print_table(header, sources, 1)
    _explain(out, COUNTED)
    if measure is not None:
        ranked = f"Lowest mean {measure.name} ({measure.formula}) first."
        out.print(ranked, style="bold", markup=False, highlight=False)
    elif found and is_suspicion(audit):
        out.print(SUSPECTED, style="bold", markup=False, highlight=False)
    word = "suspected" if is_suspicion(audit) else "bad"
    for rank, each in enumerate(found[:NUM_WORST], 1):
        if each.mean_quality is None:
            number = each.num_bad_tokens
            about = f"about {number:.{0 if number >= 9.5 else 1}f}"
            if number < LEAST:
                about = "fewer than 0.1"
            judged = f"{about} of {each.num_tokens} tokens {word}, {each.kind}"
        else:
            judged = f"{each.mean_quality:+.2f} over {each.num_tokens} tokens"
        head = visible(f"{rank}. {each.place}: {judged}")
        out.print(head, style="bold", markup=False, highlight=False)
        out.print(f"   {snippet(each)}", markup=False, highlight=False)
    if any(each.worst.end > len(each.text_of(each.worst)) for each in found[:NUM_WORST]):
        _explain(out, ENDS)
    if found:
        out.print()
    print_path("Page:", audit.page)
    listed = "Suspected records:" if is_suspicion(audit) else "Flagged records:"
    print_path(listed if measure is None else "Ranked records:", audit.flagged_jsonl)
    print_path("All scores:", audit.scores)


def _explain(out: Console, sentence: str) -> None:
    out.print(sentence, style="dim", markup=False, highlight=False)


def as_json(
    audit: Audit, found: Sequence[FlaggedRecord], measure: Measure | None = None
) -> dict[str, Any]:
    """The verdict for programs. The arguments are those of `print_verdict`."""
    summary, words = audit.findings, words_of(audit)
    return {
        "found": summary.found,
        "verdict": summary.verdict,
        "model": audit.model_name,
        "num_judged": audit.num_judged,
        "num_usable": audit.num_usable,
        "bad_tokens": _share(summary.tokens if summary.found else None),
        "bad_records": _share(summary.samples if summary.found else None),
        "ranked_by": DETECTOR if measure is None else measure.name,
        "num_flagged": sum(each.is_flagged for each in found) if measure is None else None,
        "flagged_at_share": ASSUMED_SHARE if measure is None and is_suspicion(audit) else None,
        "kinds": [
            {
                "kind": kind.words,
                "auroc_planted": kind.auroc,
                "precision_planted": kind.precision,
                "recall_planted": kind.recall,
                "share": kind.share if summary.found else None,
            }
            for kind in summary.kinds
        ],
        "sources": [
            {
                "source": each.source,
                "num_records": each.num_samples,
                "num_tokens": each.num_tokens,
                "num_bad_tokens": each.num_bad_tokens,
                "num_bad_records": each.num_bad_samples,
            }
            for each in summary.by_source
        ],
        "rejected": {each.name: each.rejected for each in audit.data.sources},
        "worst": [
            {
                "file": each.record.file,
                "line": each.record.line,
                "row": each.record.record,
                "num_bad_tokens": each.num_bad_tokens,
                "mean_quality": each.mean_quality,
                "kind": each.kind,
                "spans": list(span_fields(each.spans, each.record, words)),
            }
            for each in found[:NUM_WORST]
        ],
        "files": {
            "page": str(audit.page),
            "flagged": str(audit.flagged_jsonl),
            "scores": str(audit.scores),
        },
    }


def snippet(each: FlaggedRecord) -> str:
    """One line of text around the worst span, which is in brackets."""
    span = each.worst
    text = each.text_of(span)
    before, inside, after = text[: span.start], text[span.start : span.end], text[span.end :]
    if span.end > len(text):
        inside += END
    if len(inside) > 4 * CONTEXT:
        inside = f"{inside[: 2 * CONTEXT]} … {inside[-2 * CONTEXT :]}"
    start = f"…{before[-CONTEXT:]}" if len(before) > CONTEXT else before
    end = f"{after[:CONTEXT]}…" if len(after) > CONTEXT else after
    return visible(" ".join(f"{start}[{inside}]{end}".split()))


def _kind_row(kind: KindFinding) -> list[str]:
    return [
        kind.words,
        "–" if kind.auroc is None else f"{kind.auroc:.2f}",
        *map(_percent_or_none, (kind.precision, kind.recall)),
    ]


def _share(found: ShareRange | None) -> dict[str, float] | None:
    if found is None:
        return None
    return {"share": found.share, "low": found.low, "high": found.high}


def _range(found: ShareRange) -> str:
    return (
        f"{_percent(found.share)} (90 % interval: {_percent(found.low)} to {_percent(found.high)})"
    )


def _percent_or_none(share: float | None) -> str:
    return "–" if share is None else _percent(share)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
