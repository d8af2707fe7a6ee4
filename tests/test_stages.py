"""What a stage makes of what it finds in the run directory."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from forgetting import stages
from forgetting.config import load_recipe
from forgetting.errors import InputError
from forgetting.rundir.directory import Work
from forgetting.rundir.processes import Processes
from forgetting.rundir.samples import (
    Samples,
    list_column,
    read_table,
)
from tests.conftest import EOS, all_scores, save_scored_run


@pytest.fixture
def run(tmp_path):
    """A run directory with scored samples; quality of a token is its place in a random order."""
    return save_scored_run(tmp_path / "run")


@pytest.fixture
def select(run, write_recipe, tmp_path):
    """Runs the select stage for one variant; gives quality, polarity and the summary."""

    def do(**selection):
        recipe = load_recipe(
            write_recipe(variants={"some": {"objective": "forgetting", "selection": selection}})
        )
        work = Work(tmp_path / "work")
        work.output.mkdir(parents=True, exist_ok=True)
        stages.select(recipe, run, work, "some")
        samples = Samples.read(run / "data" / "train.parquet")
        scores = all_scores(run)
        quality = scores["reference_log_probs"] - scores["base_log_probs"]
        table = read_table(work.output / "polarity.parquet", samples.fingerprint)
        polarity, starts = list_column(table, "polarity")
        assert np.array_equal(starts, samples.response_starts)
        summary = json.loads((work.output / "summary.json").read_text())
        return samples, quality, polarity, summary

    return do


def test_the_best_share_is_positive(select):
    _, quality, polarity, summary = select(rho=0.7, keep_eos=False)
    count = int(np.floor(0.7 * quality.size + 0.5))
    assert (polarity > 0).sum() == count == summary["num_positive"]
    assert quality[polarity > 0].min() >= quality[polarity < 0].max()
    assert summary["threshold"] == pytest.approx(quality[polarity > 0].min())
    assert summary["num_tokens"] == quality.size
    assert sum(summary["histogram"]["counts"]) == quality.size
    assert summary["auto_rho"] == pytest.approx((quality > 0).mean())
    for source in summary["by_source"]:
        parts = (source["num_positive"], source["num_negative"], source["num_ignored"])
        assert sum(parts) == source["num_tokens"]


def test_end_tokens_are_never_negative_unless_asked(select):
    samples, quality, literal, _ = select(rho=0.3, keep_eos=False)
    _, _, kept, summary = select(rho=0.3, keep_eos=True)
    ends = samples.response_ids == EOS
    assert (literal[ends] < 0).any()
    assert (kept[ends] > 0).all()
    assert np.array_equal(kept[~ends], literal[~ends])
    # The threshold is that of the choice, not of the tokens that were kept in spite of it.
    assert summary["threshold"] == pytest.approx(quality[literal > 0].min())


def test_random_chooses_as_many_without_looking(select):
    _, quality, polarity, summary = select(rho=0.7, by="random", keep_eos=False)
    assert (polarity > 0).sum() == int(np.floor(0.7 * quality.size + 0.5))
    assert quality[polarity > 0].min() < quality[polarity < 0].max()
    assert summary["threshold"] is None
    _, quality, polarity, _ = select(by="random", threshold="zero", keep_eos=False)
    assert (polarity > 0).sum() == (quality > 0).sum()


def test_sequences_are_chosen_whole(select):
    samples, _, polarity, summary = select(granularity="sequence", rho=0.5, keep_eos=False)
    rows = np.split(polarity, samples.response_starts[1:-1])
    assert all(len(set(row)) == 1 for row in rows)
    assert sum(row[0] > 0 for row in rows) == 6
    assert summary["threshold"] is None


def test_known_noise_is_measured(select):
    samples, quality, polarity, summary = select(rho=0.7)
    noisy = samples.noise()
    assert summary["noise"]["num_noisy"] == noisy.sum()
    clean_over_noisy = (quality[noisy][:, None] < quality[~noisy][None]).mean()
    assert summary["noise"]["auroc"] == pytest.approx(clean_over_noisy, abs=1e-6)
    assert summary["noise"]["precision"] == pytest.approx(noisy[polarity != 1].mean())
    assert summary["noise"]["recall"] == pytest.approx((polarity[noisy] != 1).mean())
    (kind,) = summary["noise"]["by_kind"]
    assert kind["kind"] == "junk_phrase"
    assert kind["num_tokens"] == noisy.sum()


@pytest.fixture
def scored(finished_run, tmp_path):
    """Runs the pieces of the score stage on a finished run's corpus; gives its work folder."""
    path, run = finished_run
    recipe = load_recipe(path)

    def do(world_size, name, recipe=recipe):
        work = Work(tmp_path / name)
        work.output.mkdir(parents=True)
        for rank in range(world_size):
            stages.score_shards(recipe, run, as_process(work, rank, world_size))
        stages.join_shards(recipe, run, work)
        return work

    do.recipe, do.run = recipe, run
    return do


