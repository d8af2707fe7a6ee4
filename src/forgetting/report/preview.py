"""Shows the result of `prepare` in a terminal: counts for each source, and samples with labels.

Input: a run directory and the tokenizer. Output: tables and texts for rich. Learned tokens are
marked with brackets as well as colors, for terminals without color.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from forgetting.escaping import visible
from forgetting.inspector.pieces import piece_spans
from forgetting.rundir import layout
from forgetting.rundir.samples import Samples
from forgetting.rundir.stats import DataSummary

STYLES = {"prompt": "cyan", "response": "green", "special": "bold magenta"}
LEGEND = Text.assemble(
    ("prompt", STYLES["prompt"]),
    ", ⟦",
    ("response: has a loss", STYLES["response"]),
    "⟧, ‹",
    ("special token", STYLES["special"]),
    "›",
)


def source_table(run_dir: Path) -> Table:
    """What happened to the records of each source."""
    sources = DataSummary.load(layout.data_dir(run_dir)).sources
    table = Table(header_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("source", overflow="fold")
    columns = ("samples", "tokens", "response", "cut", "read", "rejected", "duplicates", "too long")
    for name in columns:
        table.add_column(name, justify="right")
    for source in sources:
        counts = (
            source.used,
            source.tokens,
            source.response_tokens,
            source.cut,
            source.read,
            sum(source.rejected.values()),
            source.duplicates + source.near_duplicates,
            source.prompt_too_long,
        )
        table.add_row(escape(visible(source.name)), *(f"{count:,}" for count in counts))
    return table


def rejection_lines(run_dir: Path) -> Iterator[Text]:
    """Why records were rejected: one line per source and reason."""
    for source in DataSummary.load(layout.data_dir(run_dir)).sources:
        for reason, count in sorted(source.rejected.items()):
            yield Text(visible(f"{source.name}: {count:,} rejected, {reason}"))


def label_lines(run_dir: Path) -> Iterator[Text]:
    """What the data says about its responses: one line per source and count."""
    for source in DataSummary.load(layout.data_dir(run_dir)).sources:
        counts = (
            (source.weightless_turns, "response", "of weight 0, context only"),
            (source.weighted_tokens, "response token", "with another weight than 1"),
            (source.negatives, "sample", "to forget"),
        )
        for count, noun, what in counts:
            if count:
                yield Text(visible(f"{source.name}: {count:,} {noun}{'s' * (count != 1)} {what}"))


def unused_key_lines(run_dir: Path) -> Iterator[Text]:
    """The keys of records and turns that nothing read: one line per source and key."""
    for source in DataSummary.load(layout.data_dir(run_dir)).sources:
        keys = sorted(source.unused_keys.items(), key=lambda item: (-item[1].count, item[0]))
        for path, key in keys:
            times = f"{key.count:,} time" + "s" * (key.count != 1)
            yield Text(visible(f"{source.name}: {path} not used, {times}, such as {key.example}"))


def sample_texts(
    run_dir: Path, tokenizer: PreTrainedTokenizerBase, number: int, seed: int
) -> Iterator[Text]:
    """A heading and a text for each of `number` random samples of D_train."""
    samples = Samples.read(layout.train_file(run_dir))
    special_ids = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    special_ids.update(tokenizer.all_special_ids)

    def decode(ids: Any) -> str:
        return str(
            tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        )

    drawn = np.random.default_rng(seed).permutation(len(samples))[:number]
    is_negative = samples.is_negative.tolist()
    for index in np.sort(drawn).tolist():
        begin, end = samples.token_starts[index], samples.token_starts[index + 1]
        ids = samples.input_ids[begin:end].tolist()
        is_response = samples.is_response[begin:end].tolist()
        source = samples.table["source"][index].as_py()
        heading = (
            f"sample {samples.sample_ids[index]} from {visible(source)}: {len(ids)} tokens, "
            f"{sum(is_response)} response tokens{', to forget' * is_negative[index]}"
        )
        yield Text(heading, style="bold")
        yield _marked(ids, is_response, special_ids, decode)


def _marked(ids: list[int], is_response: list[bool], special_ids: set[int], decode: Any) -> Text:
    text = Text()
    inside = False
    for start, _, piece in piece_spans(ids, decode):
        if is_response[start] != inside:
            text.append("⟧" if inside else "⟦")
            inside = not inside
        if ids[start] in special_ids:
            text.append("‹")
            text.append(visible(piece), STYLES["special"])
            text.append("›")
        else:
            text.append(visible(piece), STYLES["response" if inside else "prompt"])
    if inside:
        text.append("⟧")
    return text
