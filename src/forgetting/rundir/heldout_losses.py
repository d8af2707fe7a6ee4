"""What the models of a run make of each held-out response token, one file a model.

`write_heldout` writes what `evaluate` measured. `read_heldout_losses` and `read_heldout_hits` sum
it for each sample with weights that may come later, such as those of the detector.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from forgetting.errors import InputError
from forgetting.rundir import layout
from forgetting.rundir.samples import ResponseWriter, Samples, list_column, read_table

COLUMNS = {"log_probs": pa.float32(), "is_greedy": pa.bool_()}


def write_heldout(
    folder: Path,
    samples: Samples,
    log_probs: NDArray[np.floating],
    is_greedy: NDArray[np.bool_],
) -> Path:
    """Write what was measured into the folder of a variant's evaluation; returns the file.

    Args:
        samples: the held-out samples.
        log_probs: log-probability of each response token, shape (response tokens,).
        is_greedy: whether it is the most likely one, same shape.
    """
    file = layout.heldout_file(folder)
    with ResponseWriter(file, samples.fingerprint, COLUMNS) as writer:
        writer.write_group(
            samples.sample_ids, samples.response_starts, log_probs, is_greedy.astype(bool)
        )
    return file


def read_heldout_losses(
    folder: Path, samples: Samples, weights: NDArray[np.floating]
) -> NDArray[np.float64] | None:
    """Sum over the response tokens of each sample of weight times loss, shape (samples,).

    Args:
        folder: of a variant's evaluation.
        samples: the held-out samples.
        weights: of the response tokens, shape (response tokens,).

    Returns:
        In nats; None if the model was not measured on held-out samples.

    Raises:
        InputError: the file is damaged, or belongs to other tokens.
    """
    log_probs = _read(folder, samples, "log_probs")
    if log_probs is None:
        return None
    # A model that diverged has values that are not finite.
    with np.errstate(invalid="ignore"):
        return sums_of_samples(samples, -log_probs.astype(np.float64) * weights)


def read_heldout_hits(
    folder: Path, samples: Samples, weights: NDArray[np.floating]
) -> NDArray[np.float64] | None:
    """Sum of the weights of the response tokens that greedy decoding gives, shape (samples,);
    arguments, None and errors as for `read_heldout_losses`."""
    is_greedy = _read(folder, samples, "is_greedy")
    return None if is_greedy is None else sums_of_samples(samples, is_greedy * weights)


def _read(folder: Path, samples: Samples, column: str) -> NDArray | None:
    """A column, shape (response tokens,); None if the model was not measured."""
    file = layout.heldout_file(folder)
    if not file.is_file():
        return None
    values, starts = list_column(read_table(file, samples.fingerprint), column)
    if not np.array_equal(starts, samples.response_starts):
        raise InputError(
            f"{file} does not hold one value for each response token. Evaluate again with "
            "`forgetting evaluate`"
        )
    return values


def sums_of_samples(samples: Samples, values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Sums of values of response tokens, shape (samples,)."""
    # Not differences of a running sum, in which a value that is not finite would spoil the rest.
    places = samples.per_response_token(np.arange(len(samples)))
    sums = np.zeros(len(samples))
    np.add.at(sums, places, values)
    return sums
