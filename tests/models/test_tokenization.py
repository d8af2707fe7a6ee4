"""A recipe's template, its name, its date and its system role reach the tokens."""

from __future__ import annotations

import shutil

import pytest

from forgetting.config import load_recipe
from forgetting.data.records import Record
from forgetting.data.sources import Origin
from forgetting.errors import InputError
from forgetting.formats import Message, Unusable
from forgetting.models.tokenization import load_tokenization
from tests.conftest import byte_tokenizer
from tests.data.families import FAMILIES, out, turns

TURN = out(r"m.role + ': ' + m.content + eos_token + '\n'")
DATED = turns(TURN, TURN, start=out(r"strftime_now('%d %b %Y') + '\n'"), end=out("'assistant: '"))
RECORD = Record((Message("user", "q"), Message("assistant", "r")), "s", Origin("s", 1))


@pytest.fixture
def recipe_of(write_recipe, tiny_model, tmp_path):
    """A function from a tokenizer's chat template and overrides to a recipe."""

    def made(template, *overrides):
        folder = shutil.copytree(tiny_model, tmp_path / "model", dirs_exist_ok=True)
        tokenizer = byte_tokenizer()
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folder)
        return load_recipe(write_recipe(), [f"model.name_or_path={folder}", *overrides])

    return made


def text_of(recipe, some=RECORD, today=None):
    tokens = load_tokenization(recipe, today)
    return tokens.tokenizer.decode(tokens.encode(some).input_ids)


def test_a_named_template_is_used(recipe_of):
    named = {"default": turns(TURN, TURN), "rag": "rag: " + turns(TURN, TURN)}
    assert text_of(recipe_of(named)).startswith("user: q")
    assert text_of(recipe_of(named, "model.template_name=rag")).startswith("rag:user: q")
    with pytest.raises(InputError, match=r"Set model\.template_name to one of default, rag"):
        load_tokenization(recipe_of(named, "model.template_name=tools"))
    with pytest.raises(InputError, match="either `chat_template` or `template_name`"):
        recipe_of(named, "model.template_name=rag", "model.chat_template=plain")


def test_the_date_is_the_recipes_or_else_the_given_one(recipe_of):
    assert text_of(recipe_of(DATED), today="2026-01-31").startswith("31 Jan 2026\n")
    dated = recipe_of(DATED, "model.template_date=2020-02-29")
    assert text_of(dated, today="2026-01-31").startswith("29 Feb 2020\n")
    with pytest.raises(InputError, match=r"model\.template_date: .* Remove the setting"):
        load_tokenization(recipe_of(turns(TURN, TURN), "model.template_date=2020-02-29"))


def test_system_text_is_folded_if_the_recipe_says_so(recipe_of):
    some = Record((Message("system", "Be brief."), *RECORD.messages), "s", Origin("s", 1))
    template = FAMILIES["gemma"].template
    with pytest.raises(Unusable, match=r"Set model\.system_role: fold"):
        text_of(recipe_of(template), some)
    folded = text_of(recipe_of(template, "model.system_role=fold"), some)
    assert "user\nBe brief.\n\nq<end_of_turn>" in folded
