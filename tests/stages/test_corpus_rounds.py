"""The rounds of a self-evolving reference: which tokens of a part are learned, and in which order.

Models are stand-ins: what trains writes a file, and what scores draws random numbers.
"""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest

from forgetting.config import load_recipe
from forgetting.errors import InputError
from forgetting.export import tokens
from forgetting.rundir import layout
from forgetting.rundir.directory import Work
from forgetting.rundir.samples import list_column, read_table
from forgetting.rundir.scores import ScoredCorpus, write_scores
from forgetting.stages import corpus_rounds
from forgetting.stages.evolve import EVOLVE
from forgetting.stages.recipe_parts import parts_of_train
from forgetting.stages.select import SELECT
from forgetting.stages.train import TRAIN
from forgetting.training import fit
from tests.conftest import EOS, all_scores, save_scored_run
from tests.stages.test_train import mark

ROUNDS, RHO = 3, 0.6


class Killed(Exception):
    """The process ends here."""


@pytest.fixture
def evolving(monkeypatch, write_recipe, tmp_path):
    """A run directory with scores of the base, and a function that evolves in it.

    It returns the work folder. `calls` are the trainings and scorings; `stop_at` is the number of
    the call in which the process is killed.
    """
    run = save_scored_run(tmp_path / "run", shard_sizes=(8, 8), num_samples=16)
    samples = mark(run)
    calls = []

    class Evolving:
        stop_at = None
        selection = {"rho": RHO}

        def step(self, stage):
            variants = {
                "self": {"objective": "ignoring", "rounds": ROUNDS, "selection": self.selection}
            }
            recipe = load_recipe(write_recipe(variants=variants), ["training.epochs=2"])
            return stage.step(recipe, "self")

        def __call__(self, name="work"):
            work = Work(tmp_path / name)
            work.output.mkdir(parents=True, exist_ok=True)
            self.step(EVOLVE).execute(run, work)
            return work

    evolving = Evolving()
    evolving.run, evolving.samples, evolving.calls = run, samples, calls

    def note(call):
        calls.append(call)
        if len(calls) == evolving.stop_at:
            raise Killed

    def train(recipe, training, variant, tables, label, work, ends, start):
        # As a training that is killed before it has written everything.
        (work.output / "weights").write_text("a part")
        table = pa.concat_tables(list(tables))
        before = None if start is None else (start.path / "weights").read_text()
        note(("train", label, table, before, None if start is None else start.num_steps))
        (work.output / "weights").write_text(label)

    def score(job, work, shards, scoring, base, *, is_last):
        model = (scoring.path / "weights").read_text()
        missing = [number for number in shards if not work.has(scoring.file(work, number))]
        if missing:
            note(("score", scoring.name, model))
        for number in missing:
            part, rows = job.samples.read(shards[number].start, shards[number].stop), None
            rows = scoring.rows(shards[number])
            total = int(part.num_response_tokens[rows].sum())
            values = -np.random.default_rng(len(model) + number).random(total).astype(np.float32)
            columns = {"log_probs": values}
            write_scores(scoring.file(work, number), part, rows, columns, job.samples.fingerprint)
            work.keep(scoring.file(work, number))

    monkeypatch.setattr(corpus_rounds, "fine_tune", train)
    monkeypatch.setattr(corpus_rounds, "score_with", score)
    return evolving


def written(work):
    table = read_table(layout.own_scores_file(work.output))
    return [list_column(table, name)[0] for name in ("reference_log_probs", "polarity")]


def flat(table, name, samples):
    """A column of the trainer, of the response tokens."""
    values = np.concatenate([np.asarray(row) for row in table[name].to_pylist()])
    labels = np.concatenate([np.asarray(row) for row in table["labels"].to_pylist()])
    return values[labels != -100]