def as_process(work, index, count):
    """The same work folder as one process of several has it."""
    return Work(work.path, Processes(index, count))


def test_shards_do_not_depend_on_the_number_of_processes(scored):
    alone, shared = scored(1, "alone"), scored(2, "shared")
    files = sorted(file.name for file in alone.output.iterdir())
    assert files == [f"scores-{index:05d}-of-00003.parquet" for index in range(3)]
    for file in files:
        assert read_table(alone.output / file) == read_table(shared.output / file)
    assert alone.details == shared.details


def test_each_process_does_its_own_shards(scored, tmp_path):
    work = Work(tmp_path / "work")
    work.output.mkdir(parents=True)
    stages.score_shards(scored.recipe, scored.run, as_process(work, 1, 2))
    done = sorted(file.name for file in work.path.glob("*.parquet"))
    assert done == ["base-00001.parquet", "reference-00001.parquet"]
    with pytest.raises(InputError, match=r"base-00000.parquet cannot be read"):
        stages.join_shards(scored.recipe, scored.run, work)


def test_a_process_without_shards_loads_no_model(scored, tmp_path, monkeypatch):
    monkeypatch.setattr(stages.loading, "load_base_model", None)
    work = Work(tmp_path / "work")
    work.output.mkdir(parents=True)
    stages.score_shards(scored.recipe, scored.run, as_process(work, 3, 4))
    assert not list(work.path.glob("*.parquet"))


def test_entropy_and_rank_are_stored_when_asked_for(scored, finished_run, tmp_path):
    measures = [
        "variants.ignoring.selection.quality=rank_gap",
        "variants.forgetting.selection.quality=entropy_gap",
    ]
    output = scored(1, "more", load_recipe(finished_run[0], measures)).output
    (tmp_path / "run").mkdir()
    output.rename(tmp_path / "run" / "scores")
    plain = all_scores(scored.run)
    names = [f"{m}_{c}" for m in ("base", "reference") for c in ("log_probs", "entropy", "rank")]
    found = all_scores(tmp_path / "run")
    for name in ("base_log_probs", "reference_log_probs"):
        assert np.abs(found[name] - plain[name]).max() < 1e-5
    assert sorted(found) == sorted(names)
    assert {found[name].dtype for name in names} == {np.dtype("float32"), np.dtype("int32")}
    # A greedy token is at least as likely as any other: -log p is at most the entropy.
    greedy = found["base_rank"] == 0
    assert (-found["base_log_probs"] <= found["base_entropy"] + 1e-5)[greedy].all()


def test_a_reference_of_whole_weights_is_never_in_memory_with_the_base(
    scored, tmp_path, monkeypatch, tiny_model
):
    import gc
    import weakref

    alive = weakref.WeakSet()
    most = []
    load = stages.loading.load_base_model

    def watched(*args):
        gc.collect()
        most.append(len(alive))
        model = load(*args)
        alive.add(model)
        return model

    monkeypatch.setattr(stages.loading, "load_base_model", watched)
    other = shutil.copytree(tiny_model, tmp_path / "reference")
    recipe = load_recipe(scored.run.parent / "recipe.yaml", [f"reference.name_or_path={other}"])
    scored(1, "whole", recipe)
    assert most == [0, 0]


