"""The corpus with its selection, in the form that `ForgettingTrainer` and other trainers read.

Input: a run directory with a selection, or with the detector's posterior as weights and what a
model expects in the place of bad tokens. Output: tables
with one row per sample of D_train, in order, with the columns of `COLUMNS`. Memory is bounded by
one shard of scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from forgetting.config.variants import CAUTION
from forgetting.method import MEASURES
from forgetting.method.columns import POSTERIOR
from forgetting.method.measures import cautious_weights
from forgetting.rundir import layout
from forgetting.rundir.findings import has_findings
from forgetting.rundir.samples import SampleFile, Samples
from forgetting.rundir.scores import LOG_PROBS, ScoredCorpus
from forgetting.rundir.selections import WEIGHED, own_scores, selected_parts
from forgetting.training.dataset import correct_shard, trainer_columns

COLUMNS = {
    "sample_id": "number of the sample in the run",
    "source": "data set of the sample",
    "prompt": "text before the first response token, with special tokens",
    "completion": "text from the first response token on",
    "input_ids": "token ids of the whole sample",
    "labels": "token id where the token is predicted, else -100",
    "completion_mask": "1 where the token is predicted, else 0",
    "polarity": "+1 learn, -1 forget, 0 ignore",
    "token_weights": "weight in the mean of its polarity: that of its turn (1 unless the data "
    "sets it), or 0 if ignored; weighted variants: times (1 - c) / (1 - c + caution * c), where "
    "c is the posterior; corrected: times 1 - c, where c below 0.05 counts as 0",
    "alternative_weights": "weight of the cross-entropy to what is expected in its place",
    "alternative_ids": "list of the token ids expected in its place, empty without such a weight",
    "alternative_log_probs": "list of their log-probabilities and of that of all others, in nats",
    "quality": "quality by the selected measure; higher is better",
    "base_log_probs": "log-probability under the base model, in nats",
    "reference_log_probs": "log-probability under the reference model, in nats",
    "posterior": "the detector's probability that the token is bad",
    "noise": "1 if the token is known noise",
    "noise_kind": "kind of noise of the sample, or empty",
}
"""Content of each column. The columns from `labels` to `noise` have one value per token of
`input_ids`. Outside the responses it is 0, in `labels` -100."""
NOISE = ("noise", "noise_kind")
ALTERNATIVES = ("alternative_weights", "alternative_ids", "alternative_log_probs")
"""Columns that only variants with `objective: corrected` have."""
UNCORRECTED = tuple(name for name in COLUMNS if name not in ALTERNATIVES)
SCORES = (*LOG_PROBS, POSTERIOR)
"""Columns of scores, of which a run has those that its recipe needs."""


def stored_scores(run: Path, variant: str | None) -> list[str]:
    """The columns among `SCORES` that a run has, or a variant has for itself."""
    found = ScoredCorpus(run, own=own_scores(run, variant)).column_names
    return [name for name in SCORES if name in found or (name == POSTERIOR and has_findings(run))]


def token_tables(
    run: Path,
    variant: str | None,
    quality: str,
    decode: Callable[[Sequence[int]], str],
    columns: Sequence[str] = UNCORRECTED,
    caution: float = CAUTION,
) -> Iterator[pa.Table]:
    """D_train with a variant's selection or with weights, one table per shard of scores.

    Args:
        variant: whose selection. None: that of a weighted or corrected variant, whose tokens also
            weigh what the detector gives them.
        quality: name of the measure.
        decode: text of token ids, special tokens included.
        columns: names in `COLUMNS`. With those of `ALTERNATIVES`, the variant is a corrected one
            whose detector found something. Those of `NOISE` need noise that is known for every
            sample. Those of `SCORES` must be in `stored_scores`.
        caution: of a weighted variant, see `cautious_weights`.

    Raises:
        InputError: see `selected_parts` and `correct_shard`.
    """
    is_corrected = not set(ALTERNATIVES).isdisjoint(columns)
    fingerprint = SampleFile(layout.train_file(run)).fingerprint
    measure = MEASURES[quality]
    own = [name for name in SCORES if name in columns]
    own += [POSTERIOR] * (variant is None)
    scores = tuple(dict.fromkeys((*own, *measure.columns)))
    stored = ["sample_id", "source", *WEIGHED, *(name for name in NOISE if name in columns)]
    parts = selected_parts(run, variant, scores, stored, fingerprint)
    for shard, part in enumerate(parts):
        samples, polarity = part.samples, part.polarity
        texts = [_texts(samples, row, decode) for row in range(len(samples))]
        values = measure.compute(*(part.scores[name] for name in measure.columns))
        weights = (polarity != 0) * samples.weights
        corrections = None
        if is_corrected:
            posterior = part.scores[POSTERIOR]
            of_tokens, corrections = correct_shard(run, fingerprint, shard, part, posterior)
            weights *= of_tokens
        elif variant is None:
            weights *= cautious_weights(part.scores[POSTERIOR], caution)
        found = {
            **trainer_columns(samples, polarity, corrections=corrections),
            **{name: samples.aligned(part.scores[name]) for name in own},
            "sample_id": samples.table["sample_id"],
            "source": samples.table["source"],
            "prompt": pa.array([prompt for prompt, _ in texts], pa.string()),
            "completion": pa.array([completion for _, completion in texts], pa.string()),
            "completion_mask": samples.aligned(np.ones(polarity.size, np.int8)),
            "token_weights": samples.aligned(weights),
            "quality": samples.aligned(values.astype(np.float32, copy=False)),
        }
        if "noise" in columns:
            flags = samples.noise()
            assert flags is not None
            found["noise"] = samples.aligned(flags.astype(np.int8))
            found["noise_kind"] = samples.table["noise_kind"].fill_null("")
        yield pa.table({name: found[name] for name in columns})


def _texts(samples: Samples, row: int, decode: Callable[[Sequence[int]], str]) -> tuple[str, str]:
    """Text of a sample before its first response token, and the rest."""
    tokens = slice(samples.token_starts[row], samples.token_starts[row + 1])
    ids = samples.input_ids[tokens].tolist()
    begin = int(np.argmax(samples.is_response[tokens]))
    prompt, whole = decode(ids[:begin]), decode(ids)
    # Some tokenizers drop a space at the start of a text, but not inside it.
    return prompt, whole[len(prompt) :] if whole.startswith(prompt) else decode(ids[begin:])
