"""A saved recipe is overridden like the one that was saved."""

from __future__ import annotations

import pytest
import yaml

from forgetting.config import dump_recipe, load_recipe, shipped_recipes
from forgetting.errors import InputError
from forgetting.studies.grid import expand

VARIANTS = {
    "full": {},
    "ignoring": {"selection": {"rho": 0.5}},
    # Its own value is that of the section.
    "same": {"objective": "ignoring", "selection": {"rho": 0.7}},
    "forgetting": {"forgetting": {"term": "wga"}},
}


@pytest.fixture
def saved(tmp_path):
    """Saves a recipe as a run does; returns the file."""

    def do(recipe, name="saved"):
        file = tmp_path / f"{name}.yaml"
        file.write_text(dump_recipe(recipe), encoding="utf-8")
        return file

    return do


OVERRIDES = [
    "selection.rho=0.6",
    "selection.quality=base_loss",
    "forgetting.t_max=0.1",
    "forgetting.alpha=2.5",
    "forgetting.floor=0.2",
    "training.learning_rate=0.5",
    "training.merge=true",
    "training.lora.rank=3",
    "reference.epochs=7",
    "variants.ignoring.selection.rho=0.3",
    "variants.forgetting.forgetting.alpha=3",
]


@pytest.mark.parametrize("override", OVERRIDES)
def test_an_override_reaches_the_same_fields_of_a_saved_recipe(load, saved, override):
    recipe = load(
        training={"epochs": 2}, forgetting={"floor": 0.1}, variants=VARIANTS, name="saved"
    )
    once = saved(recipe)
    twice = saved(load_recipe(once), "twice")
    expected = load(
        override,
        training={"epochs": 2},
        forgetting={"floor": 0.1},
        variants=VARIANTS,
        name="saved",
    )
    assert expected != recipe
    assert load_recipe(once) == load_recipe(twice) == recipe
    assert load_recipe(once, [override]) == load_recipe(twice, [override]) == expected


@pytest.mark.parametrize("name", shipped_recipes())
def test_an_override_reaches_the_same_fields_of_a_saved_shipped_recipe(name, saved):
    overrides = ["training.learning_rate=0.5", "selection.keep_eos=false", "forgetting.t_max=0.1"]
    recipe = load_recipe(name)
    for override in overrides:
        try:
            expected = load_recipe(name, [override])
        except InputError:
            with pytest.raises(InputError, match="changes nothing"):
                load_recipe(saved(recipe), [override])
        else:
            assert load_recipe(saved(recipe), [override]) == expected


def test_a_saved_recipe_says_what_is_a_variants_own(load, saved):
    file = saved(load(training={"epochs": 2}, variants=VARIANTS, reference={"batch_size": 8}))
    written = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert [v.get("selection") for v in written["variants"].values()] == [
        None,
        {"rho": 0.5},
        {"rho": 0.7},
        None,
    ]
    assert written["variants"]["forgetting"]["forgetting"] == {"term": "wga"}
    assert "epochs" not in written["reference"]
    assert written["reference"]["batch_size"] == 8
    # Everything else is there, defaults too.
    assert written["selection"]["quality"] == "influence"
    assert written["training"]["weight_decay"] == 0


def test_a_grid_over_a_saved_recipe_has_a_variant_per_level(write_recipe, saved):
    grid = {"selection.rho": ["0.6", "0.8"]}
    path = write_recipe()
    of_saved = expand({"tiny": saved(load_recipe(path))}, grid)
    (run,), (expected,) = of_saved, expand({"tiny": path}, grid)
    assert list(run.recipe.variants) == list(expected.recipe.variants)
    assert "forgetting-rho-0.8" in run.recipe.variants
    # The recipe of a study's run, with variants of several levels, comes back as it was.
    assert load_recipe(saved(run.recipe, "run")) == run.recipe


