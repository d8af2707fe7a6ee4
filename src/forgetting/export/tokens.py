"""The corpus with its selection, as `ForgettingTrainer` and other trainers read it.

Goes in: a run directory in which a variant is selected. Comes out: tables with a row for each
sample of D_train, in its order, in the schema of `COLUMNS`. Memory is bounded by a shard of the
scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from forgetting.method import MEASURES, QualityName
from forgetting.method.columns import POSTERIOR
from forgetting.rundir.findings import has_findings
from forgetting.rundir.samples import Samples
from forgetting.rundir.scores import LOG_PROBS, ScoredCorpus
from forgetting.rundir.selection import TOKENS, selected_parts
from forgetting.training.dataset import trainer_columns

COLUMNS = {
    "sample_id": "number of the sample, as in the run",
    "source": "the data set that it comes from",
    "prompt": "text before the first response token, special tokens included",
    "completion": "text from the first response token on; of several turns, all that follow",
    "input_ids": "token ids of the whole sample",
    "labels": "the token where it is to be predicted, -100 elsewhere",
    "completion_mask": "1 where a token is to be predicted, 0 elsewhere",
    "polarity": "+1 learn, -1 forget, 0 ignore",
    "token_weights": "weight of the token in the mean of its polarity: 1, or 0 where it is ignored",
    "quality": "by the measure of the selection; higher is better",
    "base_log_probs": "log-probability under the base model, in nats",
    "reference_log_probs": "log-probability under the reference model, in nats",
    "posterior": "the detector's probability that the token is bad",
    "noise": "1 where the token is known to be noise",
    "noise_kind": "the kind of noise of the sample; empty where there is none",
}
"""What each column holds. Those from `labels` on, the last apart, have one value for each token of
`input_ids`, zero (in `labels` -100) outside the responses."""
NOISE = ("noise", "noise_kind")
SCORES = (*LOG_PROBS, POSTERIOR)
"""Columns of scores, of which a run has those that its recipe needs."""


def stored_scores(run: Path) -> list[str]:
    """The columns among `SCORES` that a run has."""
    found = ScoredCorpus(run).column_names
    return [name for name in SCORES if name in found or (name == POSTERIOR and has_findings(run))]


def token_tables(
    run: Path,
    variant: str,
    quality: QualityName,
    decode: Callable[[Sequence[int]], str],
    columns: Sequence[str] = tuple(COLUMNS),
) -> Iterator[pa.Table]:
    """D_train with what a variant selected, a table for each shard of the scores.

    Args:
        quality: the measure.
        decode: text of token ids, special tokens included.
        columns: among `COLUMNS`; those of noise only where it is known for every sample, and those
            of `SCORES` only if `stored_scores` names them.

    Raises:
        InputError: as `selected_parts`.
    """
    measure = MEASURES[quality]
    own = [name for name in SCORES if name in columns]
    scores = tuple(dict.fromkeys((*own, *measure.columns)))
    stored = ["sample_id", "source", *TOKENS, *(name for name in NOISE if name in columns)]
    for part in selected_parts(run, variant, scores, stored):
        samples, polarity = part.samples, part.polarity
        texts = [_texts(samples, row, decode) for row in range(len(samples))]
        values = measure.compute(*(part.scores[name] for name in measure.columns))
        found = {
            **trainer_columns(samples, polarity),
            **{name: samples.aligned(part.scores[name]) for name in own},
            "sample_id": samples.table["sample_id"],
            "source": samples.table["source"],
            "prompt": pa.array([prompt for prompt, _ in texts], pa.string()),
            "completion": pa.array([completion for _, completion in texts], pa.string()),
            "completion_mask": samples.aligned(np.ones(polarity.size, np.int8)),
            "token_weights": samples.aligned((polarity != 0).astype(np.float32)),
            "quality": samples.aligned(values.astype(np.float32, copy=False)),
        }
        if "noise" in columns:
            flags = samples.noise()
            assert flags is not None
            found["noise"] = samples.aligned(flags.astype(np.int8))
            found["noise_kind"] = samples.table["noise_kind"].fill_null("")
        yield pa.table({name: found[name] for name in columns})


def _texts(samples: Samples, row: int, decode: Callable[[Sequence[int]], str]) -> tuple[str, str]:
    """Of a sample: what comes before its first response token, and the rest."""
    tokens = slice(samples.token_starts[row], samples.token_starts[row + 1])
    ids = samples.input_ids[tokens].tolist()
    begin = int(np.argmax(samples.is_response[tokens]))
    prompt, whole = decode(ids[:begin]), decode(ids)
    # Some tokenizers leave out the space before a text's first token, which is one within it.
    return prompt, whole[len(prompt) :] if whole.startswith(prompt) else decode(ids[begin:])
