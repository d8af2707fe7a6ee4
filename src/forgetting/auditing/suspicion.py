"""What looks worst in a corpus in which nothing was found.

Input: an `Audit` whose detector found nothing worth acting on, although it finds planted noise.
Output: the posterior of each token if 1 % of the tokens were bad. It orders the records for people
who want to look at them; nothing is dropped because of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from forgetting.auditing.audit import Audit
from forgetting.console import progress
from forgetting.method.shares import posteriors
from forgetting.rundir.findings import PosteriorPart, posterior_parts
from forgetting.rundir.scores import ScoredCorpus
from forgetting.stages.corpus_detection import WeighedCorpus, fitted_detector
from forgetting.stages.corpus_features import segment_ends

ASSUMED_SHARE = 0.01


def is_suspicion(audit: Audit) -> bool:
    """Whether records can only be suspected: planted noise is found, and no clear sign of other."""
    return not audit.findings.found and audit.findings.report is not None


def suspected_parts(audit: Audit) -> Iterator[PosteriorPart]:
    """As `posterior_parts`, as if `ASSUMED_SHARE` of the tokens were bad; one part a shard.

    Raises:
        InputError: the scores are missing or damaged.
    """
    report = audit.findings.report
    assert report is not None
    corpus = ScoredCorpus(audit.run, audit.fingerprint)
    ends = segment_ends(audit.recipe.model)
    detector = fitted_detector(audit.recipe, audit.run, audit.fingerprint, ends)
    if not detector.kinds:
        yield from posterior_parts(audit.run, audit.fingerprint, corpus.shard_sizes)
        return
    with TemporaryDirectory() as scratch:
        with progress("Weighing tokens", corpus.num_samples) as advance:
            file = Path(scratch) / "evidence.bin"
            weighed = WeighedCorpus(audit.recipe, corpus, detector, file, advance, ends)
        for samples, evidence in weighed.parts():
            yield PosteriorPart(
                weighed.sample_ids[samples],
                weighed.lengths[samples],
                at_share(evidence.log_odds, report.share_planted, ASSUMED_SHARE),
                evidence.kind_probs.argmax(1).astype(np.int8),
            )


def at_share(log_odds: NDArray, before: float, after: float) -> NDArray[np.float32]:
    """Probabilities where the share of bad tokens is another one; shape (tokens,).

    Args:
        log_odds: of being bad at the share `before`, shape (tokens,).
        before: share of bad tokens that the log-odds are for, above 0 and below 1.
        after: share of bad tokens, above 0 and below 1.
    """
    # Bad tokens of any kind are the only kind.
    odds, shares = np.array([before / (1 - before)]), np.array([after])
    found = posteriors(log_odds, np.ones((len(log_odds), 1)), odds, shares)
    return found[:, 0].astype(np.float32)
