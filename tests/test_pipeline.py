"""What is done is skipped, and what changed is redone with all that depends on it, only."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import lm_eval.tasks
import pytest

from forgetting import stages
from forgetting.config import load_recipe, shipped_recipes
from forgetting.data.splits import SPLITS
from forgetting.errors import InputError
from forgetting.pipeline import describe_plan, plan, run
from forgetting.rundir.manifest import read_manifest
from forgetting.rundir.samples import Samples
from forgetting.rundir.storage import digest
from forgetting.stages import STAGES, Stage
from tests.conftest import save_tiny_model

ALL = [
    "prepare",
    "reference",
    "score",
    "select:ignoring",
    "select:forgetting",
    "train:full",
    "train:ignoring",
    "train:forgetting",
    "evaluate:base",
    "evaluate:full",
    "evaluate:ignoring",
    "evaluate:forgetting",
    "report",
]
NAMES = [stage.name for stage in STAGES]


@pytest.fixture
def calls(monkeypatch):
    """Replaces every stage by one that only notes that it ran, and writes what it read."""
    made = []

    def note(step, path, work):
        steps = {other.key: other for other in plan(step.recipe)}
        read = [(path / steps[key].target / "x").read_text() for key in step.inputs]
        (work.output / "x").write_text(digest([step.settings(), read]))
        made.append(step.key)

    monkeypatch.setattr(stages, "STAGES", tuple(replace(stage, run=note) for stage in STAGES))
    return made


@pytest.fixture
def steps_of(calls, write_recipe, tmp_path):
    """Runs the tiny recipe with overrides, always in the same place; gives the steps that ran."""
    recipe = write_recipe()

    def do(*overrides, stages=None):
        calls.clear()
        run(recipe, tmp_path / "run", overrides=overrides, stages=stages)
        return list(calls)

    return do


def without(*keys):
    return [key for key in ALL if key not in keys]


def starting(*prefixes):
    return [key for key in ALL if key.startswith(prefixes)]


def test_each_step_comes_after_those_that_it_reads(steps_of, write_recipe):
    assert steps_of() == ALL
    seen = set()
    for step in plan(load_recipe(write_recipe())):
        assert seen.issuperset(step.inputs)
        seen.add(step.key)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        # The variant ignoring has a rho of its own.
        (
            "selection.rho=0.6",
            ["select:forgetting", "train:forgetting", "evaluate:forgetting", "report"],
        ),
        (
            "selection.granularity=sequence",
            [key for key in ALL if key.endswith(("ignoring", "forgetting", "report"))],
        ),
        ("forgetting.t_max=0.5", ["train:forgetting", "evaluate:forgetting", "report"]),
        ("report.seed=1", ["report"]),
        ("evaluation.limit=3", starting("evaluate", "report")),
        ("reference.epochs=2", without("prepare", "train:full", "evaluate:base", "evaluate:full")),
        ("training.epochs=2", without("prepare", "evaluate:base")),
        (
            "scoring.samples_per_shard=5",
            without("prepare", "reference", "train:full", "evaluate:base", "evaluate:full"),
        ),
        ("data.num_train=20", ALL),
        ("seed=7", ALL),
        ("model.chat_template=plain", ALL),
        ("model.dtype=bfloat16", without("prepare")),
        # What changes no result costs nothing.
        ("training.save_steps=5", []),
        ("scoring.tokens_per_batch=128", []),
        ("selection.rho=0.7", []),
    ],
)
def test_what_changed_is_redone_with_all_that_depends_on_it(steps_of, override, expected):
    assert steps_of() == ALL
    assert steps_of() == []
    assert steps_of(override) == expected
    assert steps_of(override) == []


def test_other_data_redoes_everything(steps_of, tmp_path):
    steps_of()
    file = tmp_path / "records.json"
    file.write_text(json.dumps(json.loads(file.read_text())[::-1]))
    assert steps_of() == ALL


def test_the_same_data_elsewhere_redoes_nothing(steps_of, tmp_path):
    steps_of()
    (tmp_path / "other").mkdir()
    copied = shutil.copy(tmp_path / "records.json", tmp_path / "other")
    assert steps_of(f"data.sources.0.path={copied}") == []


def test_other_weights_redo_all_that_uses_them(steps_of, tmp_path, tiny_model):
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    override = f"model.name_or_path={model}"
    assert steps_of(override) == ALL
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert steps_of(override) == without("prepare")


def test_an_output_that_was_damaged_is_made_again(steps_of, tmp_path):
    steps_of()
    (tmp_path / "run" / "scores" / "x").write_text("damaged")
    # What depends on it finds the same content again.
    assert steps_of() == ["score"]


def test_an_input_that_was_damaged_unnoticed_is_refused_by_the_stage_that_reads_it(
    steps_of, tmp_path
):
    steps_of()
    file = tmp_path / "run" / "scores" / "x"
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    file.write_text(file.read_text()[::-1])
    os.utime(file, ns=times)
    with pytest.raises(InputError, match="scores/x is not the file that score wrote"):
        steps_of("selection.rho=0.6")
    file.unlink()
    assert steps_of("selection.rho=0.6")[0] == "score"


def test_the_recipe_stays_until_the_first_stage_of_another_one_is_done(
    steps_of, tmp_path, monkeypatch
):
    steps_of()
    file = tmp_path / "run" / "recipe.yaml"
    before, manifest = file.read_text(), read_manifest(tmp_path / "run")

    def fail(step, path, work):
        raise InputError("no")

    (tmp_path / "records.json").write_text("[]")
    with monkeypatch.context() as patch:
        broken = [replace(each, run=fail) for each in stages.STAGES[:1]]
        patch.setattr(stages, "STAGES", (*broken, *stages.STAGES[1:]))
        with pytest.raises(InputError, match="no"):
            steps_of("data.num_train=20", "variants={full: {}}")
    assert file.read_text() == before
    assert read_manifest(tmp_path / "run") == manifest
    steps_of("data.num_train=20", stages=["prepare"])
    assert "num_train: 20" in file.read_text()


def test_the_recipe_of_a_new_run_is_there_from_the_start(steps_of, tmp_path, monkeypatch):
    def fail(step, path, work):
        raise InputError("no")

    broken = [replace(each, run=fail) for each in stages.STAGES]
    monkeypatch.setattr(stages, "STAGES", tuple(broken))
    with pytest.raises(InputError, match="no"):
        steps_of()
    assert (tmp_path / "run" / "recipe.yaml").is_file()


def test_removing_a_variant_keeps_the_others(steps_of, tmp_path):
    steps_of()
    assert steps_of("variants={full: {}, forgetting: {}}") == ["report"]
    assert "train:ignoring" not in read_manifest(tmp_path / "run").stages
    assert (tmp_path / "run" / "models" / "ignoring" / "x").exists()


def test_full_alone_needs_no_reference_and_no_scores(steps_of):
    assert steps_of("variants={full: {}}") == [
        "prepare",
        "train:full",
        "evaluate:base",
        "evaluate:full",
        "report",
    ]


def test_a_reference_of_ones_own_is_not_trained(steps_of, tmp_path):
    own = save_tiny_model(tmp_path / "own", seed=3)
    assert steps_of(f"reference.name_or_path={own}") == without("reference")


def test_a_verb_does_its_stage_only(steps_of):
    for stage in NAMES:
        assert steps_of(stages=(stage,)) == starting(stage)


@pytest.mark.parametrize(
    ("stage", "missing"),
    [
        ("reference", "prepare"),
        ("score", "reference"),
        ("select", "score"),
        ("train", "select"),
        ("evaluate", "train"),
        ("report", "evaluate"),
    ],
)
def test_a_verb_whose_input_is_missing_or_stale_is_refused_before_it_begins(
    steps_of, calls, stage, missing
):
    before = NAMES[: NAMES.index(missing)]
    steps_of(stages=before)
    with pytest.raises(
        InputError, match=rf"needs {missing}.* first, or everything with `forgetting run`"
    ):
        steps_of(stages=(stage,))
    assert calls == []
    steps_of()
    with pytest.raises(InputError, match="needs prepare"):
        steps_of("seed=7", stages=(stage,))
    assert calls == []


def test_an_unknown_stage_is_refused(steps_of):
    with pytest.raises(InputError, match=r"no stage tune\. The stages are prepare, reference"):
        steps_of(stages=("tune",))


def test_overrides_of_a_recipe_that_is_no_file_are_refused(write_recipe, tmp_path):
    with pytest.raises(InputError, match="overrides"):
        run(load_recipe(write_recipe()), tmp_path / "run", overrides=["seed=1"])


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("data.sources.0.path=/no/where.json", r"no data file at /no/where\.json"),
        ("model.name_or_path=/no/where", "model.name_or_path: there is no folder /no/where"),
        ("reference.name_or_path=/no/where", "reference.name_or_path: there is no folder"),
        ("model.chat_template=/no/where", "model.chat_template: there is no file /no/where"),
        ("evaluation.include_path=/no/where", "evaluation.include_path: there is no folder"),
        ("evaluation.data_dir=/no/where", "evaluation.data_dir: there is no folder"),
        ("evaluation={tasks: [paper], data_dir: .}", "has no file mc_task.json"),
        (
            "evaluation={tasks: [nope], include_path: .}",
            "evaluation.tasks: lm-eval has no task nope",
        ),
        ("training.report_to=[trackio]", "report_to: the package trackio is not installed"),
    ],
)
def test_what_is_not_there_is_refused_before_anything_is_written(
    steps_of, write_recipe, monkeypatch, tmp_path, override, reason
):
    monkeypatch.setattr("forgetting.stages.recipe_parts.find_spec", lambda name: None)
    known = lm_eval.tasks.TaskManager
    # Reading all that lm-eval ships takes half a minute.
    monkeypatch.setattr(
        lm_eval.tasks,
        "TaskManager",
        lambda include_path, include_defaults=True: known(
            include_path=include_path, include_defaults=False
        ),
    )
    with pytest.raises(InputError, match=reason):
        steps_of(override)
    with pytest.raises(InputError, match=reason):
        describe_plan(load_recipe(write_recipe(), [override]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def no_weights(monkeypatch):
    """Loading the weights of any model is an error."""
    from transformers import AutoModelForCausalLM

    load = AutoModelForCausalLM.from_pretrained

    def refuse(*args, **kwargs):
        # Without a device, only the names and sizes of the weights are read.
        assert kwargs.get("device_map") == "meta", "weights were loaded"
        return load(*args, **kwargs)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", refuse)


def test_the_plan_of_a_fresh_run_says_what_is_known(write_recipe, tmp_path, no_weights):
    lines = describe_plan(load_recipe(write_recipe()), tmp_path / "run")
    assert [line.key for line in lines] == ALL
    assert not any(line.is_done for line in lines)
    facts = {line.key: line.facts for line in lines}
    assert facts["prepare"] == {
        "reference samples": 16,
        "train samples": 24,
        "held-out samples": 8,
    }
    assert facts["reference"]["optimizer steps"] == 4
    assert facts["train:full"]["optimizer steps"] == 6
    assert facts["train:full"]["response tokens"] is None
    assert not (tmp_path / "run").exists()


def test_the_plan_of_a_finished_run_is_done_and_touches_nothing(finished_run, no_weights):
    recipe, path = finished_run
    before = {f: f.stat().st_mtime_ns for f in path.rglob("*")}
    lines = describe_plan(load_recipe(recipe), path)
    assert all(line.is_done for line in lines)
    assert {f: f.stat().st_mtime_ns for f in path.rglob("*")} == before
    facts = {line.key: line.facts for line in lines}
    splits = json.loads((path / "data" / "summary.json").read_text())["splits"]
    assert facts["score"]["response tokens"] == splits["train"]["response_tokens"]
    changed = describe_plan(load_recipe(recipe, ["forgetting.t_max=0.5"]), path)
    undone = [line.key for line in changed if not line.is_done]
    assert undone == ["train:forgetting", "evaluate:forgetting", "report"]


def test_a_second_run_leaves_every_output_untouched(finished_run):
    recipe, path = finished_run
    outputs = [path / name for e in read_manifest(path).stages.values() for name in e.outputs]
    before = [file.stat().st_mtime_ns for file in outputs]
    run(recipe, path)
    assert [file.stat().st_mtime_ns for file in outputs] == before


def test_every_stage_says_how_many_tokens_it_read(finished_run):
    _, path = finished_run
    samples = {n: Samples.read(path / "data" / f"{n}.parquet") for n in SPLITS}
    tokens = {name: split.input_ids.size for name, split in samples.items()}
    stages = read_manifest(path).stages
    found = {key: entry.details.get("tokens") for key, entry in stages.items()}
    # One epoch each; the base and the reference score every sample once.
    assert found.pop("prepare") == sum(tokens.values())
    assert found.pop("reference") == tokens["reference"]
    assert found.pop("score") == 2 * tokens["train"]
    assert found.pop("report") is None
    wanted = {
        "select": samples["train"].response_ids.size,
        "train": tokens["train"],
        "evaluate": tokens["heldout"],
    }
    assert found == {key: wanted[key.split(":")[0]] for key in found}


def test_the_plan_for_a_directory_of_another_recipe_is_refused(finished_run):
    recipe, path = finished_run
    with pytest.raises(InputError, match="belongs to the recipe 'tiny', not to 'other'"):
        describe_plan(load_recipe(recipe, ["name=other"]), path)


# What a recipe of one's own extends names no data or model that is there.
TO_EXTEND = {"arena", "baselines", "detector", "forgetting", "paper", "quickstart"}


@pytest.mark.parametrize("name", sorted(set(shipped_recipes()) - TO_EXTEND))
def test_shipped_recipes_can_be_planned_offline(name, tmp_path, no_weights):
    lines = {line.key: line.facts for line in describe_plan(load_recipe(name), tmp_path / "run")}
    assert lines["train:forgetting"]["trainable parameters"] > 0


@pytest.mark.parametrize(
    ("num_train", "micro_batch_size", "epochs"), [(7, 2, 1), (8, 2, 2), (9, 4, 2), (5, 1, 1.5)]
)
def test_the_plan_counts_the_steps_and_parameters_that_training_has(
    write_recipe, tmp_path, num_train, micro_batch_size, epochs
):
    path = write_recipe(variants={"full": None})
    overrides = [
        f"data.num_train={num_train}",
        f"training.micro_batch_size={micro_batch_size}",
        f"training.epochs={epochs}",
        "training.save_steps=100",
    ]
    recipe = load_recipe(path, overrides)
    planned = {line.key: line.facts for line in describe_plan(recipe, tmp_path / "run")}
    run(recipe, tmp_path / "run", stages=("prepare", "train"))
    details = read_manifest(tmp_path / "run").stages["train:full"].details
    assert planned["train:full"]["optimizer steps"] == details["steps"]
    assert planned["train:full"]["trainable parameters"] == details["trainable_parameters"]
    tokens = Samples.read(tmp_path / "run" / "data" / "train.parquet").input_ids.size
    assert details["tokens"] == round(epochs * tokens)


def test_a_measure_that_needs_other_scores_scores_again_and_others_do_not(steps_of):
    steps_of()
    assert "score" not in steps_of("selection.quality=min_loss")
    assert "score" in steps_of("selection.quality=entropy_gap")


def test_a_term_that_compares_with_the_base_reads_the_scores(write_recipe):
    recipe = load_recipe(write_recipe(), ["forgetting.term=tnpo"])
    inputs = {step.key: step.inputs for step in plan(recipe)}
    assert inputs["train:forgetting"] == ("prepare", "score", "select:forgetting")
    assert inputs["train:ignoring"] == ("prepare", "select:ignoring")


@pytest.fixture
def with_count(monkeypatch):
    """Adds a stage to the list: one object, and nothing else."""

    def run(step, path, work):
        samples = Samples.read(path / "data" / "train.parquet")
        number = int((samples.response_ids >= step.settings()["first"]).sum())
        (work.output / f"{step.part}.txt").write_text(str(number))
        work.details["tokens"] = number

    def check(recipe):
        if recipe.seed == 13:
            raise InputError("seed 13 cannot be counted")

    count = Stage(
        name="count",
        summary="Count some tokens for each variant.",
        folder="counts",
        reads=("prepare", "select"),
        parts=lambda recipe: list(recipe.variants),
        settings=lambda step: {"first": step.recipe.report.seed},
        run=run,
        check=check,
        facts=lambda step, done: {"things to count": len(done)},
    )
    place = NAMES.index("select") + 1
    monkeypatch.setattr(stages, "STAGES", (*STAGES[:place], count, *STAGES[place:]))


def test_adding_a_stage_is_one_object(with_count, finished_run, tmp_path):
    path = shutil.copytree(finished_run[1], tmp_path / "run")
    recipe = load_recipe(finished_run[0])
    counts = ["count:full", "count:ignoring", "count:forgetting"]
    lines = {line.key: line for line in describe_plan(recipe, path)}
    assert list(lines) == [*ALL[:5], *counts, *ALL[5:]]
    assert {key for key, line in lines.items() if not line.is_done} == {*counts, "report"}
    assert lines["count:full"].facts == {"things to count": len(ALL) - 1}
    steps = {step.key: step for step in plan(recipe)}
    assert steps["count:full"].inputs == ("prepare",)
    assert steps["count:ignoring"].inputs == ("prepare", "select:ignoring")
    assert set(counts) < set(steps["report"].inputs)

    with pytest.raises(InputError, match="report needs count:full"):
        run(recipe, path, stages=["report"])
    run(recipe, path, stages=["count"])
    entries = read_manifest(path).stages
    assert list(entries)[5:8] == counts
    assert list(entries["count:full"].outputs) == ["counts/full/full.txt"]
    run(recipe, path)
    page = (path / "report" / "index.html").read_text()
    assert page.index(">select:forgetting<") < page.index(">count:full<") < page.index(">train:")

    # Its settings are in its fingerprint.
    other = load_recipe(finished_run[0], ["report.seed=99"])
    undone = [line.key for line in describe_plan(other, path) if not line.is_done]
    assert undone == [*counts, "report"]
    with pytest.raises(InputError, match="seed 13 cannot be counted"):
        describe_plan(load_recipe(finished_run[0], ["seed=13"]), path)


def test_importing_the_stages_imports_no_framework():
    heavy = "torch transformers datasets trl peft lm_eval pyarrow numpy pydantic"
    code = f"import sys, forgetting.stages; assert not set(sys.modules) & set({heavy.split()})"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