@pytest.mark.parametrize("keeps_ends", [True, False])
def test_the_best_share_of_each_part_is_learned_and_the_first_part_whole(evolving, keeps_ends):
    evolving.selection = {"rho": RHO, "keep_eos": keeps_ends}
    own, polarity = written(evolving())
    samples = evolving.samples
    base = all_scores(evolving.run)["base_log_probs"]
    sample_of = samples.per_response_token(np.arange(len(samples)))
    is_negative = samples.per_response_token(samples.is_negative)
    is_end = samples.response_ids == EOS
    sizes = [len(part) for part in parts_of_train(len(samples), ROUNDS)]
    assert sizes == [5, 5, 6]
    expected = []
    for token in range(len(own)):
        part = np.searchsorted(np.cumsum(sizes), sample_of[token], side="right")
        ranked = [
            other
            for other in np.flatnonzero(~is_negative)
            if np.searchsorted(np.cumsum(sizes), sample_of[other], side="right") == part
        ]
        influence = {other: float(own[other]) - float(base[other]) for other in ranked}
        best = sorted(ranked, key=lambda other: -influence[other])
        learned = best[: math.floor(RHO * len(best) + 0.5)] if part else ranked
        value = 1 if token in learned else -1
        if value < 0 and is_end[token] and keeps_ends:
            value = 0 if is_negative[token] else 1
        expected.append(value)
    assert polarity.tolist() == expected
    assert {-1, 1} <= set(expected[sum(samples.num_response_tokens[:5]) :])


def test_each_part_is_scored_and_learned_with_the_model_of_those_before(evolving):
    work = evolving()
    first, second = (f"Training self, part {number} of 3" for number in (1, 2))
    kinds = [(call[0], *call[2:3]) if call[0] == "score" else call[:2] for call in evolving.calls]
    assert kinds == [
        ("train", first),
        ("score", first),
        ("train", second),
        ("score", second),
        # The first part, for show.
        ("score", second),
    ]
    assert [call[3:] for call in evolving.calls if call[0] == "train"] == [
        (None, None),
        # Two epochs of five samples, four of which are a batch.
        (first, 4),
    ]
    assert (layout.evolved_model_dir(work.output) / "weights").read_text() == second
    assert sorted(file.name for file in work.path.glob("part-*")) == ["part-1"]
    assert work.details["steps"] == 8
    lengths = evolving.samples.lengths
    assert work.details["tokens"] == 2 * lengths[:10].sum() + lengths.sum()


def test_the_trainer_gets_the_tokens_of_the_part_with_polarity_and_weights(evolving):
    work = evolving()
    samples, (_, polarity) = evolving.samples, written(work)
    tables = [call[2] for call in evolving.calls if call[0] == "train"]
    begin = 0
    for table, size in zip(tables, (5, 5), strict=True):
        inside = slice(*samples.response_starts[[begin, begin + size]])
        rows = samples.table.slice(begin, size)
        assert table["input_ids"].to_pylist() == rows["input_ids"].to_pylist()
        assert np.array_equal(flat(table, "polarity", samples), polarity[inside])
        assert flat(table, "token_weights", samples).tolist() == samples.weights[inside].tolist()
        begin += size


@pytest.mark.parametrize("call", range(1, 6))
def test_a_killed_round_is_done_again_and_those_before_it_are_not(evolving, call):
    whole = evolving("whole")
    expected, content = evolving.calls.copy(), layout.own_scores_file(whole.output).read_bytes()
    evolving.calls.clear()
    evolving.stop_at = call
    with pytest.raises(Killed):
        evolving()
    evolving.stop_at = None
    work = evolving()
    kinds = [made[:2] for made in expected]
    assert [made[:2] for made in evolving.calls] == kinds[:call] + kinds[call - 1 :]
    assert layout.own_scores_file(work.output).read_bytes() == content
    model = layout.evolved_model_dir(work.output)
    assert (model / "weights").read_text() == "Training self, part 2 of 3"
    assert [file.name for file in model.iterdir()] == ["weights"]


@pytest.mark.parametrize(
    ("file", "again"),
    [
        # The model of the second part is damaged, and the first was removed.
        ("part-1/output/weights", ["train", "train"]),
        ("selection-0.parquet", ["train", "train"]),
        ("round-1-00000.parquet", ["train", "score", "train"]),
        ("round-2-00001.parquet", ["score"]),
        ("selection-2.parquet", []),
    ],
)
def test_what_is_damaged_is_made_again(evolving, file, again):
    work = evolving()
    own, polarity = written(work)
    evolving.calls.clear()
    damaged = work.path / file
    damaged.write_bytes(damaged.read_bytes()[:-1])
    found = written(evolving())
    assert [call[0] for call in evolving.calls] == again
    assert np.array_equal(found[0], own)
    assert np.array_equal(found[1], polarity)


