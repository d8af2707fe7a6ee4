"""What an audit found, record by record.

Input: an `Audit`. Output: a `JudgedRecord` for each record, in the order of the run: the detector's
numbers for each token, where the token is in the record's text, and the spans that are probably
bad. In memory is one shard of the scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from forgetting.auditing.audit import BAD, Audit
from forgetting.auditing.suspicion import is_suspicion, suspected_parts
from forgetting.data.alignment import Tokenization, TokenPlace
from forgetting.data.stored import as_record
from forgetting.errors import InputError
from forgetting.method.measures import Measure
from forgetting.models.tokenization import check_tokenizer, load_tokenization
from forgetting.rundir.findings import posterior_parts
from forgetting.rundir.scores import ScoredCorpus
from forgetting.rundir.train_records import AGAIN, TrainRecord, train_records

LOG_PROBS = "base_log_probs"


@dataclass(frozen=True)
class BadSpan:
    """Consecutive tokens of a response that are probably bad."""

    message: int
    """Place of the response among the messages of the record."""
    start: int
    end: int
    """Not included. The character after the last one is the end of the response."""
    posterior: float
    """The highest probability of being bad among its tokens."""
    num_bad_tokens: float
    """Sum of the probabilities."""
    kind: str
    """Name of the likely kind of noise."""


@dataclass(frozen=True)
class JudgedRecord:
    """A record, and what the detector says about its response tokens; arrays have shape (response
    tokens,)."""

    record: TrainRecord
    posterior: NDArray[np.float32]
    """Probability of being bad."""
    kind_of_token: NDArray[np.int8]
    """Place in `kinds` of the kind that a token is if it is bad, or -1."""
    log_probs: NDArray[np.float32]
    """Log-probability under the model, in nats."""
    places: Sequence[TokenPlace]
    """The characters of each token."""
    kinds: Sequence[str]
    """Names of the kinds of noise."""
    quality: NDArray | None = None
    """By the measure that was asked for; None: none was."""

    @property
    def num_bad_tokens(self) -> float:
        """Expected number of bad tokens."""
        return float(self.posterior.sum(dtype=np.float64))

    @property
    def highest(self) -> float:
        """The highest probability of being bad among its tokens."""
        return float(self.posterior.max(initial=0))

    @property
    def is_flagged(self) -> bool:
        """Whether a token is bad with a probability of at least 1/2."""
        return self.highest >= BAD

    @property
    def kind(self) -> str:
        """Name of the kind that most bad tokens are expected to be; empty if none is bad."""
        return self._kind_of(slice(0, len(self.posterior)))

    @cached_property
    def spans(self) -> list[BadSpan]:
        """Tokens with a probability of at least 1/2, consecutive ones of a response in one span."""
        return self.spans_from(BAD)

    def spans_from(self, least: float) -> list[BadSpan]:
        """As `spans`, for another probability."""
        bad = np.r_[False, self.posterior >= least, False]
        edges = set(np.flatnonzero(np.diff(bad)).tolist())
        messages = [place.message for place in self.places]
        edges |= {i for i in range(1, len(messages)) if messages[i] != messages[i - 1]}
        found = []
        for begin, end in pairwise(sorted({0, len(self.posterior), *edges})):
            if begin < end and bad[begin + 1]:
                found.append(self._span(slice(begin, end)))
        return found

    @property
    def likeliest_spans(self) -> list[BadSpan]:
        """The spans of a record in which no token reaches 1/2: those of at least half its highest
        probability. None if it has no token."""
        return self.spans_from(self.highest / 2) if self.highest else []

    @property
    def mean_quality(self) -> float:
        """Mean quality of the tokens, infinity without any."""
        assert self.quality is not None
        return float(np.mean(self.quality, dtype=np.float64)) if len(self.quality) else np.inf

    @property
    def worst_token(self) -> BadSpan:
        """The token with the lowest quality."""
        assert self.quality is not None
        place = int(np.argmin(self.quality))
        return self._span(slice(place, place + 1))

    def _span(self, tokens: slice) -> BadSpan:
        places = self.places[tokens]
        return BadSpan(
            places[0].message,
            min(place.start for place in places),
            max(place.end for place in places),
            float(self.posterior[tokens].max()),
            float(self.posterior[tokens].sum(dtype=np.float64)),
            self._kind_of(tokens),
        )

    def _kind_of(self, tokens: slice) -> str:
        kind, posterior = self.kind_of_token[tokens], self.posterior[tokens]
        known = kind >= 0
        if not posterior[known].any():
            return ""
        sums = np.bincount(kind[known], weights=posterior[known], minlength=len(self.kinds))
        return self.kinds[int(sums.argmax())]


def judged_records(
    audit: Audit, *, suspected: bool = False, measure: Measure | None = None
) -> Iterator[JudgedRecord]:
    """Every judged record, in the order of the run.

    Args:
        suspected: if nothing was found, take the numbers of `suspicion` instead of zeros.
        measure: for the quality of the tokens.

    Raises:
        InputError: a part of the audit is missing or damaged.
    """
    corpus = ScoredCorpus(audit.run, audit.fingerprint)
    sizes = corpus.shard_sizes
    check_tokenizer(audit.recipe, audit.run)
    tokenization = load_tokenization(audit.recipe, audit.data.date)
    kinds = [kind.kind for kind in audit.findings.kinds]
    if suspected and is_suspicion(audit):
        parts = suspected_parts(audit)
    else:
        parts = posterior_parts(audit.run, audit.fingerprint, sizes)
    columns = () if measure is None else measure.columns
    for shard, part, records in zip(
        corpus.scores(list(dict.fromkeys((LOG_PROBS, *columns)))),
        parts,
        train_records(audit.run, audit.fingerprint, sizes),
        strict=True,
    ):
        quality = None
        if measure is not None:
            quality = measure.compute(*(shard.columns[name] for name in columns))
        ends = np.cumsum(part.lengths)
        for record, begin, end in zip(
            records, (ends - part.lengths).tolist(), ends.tolist(), strict=True
        ):
            yield JudgedRecord(
                record,
                part.posterior[begin:end],
                part.kind[begin:end],
                shard.columns[LOG_PROBS][begin:end],
                _places(record, tokenization, end - begin),
                kinds,
                None if quality is None else quality[begin:end],
            )


def _places(record: TrainRecord, tokenization: Tokenization, number: int) -> list[TokenPlace]:
    """Where the response tokens of a record are. What was cut off has none."""
    places = tokenization.token_places(as_record(record))
    if len(places) < number:
        raise InputError(f"sample {record.sample_id} does not have {number} tokens. {AGAIN}")
    return places[:number]
