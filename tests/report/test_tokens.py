"""Which samples are shown, and that no character is broken or lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgetting.errors import InputError
from forgetting.report import tokens
from forgetting.report.collect import read_run
from forgetting.report.tokens import (
    LEVELS,
    NUM_BEST,
    NUM_RANDOM,
    NUM_WORST,
    TokenView,
    choose_samples,
    color_level,
    piece_spans,
    token_view,
)


def view_of(run_dir: Path, decode: Callable[..., str], seed: int = 0) -> TokenView:
    view = token_view(run_dir, read_run(run_dir).selections["forgetting"], decode, seed)
    assert view is not None
    return view


def decode_bytes(ids: list[int]) -> str:
    return bytes(ids).decode("utf-8", errors="replace")


@given(st.text())
def test_pieces_of_a_text_are_its_characters(text: str) -> None:
    spans = piece_spans(list(text.encode()), decode_bytes)
    # U+FFFD itself looks like a broken character, and is held together with its neighbour.
    if "\ufffd" not in text:
        assert [piece for _, _, piece in spans] == list(text)
    assert "".join(piece for _, _, piece in spans) == text


@given(st.binary())
def test_pieces_join_to_the_whole_whatever_the_bytes(data: bytes) -> None:
    spans = piece_spans(list(data), decode_bytes)
    assert "".join(piece for _, _, piece in spans) == decode_bytes(list(data))
    assert [start for start, _, _ in spans] == [0, *(stop for _, stop, _ in spans)][: len(spans)]
    assert sum(stop - start for start, stop, _ in spans) == len(data)


def test_leading_space_survives_a_decoder_that_drops_it_at_the_start() -> None:
    words = ["a", " b", " c"]
    spans = piece_spans([0, 1, 2, 1], lambda ids: "".join(words[i] for i in ids).lstrip(" "))
    assert [piece for _, _, piece in spans] == ["a", " b", " c", " b"]


def test_pieces_of_a_sample_join_to_its_decoded_text(
    run_dir: Path, decode: Callable[..., str]
) -> None:
    rows = {
        row["sample_id"]: row for row in pq.read_table(run_dir / "data/train.parquet").to_pylist()
    }
    samples = [sample for _, part in view_of(run_dir, decode).parts for sample in part]
    assert len(samples) == 40
    for sample in samples:
        context, response = sample.blocks
        labels = [label for label in rows[sample.sample_id]["labels"] if label != -100]
        assert "".join(piece.text for piece in response.pieces) == decode(labels)
        assert context.context == "Question: what?\n"
        shown = [token.token_id for piece in response.pieces for token in piece.tokens]
        assert shown == labels
        assert [p.text for p in response.pieces if len(p.tokens) > 1] == ["ï", "日", "本", "🙂"]


def test_turns_of_a_conversation_alternate(run_dir: Path, decode: Callable[..., str]) -> None:
    """Context between two responses is shown between them."""
    path = run_dir / "data" / "train.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    for row in rows:
        row["input_ids"] = [*row["input_ids"][:-1], *b" And? ", row["input_ids"][-1]]
        row["labels"] = [*row["labels"][:-1], *[-100] * 6, row["labels"][-1]]
    pq.write_table(table.from_pylist(rows, schema=table.schema), path)
    sample = view_of(run_dir, decode).parts[0][1][0]
    assert [block.context for block in sample.blocks] == ["Question: what?\n", "", " And? ", ""]
    assert [piece.text for piece in sample.blocks[3].pieces] == ["<|end|>"]


def test_long_samples_are_cut_and_counted(
    run_dir: Path, decode: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = view_of(run_dir, decode).parts[0][1][0]
    monkeypatch.setattr(tokens, "MAX_TOKENS_SHOWN", 4)
    cut = view_of(run_dir, decode).parts[0][1][0]
    shown = sum(len(piece.tokens) for piece in cut.blocks[-1].pieces)
    assert shown == 4
    total = sum(len(piece.tokens) for piece in whole.blocks[-1].pieces)
    assert cut.num_tokens_left_out == total - shown
    assert cut.mean_quality == whole.mean_quality


def test_worst_and_best_are_chosen_and_no_row_twice() -> None:
    mean_quality = np.random.default_rng(1).normal(size=100)
    worst, best, random = choose_samples(mean_quality, np.zeros(100, dtype=bool), 0).values()
    order = np.argsort(mean_quality)
    assert worst.tolist() == order[:NUM_WORST].tolist()
    assert best.tolist() == order[::-1][:NUM_BEST].tolist()
    assert len({*worst, *best, *random}) == NUM_WORST + NUM_BEST + NUM_RANDOM


@pytest.mark.parametrize(("share", "num_noisy"), [(0.5, 10), (0.03, 3), (1.0, 20), (0.0, 0)])
def test_half_of_the_random_samples_hold_noise(share: float, num_noisy: int) -> None:
    quality = np.arange(120, dtype=float)
    has_noise = np.zeros(120, dtype=bool)
    first = NUM_WORST  # by quality: the worst, the 100 to draw from, the best
    has_noise[first : first + round(share * 100)] = True
    random = list(choose_samples(quality, has_noise, 0).values())[2]
    assert has_noise[random].sum() == num_noisy
    assert len(random) == NUM_RANDOM


@given(st.lists(st.floats(-5, 5) | st.just(float("nan")), max_size=60), st.integers(0, 9))
def test_small_corpora_are_shown_whole(mean_quality: list[float], seed: int) -> None:
    quality = np.array(mean_quality)
    rows = np.concatenate(list(choose_samples(quality, quality < 0, seed).values()))
    assert len(set(rows.tolist())) == len(rows) == min(int(np.isfinite(quality).sum()), 40)


def test_seed_chooses_the_random_samples_and_nothing_else(
    run_dir: Path, decode: Callable[..., str]
) -> None:
    one, other = view_of(run_dir, decode, 0), view_of(run_dir, decode, 1)
    assert one.parts[:2] == other.parts[:2]
    assert one.parts[2] != other.parts[2]


def test_color_is_clipped_and_keeps_its_sign() -> None:
    levels = [color_level(quality, -1.0, 4.0) for quality in (-9, -1, -0.5, 0, 2, 4, 9)]
    assert levels == [-LEVELS, -LEVELS, -LEVELS // 2, 0, LEVELS // 2, LEVELS, LEVELS]
    assert color_level(-0.1, 0.0, 1.0) == -LEVELS


def test_scores_of_another_corpus_are_refused(run_dir: Path, decode: Callable[..., str]) -> None:
    first, second = sorted((run_dir / "scores").iterdir())
    table = pq.read_table(first)
    pq.write_table(table.slice(1, 39), first)
    with pytest.raises(InputError, match="different samples"):
        view_of(run_dir, decode)
    pq.write_table(table, second)
    pq.write_table(table, first)
    with pytest.raises(InputError, match="different samples"):
        view_of(run_dir, decode)