@pytest.fixture
def selected(evolving, tmp_path):
    """The run after `evolve` and `select`, and the summary of the selection."""
    folder = layout.evolution_dir(evolving.run, "self")
    folder.parent.mkdir()
    evolving().output.rename(folder)
    work = Work(tmp_path / "selecting")
    work.output.mkdir(parents=True)
    evolving.step(SELECT).execute(evolving.run, work)
    layout.selection_dir(evolving.run).mkdir()
    work.output.rename(layout.selection_dir(evolving.run, "self"))
    return evolving


def test_the_selection_is_what_was_learned(selected):
    own, polarity = (
        list_column(read_table(layout.own_scores_file(folder)), name)[0]
        for folder in [layout.selection_dir(selected.run, "self")]
        for name in ("reference_log_probs", "polarity")
    )
    file = layout.polarity_file(layout.selection_dir(selected.run, "self"))
    assert np.array_equal(list_column(read_table(file), "polarity")[0], polarity)
    corpus = ScoredCorpus(
        selected.run, own=layout.own_scores_file(layout.selection_dir(selected.run, "self"))
    )
    shards = list(corpus.scores(["base_log_probs", "reference_log_probs", "posterior"]))
    for name, values in {**all_scores(selected.run), "reference_log_probs": own}.items():
        if name in shards[0].columns:
            read = np.concatenate([shard.columns[name] for shard in shards])
            assert np.array_equal(read, values), name
    assert shards[0].columns.keys() == {"base_log_probs", "reference_log_probs", "posterior"}


def test_an_export_holds_the_log_probabilities_that_selected(selected):
    folder = layout.selection_dir(selected.run, "self")
    own, _ = list_column(read_table(layout.own_scores_file(folder)), "reference_log_probs")
    base = all_scores(selected.run)["base_log_probs"]
    assert "reference_log_probs" in tokens.stored_scores(selected.run, "self")
    names = ("labels", "reference_log_probs", "quality")
    table = pa.concat_tables(
        tokens.token_tables(selected.run, "self", "influence", lambda ids: "", names)
    )
    assert np.array_equal(flat(table, "reference_log_probs", selected.samples), own)
    assert np.array_equal(flat(table, "quality", selected.samples), own - base)


def test_train_learns_the_last_part_and_goes_on_from_the_others(selected, tmp_path, monkeypatch):
    found = []

    def fine_tune(recipe, training, variant, tables, label, work, ends, start):
        found.extend((pa.concat_tables(list(tables)), label, start))

    monkeypatch.setattr(fit, "fine_tune", fine_tune)
    monkeypatch.setattr("forgetting.stages.train._write_card", lambda *rest: None)
    selected.step(TRAIN).execute(selected.run, Work(tmp_path / "training"))
    table, label, start = found
    samples = selected.samples
    assert label == "Training self, part 3 of 3"
    evolution = layout.evolution_dir(selected.run, "self")
    assert (start.path, start.num_steps) == (evolution / "model", 8)
    assert table["input_ids"].to_pylist() == samples.table["input_ids"].to_pylist()[10:]
    last = slice(samples.response_starts[10], None)
    file = layout.polarity_file(layout.selection_dir(selected.run, "self"))
    polarity = list_column(read_table(file), "polarity")[0][last]
    assert np.array_equal(flat(table, "polarity", samples), polarity)
    assert flat(table, "token_weights", samples).tolist() == samples.weights[last].tolist()


def test_a_model_that_processes_share_is_refused(evolving, monkeypatch):
    monkeypatch.setattr("forgetting.rundir.processes.share_one_model", lambda: True)
    step = evolving.step(EVOLVE)
    with pytest.raises(InputError, match=r"variants.self.rounds does not work with FSDP"):
        EVOLVE.check(step.recipe)
