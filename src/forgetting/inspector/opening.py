"""Reads a run for the inspector.

Input: a run directory after `select` or `detect`, and a `decode`. Output: an `Inspection`. This is
the only module of the inspector that reads the run.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from forgetting.errors import InputError
from forgetting.inspector.corpus import Inspection
from forgetting.inspector.pieces import Decode
from forgetting.inspector.shown import Explain, Judgment, ShownSelection
from forgetting.method.columns import POSTERIOR
from forgetting.method.measures import DETECTOR, MEASURES, usable_measure
from forgetting.rundir import layout
from forgetting.rundir.findings import posterior_parts, require_lengths
from forgetting.rundir.reader import RunReader
from forgetting.rundir.samples import SAMPLE_SCHEMA, Samples
from forgetting.rundir.scores import LOG_PROBS, ScoredCorpus, has_scores
from forgetting.rundir.selections import selected_parts

LIKELY_BAD = 0.5
"""Posterior from which a token is negative if no variant selects."""


def open_inspection(
    run_dir: Path,
    decode: Decode,
    variant: str | None = None,
    explain: Explain | None = None,
    quality: str | None = None,
) -> Inspection | None:
    """Read a run for inspection.

    Args:
        run_dir: a run, at least up to `select` or `detect`.
        decode: text of token ids, special tokens included.
        variant: whose selection is shown; default: `forgetting`, or the first. If no variant
            selects, tokens are divided by the detector's posterior.
        explain: names the features that speak for a token being bad. Used if the detector found
            something.
        quality: measure that is shown. Default: the one that the variant selects by, or the
            detector's.

    Returns:
        None if nothing is scored yet, if it is neither selected from nor judged by the detector, or
        if D_train is empty.

    Raises:
        InputError: there is no run, no such variant or no such measure, or scores, selection or
            findings are damaged or belong to other tokens than those of D_train.
    """
    run = RunReader(run_dir)
    if variant is not None and variant not in run.selected_variants:
        known = ", ".join(run.selected_variants) or "none"
        raise InputError(f"{run_dir} has no selection of a variant {variant}. It has: {known}")
    variant = variant or run.preferred_variant
    if not has_scores(run_dir):
        return None
    made = None if variant is None else run.selection(variant)
    if made is None and run.findings is None:
        return None
    stored = ScoredCorpus(run_dir, run.fingerprint).column_names
    log_probs = [name for name in LOG_PROBS if name in stored]
    has_posterior = [] if run.findings is None else [POSTERIOR]
    if quality is not None:
        measure = usable_measure(quality, [*stored, *has_posterior], f"{run_dir}")
    else:
        measure = MEASURES[DETECTOR] if made is None else made.measure
    names = list(dict.fromkeys((*log_probs, *measure.columns)))
    parts = list(selected_parts(run_dir, variant, names, SAMPLE_SCHEMA.names, run.fingerprint))
    if not parts:
        return None
    samples = Samples(pa.concat_tables(part.samples.table for part in parts))
    judgment = _judgment(run, samples)
    columns = {name: np.concatenate([part.scores[name] for part in parts]) for name in names}
    polarity = np.concatenate([part.polarity for part in parts])
    if made is not None:
        selection = ShownSelection.of_variant(made)
    else:
        assert judgment is not None
        end_ids = [] if run.data is None else run.data.end_token_ids
        is_bad = (judgment.posterior >= LIKELY_BAD) & ~np.isin(samples.response_ids, end_ids)
        polarity = np.where(is_bad, -1, 1).astype(np.int8)
        share_good = float(1 - is_bad.mean()) if len(is_bad) else 1.0
        selection = ShownSelection.of_detector(share_good, end_ids)
    selection = replace(selection, quality=measure.name, measure=measure)
    values = measure.compute(*(columns[name] for name in measure.columns))
    columns = {name: columns[name] for name in log_probs}
    columns |= {"quality": values, "polarity": polarity}
    if judgment is None or not judgment.found:
        explain = None
    return Inspection(run.name, samples, selection, columns, decode, judgment, explain)


def _judgment(run: RunReader, samples: Samples) -> Judgment | None:
    """What the detector found in D_train; None if it has not run."""
    summary = run.findings
    if summary is None:
        return None
    parts = list(posterior_parts(run.path, run.fingerprint))
    lengths = np.concatenate([part.lengths for part in parts])
    file = layout.posterior_file(layout.detector_dir(run.path))
    require_lengths(file, lengths, samples.num_response_tokens)
    return Judgment(
        summary.found,
        summary.verdict,
        [kind.words for kind in summary.kinds],
        np.concatenate([part.posterior for part in parts]),
        np.concatenate([part.kind for part in parts]),
    )
