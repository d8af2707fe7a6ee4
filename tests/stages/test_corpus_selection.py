"""A corpus in shards is divided as one in memory is, and its summary is a count."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from forgetting.config import SelectionSettings
from forgetting.errors import InputError
from forgetting.method import MEASURES, select_tokens
from forgetting.rundir.samples import Samples, list_column, lists, read_table, write_table
from forgetting.rundir.scores import ScoredCorpus
from forgetting.stages.corpus_selection import select_corpus
from tests.conftest import EOS, all_scores, save_scored_run, write_shards


@pytest.fixture
def scored(tmp_path):
    return save_scored_run(tmp_path / "run")


def divided(run, *, end_token_ids=(), seed=0, **settings):
    """Polarity and summary of a selection."""
    output = run / "polarity.parquet"
    summary = select_corpus(
        ScoredCorpus(run),
        SelectionSettings(**settings),
        output,
        scratch=run / "quality.bin",
        seed=seed,
        end_token_ids=end_token_ids,
    )
    samples = Samples.read(run / "data" / "train.parquet")
    polarity, starts = list_column(read_table(output, samples.fingerprint), "polarity")
    assert np.array_equal(starts, samples.response_starts)
    return polarity, summary.model_dump()


def in_memory(run, **settings):
    """The polarity that `select_tokens` gives."""
    samples = Samples.read(run / "data" / "train.parquet")
    scores = all_scores(run)
    measure = MEASURES[settings.pop("quality", "influence")]
    if settings.pop("balance", "none") == "source":
        names = np.asarray(samples.table["source"].to_pylist())
        settings["groups"] = samples.per_response_token(np.unique(names, return_inverse=True)[1])
    return select_tokens(
        measure.compute(*(scores[column] for column in measure.columns)),
        sample_ids=samples.per_response_token(samples.sample_ids),
        **settings,
    )


@pytest.mark.parametrize("shards", [(12,), (7, 5), (1,) * 12, (0, 3, 9)])
@pytest.mark.parametrize(
    "settings",
    [
        {"rho": 0.7},
        {"rho": 0.4, "forget_rate": 0.2},
        {"rho": "auto"},
        {"rho": 0.5, "threshold": "zero"},
        {"rho": 0.5, "granularity": "sequence"},
        {"rho": 0.6, "balance": "source"},
        {"rho": 0.5, "balance": "source", "granularity": "sequence", "forget_rate": 0.3},
        *({"rho": 0.5, "quality": name} for name in MEASURES),
    ],
    ids=str,
)
def test_shards_are_divided_as_the_whole_is(tmp_path, shards, settings):
    run = save_scored_run(tmp_path / "run", shards)
    polarity, summary = divided(run, **settings)
    assert np.array_equal(polarity, in_memory(run, **settings))
    assert summary["quality"] == settings.get("quality", "influence")
    assert pq.read_metadata(run / "polarity.parquet").num_row_groups <= len(shards)


def test_random_choice_does_not_depend_on_shards(tmp_path):
    one, other = (save_scored_run(tmp_path / str(n), n * (12 // n,)) for n in (1, 4))
    for settings in ({}, {"granularity": "sequence"}, {"balance": "source"}):
        first, _ = divided(one, by="random", **settings)
        assert np.array_equal(first, divided(other, by="random", **settings)[0])
        assert not np.array_equal(first, divided(one, by="random", seed=1, **settings)[0])


def test_without_known_noise_nothing_can_be_taken_from_it(tmp_path):
    run = save_scored_run(tmp_path / "run", (6, 6))
    file = run / "data" / "train.parquet"
    table = pq.read_table(file)
    noise = table["noise"].to_pylist()
    place = table.column_names.index("noise")
    unknown = pa.array([None, *noise[1:]], table.schema.field("noise").type)
    pq.write_table(table.set_column(place, table.schema.field("noise"), unknown), file)
    with pytest.raises(InputError, match=r"1 samples of .* which of their tokens are noise"):
        divided(run, by="known")


def test_end_tokens_are_kept_only_where_asked(scored):
    samples = Samples.read(scored / "data" / "train.parquet")
    plain, _ = divided(scored, rho=0.3)
    kept, _ = divided(scored, rho=0.3, end_token_ids=[0, EOS])
    ends = samples.response_ids == EOS
    assert (plain[ends] < 0).any()
    assert (kept[ends] > 0).all()
    assert np.array_equal(kept[~ends], plain[~ends])


def test_balance_gives_every_source_its_share_and_threshold(scored):
    samples = Samples.read(scored / "data" / "train.parquet")
    scores = all_scores(scored)
    quality = scores["reference_log_probs"] - scores["base_log_probs"]
    polarity, summary = divided(scored, rho=0.6, balance="source")
    sources = samples.per_response_token(np.asarray(samples.table["source"].to_pylist()))
    assert summary["threshold"] is None
    for row in summary["by_source"]:
        inside = sources == row["source"]
        assert row["num_positive"] == np.floor(0.6 * inside.sum() + 0.5)
        assert row["threshold"] == quality[inside & (polarity > 0)].min()


def test_the_summary_names_the_most_extreme_samples(scored):
    samples = Samples.read(scored / "data" / "train.parquet")
    base = np.split(all_scores(scored)["base_log_probs"], samples.response_starts[1:-1])
    _, summary = divided(scored, rho=0.5, quality="base_loss")
    means = {int(i): row.mean(dtype=float) for i, row in zip(samples.sample_ids, base, strict=True)}
    lengths = dict(zip(samples.sample_ids.tolist(), map(len, base), strict=True))
    worst = sorted(means, key=means.__getitem__)
    assert [row["sample_id"] for row in summary["worst"]] == worst
    assert [row["sample_id"] for row in summary["best"]] == worst[::-1]
    for row in summary["worst"]:
        assert row["mean_quality"] == pytest.approx(means[row["sample_id"]])
        assert row["num_tokens"] == lengths[row["sample_id"]]
        assert row["source"] == ("even" if row["sample_id"] % 2 == 0 else "odd")


def test_counts_by_position_cover_every_token(scored):
    polarity, summary = divided(scored, rho=0.5)
    starts = Samples.read(scored / "data" / "train.parquet").response_starts[:-1]
    first = summary["by_position"][0]
    assert (first["start"], first["stop"]) == (0, 1)
    assert first["num_positive"] == (polarity[starts] > 0).sum()
    assert sum(row["num_tokens"] for row in summary["by_position"]) == polarity.size


def with_scores(run, values):
    """Put other log-probabilities of the reference into the scores of a run; those of the base are
    zero."""
    scores = all_scores(run)
    values = np.resize(np.asarray(values, np.float32), scores["base_log_probs"].size)
    columns = {"base_log_probs": np.zeros_like(values), "reference_log_probs": values}
    write_shards(run, Samples.read(run / "data" / "train.parquet"), columns, (7, 5))


@pytest.mark.parametrize("granularity", ["token", "sequence"])
@pytest.mark.parametrize(
    "choice",
    [{"rho": 0.7}, {"rho": 0.7, "balance": "source"}, {"rho": "auto"}, {"threshold": "zero"}],
    ids=str,
)
def test_a_quality_that_is_the_same_everywhere_is_refused(scored, choice, granularity):
    with_scores(scored, [0.0])
    settings = {**choice, "granularity": granularity}
    with pytest.raises(InputError, match=r"selection: all [\d,]+ \w+ have the same quality"):
        divided(scored, **settings)
    # A random choice does not look at it.
    divided(scored, by="random", rho=0.5)


def test_ties_at_a_threshold_are_reported(scored, caplog):
    divided(scored, rho=0.7)
    assert not caplog.records
    with_scores(scored, [-1, -2, -2, -2])
    polarity, _ = divided(scored, rho=0.5)
    (record,) = caplog.records
    assert "% of the tokens have exactly the quality of a threshold" in record.getMessage()
    shares = np.resize([False, True, True, True], polarity.size).mean()
    assert record.getMessage().startswith(f"{100 * shares:.1f} %")
    caplog.clear()
    # A threshold between two values divides no tie.
    divided(scored, rho=1 - shares)
    assert not caplog.records


def test_a_forget_rate_that_the_positives_leave_no_room_for_is_refused(scored):
    with pytest.raises(InputError, match=r"selection: forget_rate 0.9 asks for"):
        divided(scored, rho="auto", forget_rate=0.9)


def forget_some(run, every=3):
    """The data says that some samples are to forget; gives a mask of response tokens."""
    path = run / "data" / "train.parquet"
    table = read_table(path)
    flags = [index % every == 0 or None for index in range(len(table))]
    place = table.column_names.index("is_negative")
    write_table(table.set_column(place, "is_negative", pa.array(flags, pa.bool_())), path)
    samples = Samples.read(path)
    return samples.per_response_token(samples.is_negative)


@pytest.mark.parametrize("shards", [(12,), (7, 5), (0, 3, 9)])
@pytest.mark.parametrize(
    "settings",
    [
        {"rho": 0.7},
        {"rho": 0.99},
        {"rho": 0.4, "forget_rate": 0.2},
        {"rho": "auto"},
        {"rho": 0.5, "threshold": "zero"},
        {"rho": 0.5, "granularity": "sequence"},
        {"rho": 0.6, "balance": "source"},
        {"rho": 0.5, "balance": "source", "granularity": "sequence"},
    ],
    ids=str,
)
def test_what_the_data_says_to_forget_is_negative_and_moves_no_threshold(
    tmp_path, shards, settings
):
    run = save_scored_run(tmp_path / "run", shards)
    is_forgotten = forget_some(run)
    samples, scores = Samples.read(run / "data" / "train.parquet"), all_scores(run)
    quality = scores["reference_log_probs"] - scores["base_log_probs"]
    options = dict(settings)
    if options.pop("balance", "none") == "source":
        names = np.asarray(samples.table["source"].to_pylist())
        groups = samples.per_response_token(np.unique(names, return_inverse=True)[1])
        options["groups"] = groups[~is_forgotten]
    ids = samples.per_response_token(samples.sample_ids)[~is_forgotten]
    others = select_tokens(quality[~is_forgotten], sample_ids=ids, **options)
    polarity, summary = divided(run, **settings)
    assert (polarity[is_forgotten] == -1).all()
    assert np.array_equal(polarity[~is_forgotten], others)
    assert summary["num_negative"] == (polarity < 0).sum()
    assert summary["auto_rho"] == pytest.approx((quality[~is_forgotten] > 0).mean())


@pytest.mark.parametrize("granularity", ["token", "sequence"])
def test_a_random_choice_and_one_of_nothing_leave_what_is_to_forget(scored, granularity):
    is_forgotten = forget_some(scored)
    polarity, _ = divided(scored, by="random", rho=0.5, granularity=granularity)
    assert (polarity[is_forgotten] == -1).all()
    assert (polarity[~is_forgotten] > 0).any()
    polarity, _ = divided(scored, quality="detector", threshold="posterior", posterior=0.9)
    assert (polarity[is_forgotten] == -1).all()
    assert (polarity[~is_forgotten] > 0).any()
    output = scored / "all.parquet"
    select_corpus(
        ScoredCorpus(scored),
        SelectionSettings(),
        output,
        scratch=scored / "quality.bin",
        seed=0,
        marks_nothing=True,
    )
    polarity, _ = list_column(read_table(output), "polarity")
    assert np.array_equal(polarity, np.where(is_forgotten, -1, 1))


def test_end_tokens_to_forget_are_ignored_where_they_are_kept(scored):
    is_forgotten = forget_some(scored)
    samples = Samples.read(scored / "data" / "train.parquet")
    ends = samples.response_ids == EOS
    polarity, _ = divided(scored, rho=0.3, end_token_ids=[0, EOS])
    assert (polarity[ends & is_forgotten] == 0).all()
    assert (polarity[ends & ~is_forgotten] > 0).all()
    assert (polarity[~ends & is_forgotten] == -1).all()


def test_a_corpus_of_what_is_to_forget_is_all_negative(scored):
    is_forgotten = forget_some(scored, every=1)
    assert is_forgotten.all()
    for settings in ({"rho": 0.7}, {"rho": "auto"}, {"granularity": "sequence"}):
        assert (divided(scored, **settings)[0] == -1).all()
    polarity, summary = divided(scored, quality="min_loss", threshold="mixture")
    assert (polarity == -1).all()
    assert summary["rho"] == 0


def two_populations(tmp_path, shards):
    """A run in which a fifth of the tokens is far below the others under both models."""
    run = save_scored_run(tmp_path / str(len(shards)), shards, num_samples=600)
    for shard in range(len(shards)):

        def sink(table):
            columns = {"sample_id": table["sample_id"]}
            for name in ("base_log_probs", "reference_log_probs"):
                values, starts = list_column(table, name)
                values = np.where(np.arange(values.size) % 5 == 0, values - 30, values)
                columns[name] = lists(values.astype(np.float32), starts)
            return pa.table(columns)

        change_shard(run, shard, sink)
    return run


def test_a_mixture_marks_the_lower_population(tmp_path):
    run = two_populations(tmp_path, (600,))
    polarity, summary = divided(run, quality="min_loss", threshold="mixture")
    assert np.array_equal(
        polarity, in_memory(run, quality="min_loss", rho=0.5, threshold="mixture")
    )
    low = all_scores(run)["base_log_probs"] < -20
    assert np.array_equal(polarity < 0, low)
    fit = summary["mixture"]["fit"]
    assert fit["weight"] == pytest.approx(low.mean(), abs=0.01)
    assert summary["rho"] == pytest.approx((polarity > 0).mean())
    assert fit["negative_below"] <= summary["threshold"] == fit["positive_from"]
    width = fit["curve"]["quality"][1] - fit["curve"]["quality"][0]
    area = width * sum(fit["curve"]["bad_density"] + fit["curve"]["good_density"])
    assert area == pytest.approx(1, abs=0.1)


def test_without_a_second_population_all_are_positive_and_the_summary_says_why(scored):
    polarity, summary = divided(scored, quality="min_loss", threshold="mixture")
    assert (polarity == 1).all()
    assert summary["mixture"]["fit"] is None
    assert "too few" in summary["mixture"]["reason"]
    assert summary["threshold"] is None


def test_noise_that_is_not_known_everywhere_is_not_measured(scored):
    path = scored / "data" / "train.parquet"
    assert divided(scored, rho=0.5)[1]["noise"] is not None
    table = read_table(path)
    noise = [*table["noise"].to_pylist()[:-1], None]
    field = table.schema.field("noise")
    column = pa.chunked_array([pa.array(noise, field.type)])
    write_table(table.set_column(table.column_names.index("noise"), field, column), path)
    assert divided(scored, rho=0.5)[1]["noise"] is None


def change_shard(run, shard, change):
    file = sorted((run / "scores").iterdir())[shard]
    fingerprint = Samples.read(run / "data" / "train.parquet").fingerprint
    write_table(change(read_table(file)), file, fingerprint)


def without_a_token(table):
    columns = dict(zip(table.column_names, table.columns, strict=True))
    for name in ("base_log_probs", "reference_log_probs"):
        values, starts = list_column(table, name)
        columns[name] = lists(values[:-1], np.r_[starts[:-1], starts[-1] - 1])
    return table.from_pydict(columns)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop_columns("base_rank"), "scores-00001.*has no base_rank"),
        (lambda table: table.slice(1), "does not hold the samples"),
        (lambda table: table.take([1, 0, 2, 3, 4]), "does not hold the samples"),
        (without_a_token, r"scores-00001.*base_log_probs of sample 111 has"),
    ],
)
def test_shards_that_do_not_fit_are_refused(scored, change, message):
    change_shard(scored, 1, change)
    quality = "rank_gap" if "rank" in message else "influence"
    with pytest.raises(InputError, match=message):
        divided(scored, quality=quality)


def test_columns_that_differ_in_length_are_refused(scored):
    def cut(table):
        name = "reference_log_probs"
        values, starts = list_column(table, name)
        column = lists(values[:-1], np.r_[starts[:-1], starts[-1] - 1])
        return table.set_column(table.column_names.index(name), name, column)

    change_shard(scored, 0, cut)
    with pytest.raises(InputError, match=r"scores-00000.*reference_log_probs of sample 106 has"):
        divided(scored)