def test_tensorboard_shows_every_figure(write_recipe, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from forgetting.pipeline import run as run_stages

    recipe = load_recipe(write_recipe(), ["training.report_to=[tensorboard]"])
    run_stages(
        recipe, tmp_path / "out", stages=["prepare", "reference", "score", "select", "train"]
    )
    folder = tmp_path / "out" / "models" / "forgetting"
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    shown = {tag.removeprefix("train/") for tag in events.Tags()["scalars"]}
    assert {
        "loss",
        "positive_loss",
        "negative_loss",
        "lambda",
        "share_negative",
        "negative_prob",
        "grad_norm",
        "entropy",
    } <= shown
    logged = [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]
    values = [event.value for event in events.Scalars("train/lambda")]
    assert values == pytest.approx([line["lambda"] for line in logged])


@pytest.mark.parametrize("term", ["ga", "tnpo"])
def test_terms_reach_the_training_of_a_run_with_the_scores_they_need(
    term, write_recipe, tmp_path, monkeypatch
):
    from forgetting.pipeline import run as run_stages
    from forgetting.training import trainer

    seen = {}

    class Spy(trainer.ForgettingTrainer):
        def __init__(self, *, args, train_dataset, **kwargs):
            seen[args.forgetting_term.kind] = (args, train_dataset)
            super().__init__(args=args, train_dataset=train_dataset, **kwargs)

    monkeypatch.setattr(trainer, "ForgettingTrainer", Spy)
    changes = [
        f"forgetting.term={term}",
        "forgetting.beta=0.3",
        "forgetting.floor=0.01",
        "forgetting.normalization=token",
        "variants={forgetting: {objective: forgetting}}",
    ]
    path = run_stages(
        load_recipe(write_recipe(), changes),
        tmp_path / "out",
        stages=["prepare", "reference", "score", "select", "train"],
    )
    args, dataset = seen[term]
    # A parameter of another term is inherited and not used.
    assert args.forgetting_term.parameters == ({"beta": 0.3} if term == "tnpo" else {})
    assert (args.floor, args.normalization) == (0.01, "token")
    assert ("base_log_probs" in dataset.column_names) == (term == "tnpo")
    if term == "tnpo":
        samples = Samples.read(path / "data" / "train.parquet")
        base = all_scores(path)["base_log_probs"]
        given = np.concatenate([np.asarray(row) for row in dataset["base_log_probs"]])
        assert given[samples.is_response].tolist() == pytest.approx(base.tolist())
        assert not given[~samples.is_response].any()


def test_the_baselines_are_what_their_names_say(write_recipe, tmp_path):
    from forgetting.pipeline import run as run_stages

    variants = load_recipe("baselines").model_dump(mode="json", exclude_unset=True)["variants"]
    path = run_stages(load_recipe(write_recipe(variants=variants)), tmp_path / "out")
    summaries = {
        name: json.loads((path / "selection" / name / "summary.json").read_text())
        for name in variants
        if name != "full"
    }
    total = summaries["forgetting"]["num_tokens"]
    for name, summary in summaries.items():
        assert (path / "evaluation" / name / "heldout.json").is_file()
        counts = [summary[f"num_{kind}"] for kind in ("positive", "negative", "ignored")]
        assert sum(counts) == total
        if "random" in name:
            assert summary["num_positive"] > 0.3 * total
    half = summaries["forgetting-half"]
    assert half["num_ignored"] > 0 < half["num_negative"]
    assert summaries["forgetting-sequence"]["granularity"] == "sequence"
    assert summaries["forgetting-zero"]["threshold_kind"] == "zero"
    lambdas = {
        json.loads(line)["lambda"]
        for line in (path / "models/forgetting-constant/training.jsonl").read_text().splitlines()
    }
    assert lambdas == {1e-4}


def test_max_length_beyond_the_positions_is_refused(write_recipe):
    recipe = load_recipe(write_recipe(), ["data.max_length=257"])
    with pytest.raises(InputError, match=r"max_length 257 is more than the 256 positions"):
        stages.check_length(recipe)


@pytest.fixture
def stones(tmp_path):
    """Three tasks of one's own over the same file, and a suite of two of them."""
    items = [{"q": f"Stone {i} is", "choices": ["red", "blue"], "answer": i % 2} for i in range(6)]
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    for name in ("one", "two", "three"):
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(folder / "items.jsonl")}},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": f"{name}: {{{{q}}}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{answer}}",
            "metric_list": [{"metric": "acc"}],
        }
        (folder / f"{name}.yaml").write_text(json.dumps(task))
    members = [{"name": n.title(), "tasks": [n], "metric": "acc"} for n in ("one", "two")]
    (folder / "pair.yaml").write_text(json.dumps({"suite": "pair", "members": members}))
    return {"tasks": ["pair", "three"], "include_path": str(folder), "log_samples": True}


