"""Real noise (`forgetting spans`): do quality measures find the spans that people marked as wrong?

In: a JSON file of responses with marked spans, a base model, and optionally a reference model. Out:
AUROC and average precision of every measure that can be computed, with standard errors over
samples. The scores come from an ordinary run directory.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from forgetting.config import ModelSettings, Recipe, load_recipe
from forgetting.errors import InputError, TooFewSamples
from forgetting.method.metrics import mean_and_deviation
from forgetting.models.gguf import with_folder
from forgetting.models.loading import load_config, max_positions
from forgetting.pipeline import run as run_stages
from forgetting.rundir import layout
from forgetting.rundir.samples import Samples
from forgetting.rundir.storage import write_atomically
from forgetting.studies.detection import (
    ALL_KINDS,
    DetectionScore,
    detect_noise,
    measures,
    read_qualities,
)
from forgetting.studies.execute import open_study
from forgetting.studies.markup import NO_VALUE, as_latex, as_markdown

NAME = "spans"
NUM_PARTS = 10
"""Number of disjoint parts of the samples that the standard error is computed over."""
DEFAULT_MAX_LENGTH = 2048
RESPONSES = ("response", "completion", "output")
PROMPTS = ("prompt", "instruction", "question", "user_query")


@dataclass(frozen=True)
class SpanResults:
    """How well the measures find the marked spans."""

    num_samples: int
    num_tokens: int
    num_noisy: int
    """Tokens in marked spans."""
    num_left_out: int
    """Records that people marked as wrong without saying where."""
    found: Mapping[str, DetectionScore]
    """Scores by measure."""
    errors: Mapping[str, DetectionScore]
    """Standard errors by measure."""


def measure_spans(
    file: Path,
    model: str,
    output: Path,
    *,
    reference: str | None = None,
    train_share: float | None = None,
    overrides: Sequence[str] = (),
) -> SpanResults:
    """Measure how well marked spans are found, and write the results.

    Args:
        file: JSON list or JSON Lines. A record has a prompt, a response, and the marked spans in
            `char_spans` or `noise_spans`: [start, end) characters of the response, empty if it is
            right. A record with `hallucination: yes` and `raw_spans` that were not located is
            skipped, because it is not known which of its tokens are right.
        model: the base model, a folder or Hub id.
        output: output folder. Finished work in it is not repeated.
        reference: the reference model. Without one, only measures of the base are computed.
        train_share: train a reference model on this share of the samples, and measure the rest.
        overrides: `section.field=value` of the recipe, for example of `training`.

    Raises:
        InputError: the file or a model cannot be used, or no span is marked.
    """
    if reference is not None and train_share is not None:
        raise InputError(
            "pass either a reference model or the share of FILE to train one on, not both"
        )
    if train_share is not None and not 0 < train_share < 1:
        raise InputError(
            f"the share of FILE to train on must be between 0 and 1, got {train_share}"
        )
    records, num_left_out = read_marked(file)
    open_study(output, NAME)
    data = output / "records.jsonl"
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    write_atomically(data, "".join(f"{line}\n" for line in lines))
    path = _score(data, len(records), model, output, reference, train_share, overrides)
    has_reference = reference is not None or train_share is not None
    results = _measure(path, num_left_out, has_reference)
    title = f"Marked spans of {file.name}, {model}"
    header, rows = texts(results)
    for name, text in (
        ("results.md", f"# {title}\n\n{as_markdown(header, rows, 1)}\n\n{legend(results)}\n"),
        ("results.csv", to_csv(results)),
        ("results.json", to_json(results)),
        ("results.tex", as_latex(header, rows, 1, f"{title}. {legend(results)}")),
    ):
        write_atomically(output / name, text)
    return results


def read_marked(file: Path) -> tuple[list[dict[str, Any]], int]:
    """Read records with `prompt`, `completion` and `noise_spans`. Also returns how many were
    skipped because the wrong part was not located.

    Raises:
        InputError: the file cannot be read, or a record lacks a field. The message names it.
    """
    records = []
    num_left_out = 0
    for number, raw in enumerate(_read(file), 1):
        where = f"{file}, record {number}"
        if not isinstance(raw, dict):
            raise InputError(f"{where}: expected fields, got {type(raw).__name__}")
        spans: Any = raw.get("char_spans", raw.get("noise_spans"))
        prompt, response = (_first(raw, names, where) for names in (PROMPTS, RESPONSES))
        try:
            located = [[int(start), int(end)] for start, end in spans]
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{where}: `char_spans` (or `noise_spans`) is not a list of [start, end]"
            ) from error
        is_wrong = str(raw.get("hallucination", "no")).lower() == "yes"
        asked = raw.get("raw_spans")
        num_asked = len(asked) if isinstance(asked, list) else int(is_wrong)
        if is_wrong and len(located) < max(num_asked, 1):
            num_left_out += 1
            continue
        records.append({"prompt": prompt, "completion": response, "noise_spans": located})
    if not any(record["noise_spans"] for record in records):
        raise InputError(f"{file}: none of its {len(records)} usable records has a marked span")
    return records, num_left_out


def _read(file: Path) -> list[Any]:
    try:
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        given = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(given, list):
        raise InputError(f"{file} does not hold a list of records")
    return given


def _first(raw: Mapping[str, Any], names: Sequence[str], where: str) -> str:
    for name in names:
        if isinstance(raw.get(name), str):
            return raw[name]
    raise InputError(f"{where} has no text in {' or '.join(f'`{name}`' for name in names)}")


# The detector is a measure like the others.
SCORED = ("prepare", "reference", "score", "probe", "detect")


def _score(
    data: Path,
    num_records: int,
    model: str,
    output: Path,
    reference: str | None,
    train_share: float | None,
    overrides: Sequence[str],
) -> Path:
    """Score the records under both models. Returns the run directory."""
    while True:
        recipe = _recipe(data, num_records, model, reference, train_share, output, overrides)
        try:
            return run_stages(recipe, output / "run", stages=SCORED)
        except TooFewSamples as error:
            # Duplicates are dropped, and prompts that leave no room for a response.
            if not 1 < error.num_usable < num_records:
                raise
            num_records = error.num_usable


def _recipe(
    data: Path,
    num_records: int,
    model: str,
    reference: str | None,
    train_share: float | None,
    output: Path,
    overrides: Sequence[str],
) -> Recipe:
    base = with_folder(ModelSettings(name_or_path=model))
    positions = max_positions(load_config(base)) or DEFAULT_MAX_LENGTH
    num_reference = max(1, round((train_share or 0) * num_records)) if train_share else 0
    has_reference = reference is not None or train_share is not None
    recipe = {
        "name": NAME,
        "model": {"name_or_path": _resolved(model)},
        "data": {
            "sources": [{"path": str(data.resolve()), "name": "marked"}],
            "num_reference": num_reference,
            "num_train": num_records - num_reference,
            "num_heldout": 0,
            "max_length": min(DEFAULT_MAX_LENGTH, positions),
        },
        "reference": {"name_or_path": reference and _resolved(reference)},
        "variants": {
            name: {"objective": "ignoring", "selection": {"quality": name}}
            for name in measures(has_reference)
        },
    }
    file = output / "recipe.yaml"
    write_atomically(file, yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))
    return load_recipe(file, overrides)


def _resolved(name: str) -> str:
    return str(Path(name).resolve()) if Path(name).exists() else name


def _measure(run: Path, num_left_out: int, has_reference: bool) -> SpanResults:
    samples = Samples.read(layout.train_file(run))
    noisy = samples.noise()
    assert noisy is not None
    if not noisy.any():
        raise InputError(
            "no marked span is within the part of a sample that fits the model's context"
        )
    qualities = read_qualities(run, measures(has_reference))
    part_of = samples.per_response_token(np.arange(len(samples)) % NUM_PARTS)
    errors = _standard_errors(qualities, noisy, part_of)
    return SpanResults(
        num_samples=len(samples),
        num_tokens=noisy.size,
        num_noisy=int(noisy.sum()),
        num_left_out=num_left_out,
        found={name: of[ALL_KINDS] for name, of in detect_noise(qualities, noisy).items()},
        errors=errors,
    )


def _standard_errors(
    qualities: Mapping[str, NDArray], noisy: NDArray[np.bool_], part_of: NDArray[np.int64]
) -> dict[str, DetectionScore]:
    """Standard errors from the spread over disjoint parts. Tokens of one response are not
    independent, but tokens of different parts are."""
    parts = [
        detect_noise({name: quality[part_of == part] for name, quality in qualities.items()}, own)
        for part in range(NUM_PARTS)
        if (own := noisy[part_of == part]).any() and not own.all()
    ]

    def error(values: Iterator[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        deviation = mean_and_deviation(known)[1] if known else None
        return None if deviation is None else deviation / math.sqrt(len(known))

    return {
        name: DetectionScore(
            auroc=error(part[name][ALL_KINDS].auroc for part in parts),
            average_precision=error(part[name][ALL_KINDS].average_precision for part in parts),
        )
        for name in qualities
    }


def texts(results: SpanResults) -> tuple[list[str], list[list[str]]]:
    """Header and rows as text."""
    rows = []
    for name, found in results.found.items():
        errors = results.errors[name]
        rows.append(
            [
                name,
                _text(found.auroc, errors.auroc),
                _text(found.average_precision, errors.average_precision),
            ]
        )
    return ["measure", "AUROC", "average precision"], rows


def _text(value: float | None, error: float | None) -> str:
    if value is None:
        return NO_VALUE
    return f"{value:.3f}" + ("" if error is None else f" ± {error:.3f}")


def legend(results: SpanResults) -> str:
    """What was measured, and what chance would give."""
    share = results.num_noisy / results.num_tokens
    return (
        f"{results.num_noisy:,} of {results.num_tokens:,} response tokens of "
        f"{results.num_samples:,} samples are marked. Chance is AUROC 0.5 and average precision "
        f"{share:.3f}. ± is the standard error over samples. {results.num_left_out} records were "
        "skipped: they are marked as wrong, but the wrong part was not located."
    )


def to_csv(results: SpanResults) -> str:
    """One line per measure and metric."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["measure", "figure", "value", "stderr"])
    for name, found in results.found.items():
        for figure, value in found.model_dump().items():
            error = getattr(results.errors[name], figure)
            writer.writerow([name, figure, _blank(value), _blank(error)])
    return text.getvalue()


def to_json(results: SpanResults) -> str:
    """All results."""
    document = {
        "num_samples": results.num_samples,
        "num_tokens": results.num_tokens,
        "num_noisy": results.num_noisy,
        "num_left_out": results.num_left_out,
        "measures": {
            name: {"value": found.model_dump(), "stderr": results.errors[name].model_dump()}
            for name, found in results.found.items()
        },
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def _blank(value: float | None) -> float | str:
    return "" if value is None else value
