"""Samples are found, ordered and cut up as they are on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from forgetting.errors import InputError
from forgetting.escaping import visible
from forgetting.inspector.colors import Scale
from forgetting.inspector.corpus import Inspection
from forgetting.inspector.opening import open_inspection
from forgetting.inspector.overview import whole
from forgetting.inspector.queries import Query
from forgetting.rundir import layout
from tests.written_run import change_selection, replace_samples

Decode = Callable[..., str]


@pytest.fixture
def inspection(run_dir: Path, decode: Decode) -> Inspection:
    return opened(run_dir, decode)


def opened(run_dir: Path, decode: Decode) -> Inspection:
    inspection = open_inspection(run_dir, decode)
    assert inspection is not None
    return inspection


def rows_of(run_dir: Path) -> list[dict]:
    """D_train with scores and polarity, joined by hand."""
    train = pq.read_table(run_dir / "data/train.parquet").to_pylist()
    shards = sorted((run_dir / "scores").iterdir())
    scores = [row for shard in shards for row in pq.read_table(shard).to_pylist()]
    polarity = pq.read_table(run_dir / "selection/forgetting/polarity.parquet").to_pylist()
    return [a | b | c for a, b, c in zip(train, scores, polarity, strict=True)]


def quality_of(row: dict) -> np.ndarray:
    base, reference = (np.float32(row[f"{name}_log_probs"]) for name in ("base", "reference"))
    return reference - base


def test_a_sample_shows_what_is_on_disk(
    run_dir: Path, inspection: Inspection, decode: Decode
) -> None:
    rows = rows_of(run_dir)
    everything = np.sort(np.concatenate([quality_of(row) for row in rows]))
    for place, row in enumerate(rows):
        sample = inspection.sample(place, 4096)
        labels = [label for label in row["labels"] if label != -100]
        assert (sample["id"], sample["ids"]) == (row["sample_id"], labels)
        assert sample["polarity"] == row["polarity"]
        assert np.allclose(sample["base"], np.exp(row["base_log_probs"]), rtol=1e-5)
        assert np.allclose(sample["reference"], np.exp(row["reference_log_probs"]), rtol=1e-5)
        assert np.float32(sample["quality"]).tolist() == quality_of(row).tolist()
        assert sample["rank"] == [1 + int((everything < q).sum()) for q in quality_of(row)]
        assert (sample["noise"] or [0] * len(labels)) == list(row["noise"])
        assert sample["num_noisy"] == sum(row["noise"])
        prompt, pieces = sample["blocks"]
        assert prompt == "Question: what?\n"
        text = "".join(piece for piece, _ in pieces)
        assert text == decode(labels).replace("\u202e", "⟨U+202E⟩")
        assert [piece for piece, length in pieces if length > 1] == ["ï", "日", "本", "🙂"]
        assert sum(length for _, length in pieces) == len(labels)


def test_turns_of_a_conversation_alternate(run_dir: Path, decode: Decode) -> None:
    rows = pq.read_table(layout.train_file(run_dir)).to_pylist()
    for row in rows:
        row["input_ids"] = [*row["input_ids"][:-1], *b" And? ", row["input_ids"][-1]]
        row["labels"] = [*row["labels"][:-1], *[-100] * 6, row["labels"][-1]]
    replace_samples(run_dir, rows)
    first, _, second, last = opened(run_dir, decode).sample(0, 4096)["blocks"]
    assert (first, second, last) == ("Question: what?\n", " And? ", [["<|end|>", 1]])


def test_long_samples_are_cut_and_counted(inspection: Inspection) -> None:
    whole, cut = inspection.sample(0, 4096), inspection.sample(0, 4)
    assert len(cut["ids"]) == sum(length for _, length in cut["blocks"][-1]) == 4
    assert cut["num_left_out"] == whole["num_tokens"] - 4
    assert {k: cut[k] for k in ("mean", "num_tokens")} == {
        k: whole[k] for k in ("mean", "num_tokens")
    }


@pytest.mark.parametrize("rho", [None, 0.4, 0.7, 0.95])
def test_negatives_are_counted_at_any_rho(
    run_dir: Path, inspection: Inspection, rho: float | None
) -> None:
    rows = rows_of(run_dir)
    everything = np.concatenate([quality_of(row) for row in rows])
    wanted = [sum(sign < 0 for sign in row["polarity"]) for row in rows]
    if rho is not None:
        num_positive = int(np.floor(rho * len(everything) + 0.5))
        threshold = np.sort(everything)[len(everything) - num_positive]
        wanted = [int((quality_of(row) < threshold).sum()) for row in rows]
    assert inspection.num_negative(rho).tolist() == wanted


def test_end_tokens_are_negative_at_no_rho(run_dir: Path, decode: Decode) -> None:
    end = pq.read_table(layout.train_file(run_dir))["labels"][0].as_py()[-1]
    change_selection(run_dir, end_token_ids=[end])
    inspection = opened(run_dir, decode)
    negative = inspection.num_negative(0.005)
    assert (negative < inspection.lengths).all()
    assert negative.sum() > 0.9 * (inspection.lengths.sum() - len(inspection))


def test_the_list_shows_an_answer_without_its_end_token(run_dir: Path, decode: Decode) -> None:
    (ids,) = pq.read_table(layout.train_file(run_dir))["labels"][:1].to_pylist()
    answer = [label for label in ids if label != -100]
    assert len(answer) > 1
    for ends, shown in (([], answer), ([answer[-1]], answer[:-1])):
        change_selection(run_dir, end_token_ids=ends)
        preview = opened(run_dir, decode).summary(0, 0)["preview"]
        assert preview == visible(" ".join(decode(shown).split()))


def test_whole_samples_share_their_fate_where_they_were_chosen_whole(
    run_dir: Path, decode: Decode
) -> None:
    change_selection(run_dir, granularity="sequence")
    inspection = opened(run_dir, decode)
    share = inspection.num_negative(0.75) / inspection.lengths
    assert sorted(set(share.tolist())) == [0.0, 1.0]
    assert share.sum() == 20
    assert inspection.mean_quality[share == 1].max() < inspection.mean_quality[share == 0].min()


def test_samples_are_ordered_by_their_mean(run_dir: Path, inspection: Inspection) -> None:
    means = [quality_of(row).mean(dtype=np.float64) for row in rows_of(run_dir)]
    assert np.allclose(inspection.mean_quality, means)
    order = np.argsort(means, kind="stable").tolist()
    assert inspection.find(Query(sort="worst"))[0].tolist() == order
    assert inspection.find(Query(sort="best"))[0].tolist() == order[::-1]
    assert inspection.find(Query(sort="position"))[0].tolist() == list(range(80))


def test_filters_hold_together(run_dir: Path, inspection: Inspection) -> None:
    rows = rows_of(run_dir)
    source = inspection.source_names.index("addition")
    query = Query(source=source, text="SEVEN", min_negative=0.3, sort="position")
    wanted = [
        place
        for place, row in enumerate(rows)
        if row["source"] == "addition"
        and 256 + 4 in row["input_ids"]
        and np.mean(np.array(row["polarity"]) < 0) >= 0.3
    ]
    found, num_searched = inspection.find(query)
    assert 0 < len(wanted) < 27
    assert (found.tolist(), num_searched) == (wanted, 80)


def test_a_page_is_a_part_of_the_list(inspection: Inspection) -> None:
    whole = inspection.page(Query(limit=100))
    assert (whole["total"], len(whole["rows"])) == (80, 80)
    assert inspection.page(Query(offset=70, limit=20))["rows"] == whole["rows"][70:]
    assert inspection.page(Query(offset=80))["rows"] == []


def test_own_precision_and_recall_are_those_of_the_polarity(
    run_dir: Path, inspection: Inspection
) -> None:
    rows = rows_of(run_dir)
    noisy = np.concatenate([row["noise"] for row in rows]) > 0
    dropped = np.concatenate([row["polarity"] for row in rows]) != 1
    noise = whole(inspection)["noise"]
    assert noise["own"] == [dropped.sum(), (dropped & noisy).sum()]
    assert (noise["num_noisy"], noise["num_known"]) == (noisy.sum(), len(noisy))


def test_noise_that_is_known_of_some_samples_is_counted_among_these(
    run_dir: Path, decode: Decode
) -> None:
    rows = pq.read_table(layout.train_file(run_dir)).to_pylist()
    for row in rows[1::2]:
        row["noise"] = None
    replace_samples(run_dir, rows)
    inspection = opened(run_dir, decode)
    noise = whole(inspection)["noise"]
    assert noise["num_known"] == sum(len(row["noise"]) for row in rows[::2])
    assert inspection.sample(1, 4096)["noise"] is None


def test_color_is_clipped_and_keeps_its_sign() -> None:
    scale = Scale(-1.0, 0.0, 4.0)
    shares = [scale.share(quality) for quality in (-9, -1, -0.25, 0, 1, 4, 9)]
    assert shares == [-1, -1, -0.5, 0, 0.5, 1, 1]
    assert Scale(0.0, 0.0, 1.0).share(-0.1) == -1


def test_an_unknown_variant_is_refused(run_dir: Path, decode: Decode) -> None:
    with pytest.raises(InputError, match=r"no selection of a variant full.*forgetting"):
        open_inspection(run_dir, decode, "full")