@pytest.mark.parametrize(
    ("variants", "override", "reason"),
    [
        (
            {"full": {}, "ignoring": {"selection": {"rho": 0.5}}},
            "selection.rho=0.6",
            "selects tokens has its own selection.rho. Set variants.ignoring.selection.rho",
        ),
        ({"full": {}}, "selection.rho=0.6", "no variant of the recipe selects tokens"),
        ({"ignoring": {}}, "forgetting.t_max=0.6", "no variant of the recipe unlearns tokens"),
        (
            {"forgetting": {"forgetting": {"term": "wga"}}},
            "forgetting.beta=0.3",
            "the term wga has no parameter beta (forgetting)",
        ),
        (
            {"forgetting": {}},
            "variants.forgetting.forgetting.beta=0.3",
            "the term ga has no parameter beta",
        ),
        (
            {"forgetting": {"forgetting": {"schedule": "constant"}}},
            "forgetting.t_min=0.001",
            "the schedule constant does not read t_min (forgetting)",
        ),
        (
            {"ignoring": {"selection": {"threshold": "zero"}}},
            "selection.rho=0.6",
            "the threshold zero does not read rho (ignoring)",
        ),
        (
            {"ignoring": {"selection": {"threshold": "mixture"}}},
            "variants.ignoring.selection.rho=0.6",
            "the threshold mixture does not read rho",
        ),
        (
            {"ignoring": {"selection": {"by": "known"}}},
            "selection.rho=0.6",
            "by known does not read rho (ignoring)",
        ),
        (
            {"ignoring": {}, "forgetting": {}},
            "selection.posterior=0.6",
            "the threshold quantile does not read posterior (ignoring), ",
        ),
        ({"full": {}}, "variants.full.selection.rho=0.6", "full (full) selects no tokens"),
        (
            {"ignoring": {}},
            "variants.ignoring.forgetting.t_max=0.6",
            "ignoring (ignoring) unlearns no tokens",
        ),
        ({"full": {}}, "reference.epochs=2", "no variant of the recipe needs a reference model"),
        ({"full": {}}, "detector.copies=2", "no variant of the recipe uses the detector"),
    ],
)
def test_an_override_that_nothing_reads_is_refused(load, variants, override, reason):
    load(variants=variants)
    with pytest.raises(InputError) as caught:
        load(override, variants=variants)
    assert str(caught.value).startswith(f"{override} changes nothing: ")
    assert reason in str(caught.value)


def test_an_override_that_one_variant_reads_is_taken(load):
    selection = {"threshold": "mixture"}
    variants = {"ignoring": {"selection": selection}, "forgetting": {}}
    recipe = load("selection.rho=0.6", "selection.posterior=0.6", variants=variants)
    assert recipe.variants["forgetting"].selection.rho == 0.6
    assert recipe.variants["ignoring"].selection.posterior == 0.6


def test_an_override_of_a_section_that_is_a_name_keeps_the_name(load):
    recipe = load(
        "variants.full.loss.keep=0.5",
        "evaluation.tasks.0.limit=5",
        variants={"full": {"loss": "truncation"}},
        evaluation={"tasks": ["boolq"]},
    )
    assert recipe.variants["full"].loss.name == "truncation"
    assert recipe.variants["full"].loss.parameters == {"keep": 0.5}
    assert (recipe.evaluation.tasks[0].task, recipe.evaluation.tasks[0].limit) == ("boolq", 5)


def test_training_fields_of_a_given_reference_are_refused(load):
    reference = {"name_or_path": "some/reference"}
    load("reference.name_or_path=some/other", reference=reference)
    with pytest.raises(InputError, match="no reference model is trained"):
        load("reference.epochs=2", reference=reference)


def test_a_grid_that_nothing_reads_is_refused(write_recipe):
    path = write_recipe(variants={"full": {}, "ignoring": {"selection": {"rho": 0.5}}})
    with pytest.raises(InputError, match=r"selection\.rho=0\.6 changes nothing"):
        expand({"tiny": path}, {"selection.rho": ["0.6", "0.7"]})
