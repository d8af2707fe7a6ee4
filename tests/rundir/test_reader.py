"""What a run's writers wrote is what its readers read; what is not there is left out."""

from __future__ import annotations

import math
import shutil

import numpy as np
import pytest

from forgetting.errors import InputError
from forgetting.rundir import layout
from forgetting.rundir.reader import RunReader, in_order
from forgetting.rundir.results import Group, TaskResult, read_result, read_results, write_result
from forgetting.rundir.samples import Samples
from forgetting.rundir.selections import SelectionSummary, read_polarity, selected_parts
from forgetting.rundir.stats import DataSummary, read_training_log, write_training_log
from tests.written_run import change_selection, metric, write_recipe


def test_a_run_is_read_in_the_order_of_the_method(run_dir):
    run = RunReader(run_dir)
    assert run.name == "demo"
    assert run.selected_variants == list(run.selections) == ["ignoring", "forgetting"]
    assert list(run.curves) == ["full", "ignoring", "forgetting"]
    assert run.preferred_variant == "forgetting"
    found = [(e.variant, e.task) for e in run.evaluations]
    variants = ("base", "full", "ignoring", "forgetting")
    assert found == [(v, task) for v in variants for task in ("boolq", "heldout")]
    assert [cost.name for cost in run.costs][:3] == ["prepare", "reference", "score"]
    assert in_order(["b", "full", "a", "base"]) == ["base", "full", "a", "b"]


def test_variants_that_the_recipe_dropped_are_left_out(run_dir):
    write_recipe(run_dir, {"ignoring": {}})
    run = RunReader(run_dir)
    assert run.selected_variants == list(run.curves) == ["ignoring"]
    assert {e.variant for e in run.evaluations} == {"base", "ignoring"}


def test_what_is_not_there_is_left_out(run_dir):
    for name in ("selection", "models", "evaluation", "data", "manifest.json"):
        path = run_dir / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    run = RunReader(run_dir)
    assert (run.data, run.costs, run.selections, run.curves) == (None, [], {}, {})
    assert (run.evaluations, run.preferred_variant) == ([], None)


def test_a_folder_without_a_recipe_is_no_run(tmp_path):
    with pytest.raises(InputError, match="not a run directory"):
        RunReader(tmp_path)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_result_that_is_not_finite_is_written_as_json_and_read_as_nan(tmp_path, value):
    groups = {"a": Group(num_items=2, metrics={"loss": metric(1.5, None, False)})}
    metrics = {"loss": metric(value, 0.5, False)}
    result = TaskResult(task="a/b c", num_items=4, metrics=metrics, groups=groups, notes=["n"])
    write_result(tmp_path, "full", result)
    file = layout.result_file(tmp_path, "a/b c")
    assert file.name == "a_b_c.json"
    assert "NaN" not in file.read_text()
    assert "Infinity" not in file.read_text()
    (found,) = read_results(tmp_path)
    assert math.isnan(found.metrics["loss"].value)
    assert found.model_copy(update={"metrics": {}}) == result.of_variant("full").model_copy(
        update={"metrics": {}}
    )
    write_result(tmp_path, "own", read_result(file))
    assert read_result(file).variant == "own"


def test_a_training_log_is_read_with_nan_where_nothing_was_logged(tmp_path):
    entries = [{"step": 1, "positive_loss": 2.0, "lambda": 0.5}, {"step": 3, "grad_norm": None}]
    write_training_log(tmp_path, entries)
    curve = read_training_log(tmp_path)
    assert curve.steps.tolist() == [1, 3]
    np.testing.assert_array_equal(curve.positive_loss, [2.0, np.nan])
    np.testing.assert_array_equal(curve.lam, [0.5, np.nan])
    np.testing.assert_array_equal(curve.grad_norm, [np.nan, np.nan])


def test_parts_hold_the_polarity_that_was_written(run_dir):
    samples = Samples.read(layout.train_file(run_dir))
    file = layout.polarity_file(layout.selection_dir(run_dir, "forgetting"))
    polarity, starts = read_polarity(file, samples.fingerprint)
    assert starts.tolist() == samples.response_starts.tolist()
    for scores in ((), ("base_log_probs",)):
        parts = list(selected_parts(run_dir, "forgetting", scores))
        assert np.concatenate([p.polarity for p in parts]).tolist() == polarity.tolist()
        assert sum(len(p.samples) for p in parts) == len(samples)
        assert all(p.scores.keys() == set(scores) for p in parts)
    assert all((p.polarity == 1).all() for p in selected_parts(run_dir, None))


@pytest.mark.parametrize(
    ("summary", "folder", "stage"),
    [(DataSummary, layout.data_dir, "prepare"), (SelectionSummary, None, "select")],
)
@pytest.mark.parametrize("damage", ["", "{", "[]", "{}", '{"max_length": "x"}', None])
def test_a_damaged_summary_names_its_file_and_its_stage(run_dir, summary, folder, stage, damage):
    place = folder(run_dir) if folder else layout.selection_dir(run_dir, "forgetting")
    file = layout.summary_file(place)
    assert summary.load(place) == summary.model_validate_json(file.read_bytes())
    if damage is None:
        file.unlink()
    else:
        file.write_text(damage)
    with pytest.raises(InputError, match=rf"summary\.json cannot be read.*forgetting {stage}"):
        summary.load(place)


def test_a_measure_that_nobody_knows_is_refused(run_dir):
    change_selection(run_dir, quality="from_the_future")
    with pytest.raises(InputError, match="from_the_future"):
        RunReader(run_dir).selection("forgetting")
