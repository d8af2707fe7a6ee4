"""Shards of scores: read in order, or refused with the shard and the sample named."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from forgetting.errors import InputError
from forgetting.rundir import layout
from forgetting.rundir.findings import PosteriorWriter
from forgetting.rundir.samples import (
    SAMPLE_SCHEMA,
    Samples,
    list_column,
    lists,
    read_table,
    write_table,
)
from forgetting.rundir.scores import ScoredCorpus, join_scores, write_scores
from tests.conftest import all_scores, save_findings, save_scored_run

LOG_PROBS = ["base_log_probs", "reference_log_probs"]
NAMES = ["base_log_probs", "reference_log_probs", "base_entropy", "base_rank"]


@pytest.fixture
def run(tmp_path):
    """A run directory with 12 samples and two shards of scores."""
    random = np.random.default_rng(0)
    rows = []
    for index in range(12):
        ids = random.integers(3, 200, int(random.integers(3, 10))).tolist()
        labels = [-100, -100, *ids[2:]]
        rows.append({"sample_id": 100 + index, "input_ids": ids, "labels": labels})
    path = tmp_path / "run"
    for folder in ("data", "scores"):
        (path / folder).mkdir(parents=True)
    write_table(pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA), path / "data" / "train.parquet")
    samples = Samples.read(path / "data" / "train.parquet")
    for shard, (begin, end) in enumerate([(0, 7), (7, 12)]):
        part = Samples(samples.table.slice(begin, end - begin))
        files = {"base": [tmp_path / "base.parquet"], "reference": [tmp_path / "ref.parquet"]}
        for sign, (file,) in zip((-1, -2), files.values(), strict=True):
            columns = {
                "log_probs": sign * part.response_ids.astype(np.float32),
                "entropy": part.response_ids.astype(np.float32) / 10,
                "rank": part.response_ids,
            }
            write_scores(file, part, np.arange(len(part)), columns, samples.fingerprint)
        joined = join_scores(
            files,
            NAMES,
            part.sample_ids,
            layout.score_file(layout.scores_dir(path), shard, 2),
            samples.fingerprint,
        )
        assert joined == part.response_ids.size
    return path


def change(run, name, replace):
    """Rewrite a column of the second shard by `replace(values, starts)`."""
    file = layout.score_file(layout.scores_dir(run), 1, 2)
    table = read_table(file)
    values, starts = list_column(table, name)
    changed = replace(values.copy(), starts.copy())
    index = table.column_names.index(name)
    table = (
        table.remove_column(index)
        if changed is None
        else table.set_column(index, name, lists(*changed))
    )
    fingerprint = Samples.read(run / "data" / "train.parquet").fingerprint
    write_table(table, file, fingerprint)


def read_scores(run, names=LOG_PROBS):
    """Columns of all shards, one array each."""
    shards = list(ScoredCorpus(run).scores(names))
    return [np.concatenate([shard.columns[name] for shard in shards]) for name in names]


def test_what_was_written_is_read_in_order(run):
    samples = Samples.read(run / "data" / "train.parquet")
    base, reference, entropy, rank = read_scores(run, NAMES)
    assert base.tolist() == (-samples.response_ids).tolist()
    assert reference.tolist() == (-2 * samples.response_ids).tolist()
    assert entropy == pytest.approx(samples.response_ids / 10)
    assert rank.tolist() == samples.response_ids.tolist()
    assert [column.dtype.name for column in (base, entropy, rank)] == [
        "float32",
        "float32",
        "int32",
    ]


def test_what_is_asked_for_of_the_samples_comes_with_their_scores(run):
    shards = list(ScoredCorpus(run).scores(["base_rank"], ["input_ids", "sample_id"]))
    assert [shard.samples.column_names for shard in shards] == [["input_ids", "sample_id"]] * 2
    samples = Samples.read(run / "data" / "train.parquet")
    whole = pa.concat_tables(shard.samples for shard in shards)
    assert whole == samples.table.select(["input_ids", "sample_id"])
    lengths = np.concatenate([shard.lengths for shard in shards])
    assert lengths.tolist() == samples.num_response_tokens.tolist()


def test_a_column_that_was_not_asked_for_is_named(run):
    change(run, "base_entropy", lambda values, starts: None)
    read_scores(run)
    with pytest.raises(InputError, match=r"scores-00001-of-00002.parquet has no base_entropy"):
        read_scores(run, NAMES)


def test_a_value_too_few_names_shard_and_sample(run):
    def shorten(values, starts):
        starts[3:] -= 1
        return values[:-1], starts

    change(run, "reference_log_probs", shorten)
    with pytest.raises(InputError, match=r"scores-00001.*reference_log_probs of sample 109 has"):
        read_scores(run)


def test_the_posterior_is_one_of_the_columns(tmp_path):
    scored = save_scored_run(tmp_path / "run")
    base, posterior = read_scores(scored, ["base_log_probs", "posterior"])
    found = all_scores(scored)
    assert posterior.tolist() == found["posterior"].tolist()
    assert base.tolist() == found["base_log_probs"].tolist()


def test_a_posterior_of_other_tokens_is_refused(tmp_path):
    scored = save_scored_run(tmp_path / "run")
    save_findings(scored, found := all_scores(scored)["posterior"])
    file = layout.posterior_file(layout.detector_dir(scored))
    table = read_table(file)
    write_table(table, file, "another")
    with pytest.raises(InputError, match=r"posterior.parquet belongs to other tokens"):
        read_scores(scored, ["posterior"])
    fingerprint = Samples.read(layout.train_file(scored)).fingerprint
    _, starts = list_column(table, "posterior")
    starts[3:] -= 1
    with PosteriorWriter(file, fingerprint) as writer:
        ids = table["sample_id"].to_numpy()
        writer.write(ids, np.diff(starts), found[:-1], np.zeros(found.size - 1, np.int8))
    with pytest.raises(InputError, match="does not hold one posterior for each response token"):
        read_scores(scored, ["posterior"])


def test_a_shard_is_read_without_the_others(run):
    corpus = ScoredCorpus(run)
    whole = list(corpus.scores(NAMES, ["labels"]))
    layout.score_file(layout.scores_dir(run), 0, 2).write_bytes(b"")
    shard = corpus.shard(1, NAMES, ["labels"])
    assert shard.sample_ids.tolist() == whole[1].sample_ids.tolist()
    assert shard.samples.equals(whole[1].samples)
    for name in NAMES:
        assert np.array_equal(shard.columns[name], whole[1].columns[name])


def test_shards_of_other_samples_are_refused(run):
    first, second = (layout.score_file(layout.scores_dir(run), index, 2) for index in range(2))
    second.write_bytes(first.read_bytes())
    with pytest.raises(InputError, match=r"scores of 14 samples, and there are 12"):
        read_scores(run)


def test_no_scores_at_all_are_refused(run):
    for file in (run / "scores").iterdir():
        file.unlink()
    with pytest.raises(InputError, match="holds no scores"):
        read_scores(run)


def test_a_missing_shard_is_named(run):
    (run / "scores" / "scores-00001-of-00002.parquet").unlink()
    with pytest.raises(InputError, match=r"1 of 2 shards, without scores-00001-of-00002.parquet"):
        read_scores(run)


def test_scores_of_other_tokens_are_refused(run):
    table = pa.Table.from_pylist(
        read_table(run / "data" / "train.parquet").to_pylist()[::-1], schema=SAMPLE_SCHEMA
    )
    write_table(table, run / "data" / "train.parquet")
    with pytest.raises(InputError, match=r"scores-00000-of-00002.parquet belongs to other tokens"):
        read_scores(run)


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
@pytest.mark.parametrize("name", ["reference_log_probs", "base_entropy"])
def test_a_score_that_is_not_finite_names_shard_and_sample(run, name, bad):
    def spoil(values, starts):
        values[starts[2]] = bad
        return values, starts

    change(run, name, spoil)
    with pytest.raises(InputError, match=rf"scores-00001.*{name} of sample 109"):
        read_scores(run, NAMES)