def test_a_cut_off_evaluation_does_only_the_tasks_without_a_result(
    write_recipe, stones, tmp_path, monkeypatch
):
    from forgetting.evaluation import Harness

    recipe = load_recipe(write_recipe(evaluation={**stones, "heldout": False}))
    work = Work(tmp_path / "work")
    work.output.mkdir(parents=True)
    measured = []
    measure = Harness.measure

    def noted(self, model, request):
        measured.append(request.task)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return measure(self, model, request)

    monkeypatch.setattr(Harness, "measure", noted)
    with pytest.raises(KeyboardInterrupt):
        stages.evaluate(recipe, tmp_path, work, "base")
    assert {f.name for f in work.output.iterdir()} == {"one.json", "one.samples.jsonl"}
    stages.evaluate(recipe, tmp_path, work, "base")
    assert measured == ["one", "two", "two", "three"]
    whole = Work(tmp_path / "whole")
    whole.output.mkdir(parents=True)
    stages.evaluate(recipe, tmp_path, whole, "base")
    files = {f.name: f.read_text() for f in whole.output.iterdir()}
    assert {f.name: f.read_text() for f in work.output.iterdir()} == files
    assert sorted(name for name in files if "samples" not in name) == [
        "one.json",
        "pair.json",
        "three.json",
        "two.json",
    ]
    pair, one, two = (json.loads(files[f"{name}.json"]) for name in ("pair", "one", "two"))
    values = [result["metrics"]["acc"]["value"] for result in (one, two)]
    assert pair["metrics"]["average"]["value"] == pytest.approx(sum(values) / 2)
    rows = [json.loads(line) for line in files["one.samples.jsonl"].splitlines()]
    assert sum(row["acc"] for row in rows) / 6 == pytest.approx(values[0])


def test_a_run_loads_the_base_once_for_all_adapters_and_reads_tasks_once(
    write_recipe, stones, tmp_path, monkeypatch
):
    from forgetting.evaluation import harness
    from forgetting.models import loading
    from forgetting.pipeline import run as run_stages

    path = write_recipe(evaluation=stones)
    run_stages(path, tmp_path / "out", stages=("prepare", "reference", "score", "select", "train"))
    calls = []
    for module, name in ((loading, "load_base_model"), (harness, "_index")):
        own = getattr(module, name)

        def noted(*args, own=own, name=name):
            calls.append(name)
            return own(*args)

        monkeypatch.setattr(module, name, noted)
    run_stages(path, tmp_path / "out", stages=("evaluate", "report"))
    assert sorted(calls) == ["_index", "load_base_model"]
    results = {
        variant: json.loads((tmp_path / "out/evaluation" / variant / "heldout.json").read_text())
        for variant in ("base", "full", "ignoring", "forgetting")
    }
    assert len({r["metrics"]["loss"]["value"] for r in results.values()}) == 4
