"""A study trains no more than it must, and every cell is what `forgetting run --set` would give."""

from __future__ import annotations

import pytest

from forgetting.config import dump_recipe, load_recipe
from forgetting.errors import InputError
from forgetting.studies.grid import expand, levels_of, read_grid


def variants(run):
    return list(run.recipe.variants)


def test_what_differs_after_scoring_shares_one_run(write_recipe):
    grid = {"seed": ["1", "2"], "selection.rho": ["0.6", "0.7"]}
    runs = expand({"tiny": write_recipe()}, grid)
    assert [run.name for run in runs] == ["tiny-seed-1", "tiny-seed-2"]
    assert [run.recipe.seed for run in runs] == [1, 2]
    # ignoring has a rho of its own, and full selects nothing.
    expected = ["full", "ignoring", "forgetting-rho-0.6", "forgetting-rho-0.7"]
    assert [variants(run) for run in runs] == [expected, expected]


def test_what_makes_no_difference_to_a_variant_trains_it_once(write_recipe):
    grid = {"forgetting.t_max": ["0.1", "0.2"], "selection.rho": ["0.6", "0.7"]}
    names = {"full": {}, "ignoring": {}, "forgetting": {}}
    (run,) = expand({"tiny": write_recipe(variants=names)}, grid)
    assert set(variants(run)) == {
        "full",
        *(f"ignoring-rho-{rho}" for rho in (0.6, 0.7)),
        *(f"forgetting-t_max-{t}-rho-{rho}" for t in (0.1, 0.2) for rho in (0.6, 0.7)),
    }
    levels = {cell.variant: cell.levels for cell in run.cells}
    assert len(levels) == len(run.cells) == 8
    assert levels["base"] == levels["full"] == {}
    assert levels["ignoring-rho-0.6"] == {"selection.rho": "0.6"}


@pytest.mark.parametrize("field", ["data.num_train", "training.learning_rate", "model.dtype"])
def test_what_the_scores_depend_on_is_a_run_of_its_own(write_recipe, field):
    levels = {"data.num_train": ["20", "24"], "training.learning_rate": ["0.001", "0.002"]}
    grid = {field: levels.get(field, ["float32", "bfloat16"])}
    runs = expand({"tiny": write_recipe()}, grid)
    assert len(runs) == 2
    assert all(cell.levels[field] == grid[field][i] for i in (0, 1) for cell in runs[i].cells)


def test_a_cell_is_the_recipe_with_its_levels_set(write_recipe):
    grid = {"seed": ["3"], "selection.rho": ["0.6", "0.8"], "forgetting.t_max": ["0.1", "0.2"]}
    path = write_recipe()
    (run,) = expand({"tiny": path}, grid)
    for cell in run.cells[1:]:
        levels = [f"{field}={value}" for field, value in cell.levels.items()]
        alone = load_recipe(path, ["seed=3", *levels])
        shared = run.recipe.variants[cell.variant]
        assert shared.objective == alone.variants[cell.name].objective
        if shared.objective != "full":
            assert shared.selection == alone.variants[cell.name].selection
        if shared.objective == "forgetting":
            assert shared.forgetting == alone.variants[cell.name].forgetting
        assert run.recipe.data == alone.data
        assert run.recipe.reference == alone.reference


def test_a_recipe_written_down_is_the_same_recipe(write_recipe, tmp_path):
    (run,) = expand({"tiny": write_recipe()}, {"selection.rho": ["0.6", "auto"]})
    file = tmp_path / "written.yaml"
    file.write_text(dump_recipe(run.recipe), encoding="utf-8")
    assert load_recipe(file).model_dump() == run.recipe.model_dump()


def test_names_are_those_of_folders_and_never_the_same(write_recipe):
    grid = {"evaluation.limit": ["1"], "training.lora": ["{rank: 4}", "{rank: 8}", "{rank: 9}"]}
    runs = expand({"../an odd/model": write_recipe()}, grid)
    names = {run.name for run in runs}
    assert len(names) == 3
    assert all("/" not in name and not name.startswith(".") for name in names)


def test_two_variants_never_share_a_name(write_recipe):
    fixed = {"objective": "ignoring", "selection": {"rho": 0.5}}
    path = write_recipe(variants={"forgetting": {}, "forgetting-rho-0.6": fixed})
    with pytest.raises(InputError, match="two variants would be named"):
        expand({"tiny": path}, {"selection.rho": ["0.6", "0.7"]})


def test_grid_reads_yaml_values():
    assert read_grid(["a.b=1e-4,0.50, 2", "c={x: 1, y: 2},null,true,[1, 2]"]) == {
        "a.b": ["0.0001", "0.5", "2"],
        "c": ["{x: 1, y: 2}", "null", "true", "[1, 2]"],
    }


def test_equal_values_are_one_level():
    assert levels_of([0.5, "0.50", 0.5]) == ["0.5"]


@pytest.mark.parametrize(
    "grid", [["a"], ["a="], ["=1"], ["a=[1"], ["a=1", "a=2"], ["a=2024-13-45"]]
)
def test_a_grid_that_is_none_is_refused(grid):
    with pytest.raises(InputError, match="--grid"):
        read_grid(grid)


def test_a_level_that_the_recipe_refuses_names_its_field(write_recipe):
    with pytest.raises(InputError, match="rho"):
        expand({"tiny": write_recipe()}, {"selection.rho": ["0.5", "1.5"]})
