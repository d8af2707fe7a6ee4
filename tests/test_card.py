"""The card says what was done, and nothing in a recipe breaks its form."""

import pytest
import yaml

from forgetting.card import model_card
from forgetting.recipe import load_recipe

SELECTION = {
    "quality": "influence",
    "granularity": "token",
    "rho": 0.7,
    "num_tokens": 2000,
    "num_positive": 1400,
    "num_negative": 500,
    "num_ignored": 100,
}


def parts(card):
    _, metadata, text = card.split("---\n", 2)
    return yaml.safe_load(metadata), text


@pytest.fixture
def recipe(write_recipe):
    return load_recipe(write_recipe())


def test_a_forgetting_model_names_its_selection_and_its_term(recipe):
    metadata, text = parts(model_card(recipe, "forgetting", SELECTION, {"steps": 1234}))
    assert metadata == {"library_name": "peft", "tags": ["forgetting", "sft"]}
    assert "| negative | 500 | 25.0 % |" in text
    assert "unlearned the negative ones" in text
    assert "term `ga`, lambda by the schedule `linear` with t_min 0.0001 and t_max 0.25" in text
    assert "- steps: 1,234" in text


def test_a_model_that_learned_all_has_no_selection(recipe):
    _, text = parts(model_card(recipe, "full", None, {}))
    assert "| negative" not in text
    assert "Unlearning" not in text
    assert "plain supervised fine-tuning" in text


def test_the_recipe_in_the_card_is_the_recipe(recipe):
    _, text = parts(model_card(recipe, "full", None, {}))
    written = text.split("```yaml\n")[1].split("\n```")[0]
    assert yaml.safe_load(written) == recipe.model_dump(mode="json")


def test_a_hub_model_is_named_to_the_hub(write_recipe):
    recipe = load_recipe(write_recipe(), ["model.name_or_path=org/model", "training.lora=null"])
    metadata, text = parts(model_card(recipe, "full", None, {}))
    assert metadata["base_model"] == "org/model"
    assert metadata["library_name"] == "transformers"
    assert "A model fine-tuned from `org/model`" in text


def test_a_merged_model_is_no_adapter(write_recipe):
    recipe = load_recipe(write_recipe(), ["training.merge=true"])
    metadata, text = parts(model_card(recipe, "full", None, {}))
    assert metadata["library_name"] == "transformers"
    assert "A model fine-tuned from" in text


def test_backticks_in_a_recipe_do_not_end_its_block(recipe):
    hostile = recipe.model_copy(
        update={"model": recipe.model.model_copy(update={"name_or_path": "a`b/```c"})}
    )
    card = model_card(hostile, "full", None, {})
    assert "from `a'b/'''c` with" in card
    assert card.rstrip().endswith("\n````")


def test_a_run_writes_the_card_beside_the_weights(finished_run):
    _, path = finished_run
    for variant in ("full", "ignoring", "forgetting"):
        text = (path / "models" / variant / "README.md").read_text(encoding="utf-8")
        assert f"# tiny: {variant}" in text
        assert ("| negative |" in text) == (variant != "full")
