"""The tokenizer of a run renders the prompts that were trained on."""

from __future__ import annotations

import shutil
from datetime import date
from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer
from transformers.utils.chat_template_utils import _compile_jinja_template

from forgetting.config import load_recipe
from forgetting.data.records import Record
from forgetting.data.sources import Origin
from forgetting.errors import InputError
from forgetting.formats import Message
from forgetting.models.prompting import (
    check_task_prompts,
    dated_template,
    folding_template,
    prompting_tokenizer,
    set_end_tokens,
)
from forgetting.models.tokenization import load_tokenization
from tests.conftest import byte_tokenizer, save_tiny_model
from tests.data.families import FAMILIES, SHARED, out, turns

CHATML = (
    "{%- for m in messages -%}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' -}}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)


def start_of_last_response(tokens):
    begin = len(tokens.labels)
    while tokens.labels[begin - 1] == -100:
        begin -= 1
    while tokens.labels[begin - 1] != -100:
        begin -= 1
    return begin


@pytest.mark.parametrize("template", ["plain", "file", None])
@pytest.mark.parametrize("has_prefix", [False, True])
def test_the_prompt_is_that_of_the_samples(template, has_prefix, write_recipe, tmp_path):
    from tokenizers.processors import TemplateProcessing

    model = save_tiny_model(tmp_path / "model")
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHATML if template is None else None
    if has_prefix:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    tokenizer.save_pretrained(model)
    (tmp_path / "chatml.jinja").write_text(CHATML)
    template = str(tmp_path / "chatml.jinja") if template == "file" else template
    changes = [f"model.name_or_path={model}", f"model.chat_template={template or 'null'}"]
    recipe = load_recipe(write_recipe(), changes)
    prompting_tokenizer(recipe).save_pretrained(tmp_path / "saved")
    saved = AutoTokenizer.from_pretrained(tmp_path / "saved")
    messages = (
        Message("user", "Is it?"),
        Message("assistant", "It is."),
        Message("user", "Why?"),
        Message("assistant", "So."),
    )
    tokens = load_tokenization(recipe).encode(Record(messages, "", Origin("", 1)))
    turns = [{"role": m.role, "content": m.content} for m in messages[:-1]]
    prompt = saved.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    assert prompt == tokens.input_ids[: start_of_last_response(tokens)]


@pytest.fixture
def recipe_of(write_recipe, tiny_model, tmp_path):
    """A function from a tokenizer's chat template, its marks and overrides to a recipe."""

    def made(template, marks=(), overrides=(), **sections):
        folder = shutil.copytree(tiny_model, tmp_path / "model", dirs_exist_ok=True)
        tokenizer = byte_tokenizer()
        tokenizer.add_special_tokens({"additional_special_tokens": list(marks)})
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folder)
        return load_recipe(write_recipe(**sections), [f"model.name_or_path={folder}", *overrides])

    return made


def saved_tokenizer(recipe, folder, day=None):
    prompting_tokenizer(recipe, day).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


TEMPLATES = {name: (family.template, family.marks) for name, family in FAMILIES.items()}
for file in sorted((SHARED / "cases").glob("*.jinja")):
    TEMPLATES[file.name] = (file.read_text(encoding="utf-8"), ())
CONVERSATIONS = {
    "one question": [("system", " Be brief.\n"), ("user", "Why?"), ("assistant", "So.")],
    "two questions": [
        ("system", "Be brief."),
        ("user", "Is it?"),
        ("assistant", "It is."),
        ("user", "\nWhy?"),
        ("assistant", "So."),
    ],
    "an empty system turn": [("system", " \n"), ("user", "Why?"), ("assistant", "So.")],
    "no system turn": [("user", "Why?"), ("assistant", "So.")],
}


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_saved_template_folds_the_system_turn_as_training_did(
    name, conversation, recipe_of, tmp_path
):
    template, marks = TEMPLATES[name]
    recipe = recipe_of(template, marks, ["model.system_role=fold"])
    spoken = CONVERSATIONS[conversation]
    day = "2026-01-31"
    messages = tuple(Message(role, content) for role, content in spoken)
    tokens = load_tokenization(recipe, day).encode(Record(messages, "", Origin("", 1)))
    saved = saved_tokenizer(recipe, tmp_path / "saved", day)
    given = [{"role": role, "content": content} for role, content in spoken]
    whole = saved.apply_chat_template(given)["input_ids"]
    # The template may not write the end mark of the last turn.
    assert whole[: len(tokens.input_ids)] == tokens.input_ids[: len(whole)]
    assert len(whole) >= len(tokens.input_ids) - 1
    if not tokens.has_other_prompt:
        prompt = saved.apply_chat_template(given[:-1], add_generation_prompt=True)["input_ids"]
        assert prompt == tokens.input_ids[: start_of_last_response(tokens)]


def test_a_folding_template_takes_content_in_parts_and_its_macros_see_it():
    source = (
        "{% macro first() %}{{ messages[0].content }}{% endmacro %}"
        "{{ first() }}|{% for m in messages %}{{ m.role }},{% endfor %}"
    )
    render = _compile_jinja_template(folding_template(source)).render
    parts = [{"type": "text", "text": "Be"}, {"type": "text", "text": " brief."}]
    system, user = {"role": "system", "content": parts}, {"role": "user", "content": "Why?"}
    assert render(messages=[system, user]) == "Be brief.\n\nWhy?|user,"
    image = {"role": "user", "content": [{"type": "image"}]}
    folded = [{"type": "text", "text": "Be brief.\n\n"}, {"type": "image"}]
    assert render(messages=[system, image]) == f"{folded}|user,"
    assert render(messages=[system]) == f"{parts}|system,"


@pytest.mark.parametrize(
    "source",
    [
        "\n  {% if true %}a{% endif %}\n b",
        "  {{ 'a' }}\n",
        "\n\na",
        " {%- if true -%} a{% endif %}",
    ],
)
def test_white_space_at_the_start_of_a_template_stays(source):
    rendered = {
        _compile_jinja_template(changed).render(messages=[{"role": "user", "content": "Why?"}])
        for changed in (source, folding_template(source), dated_template(source, date.today()))
    }
    assert len(rendered) == 1


DATED = turns(
    out("m.content"), out("m.content + eos_token"), start=out(r"strftime_now('%d %b %Y') + '\n'")
)


@pytest.mark.parametrize(
    "form", ["%d %b %Y", "%-d. %B %y", "%A, day %j of %G", "%Y-%m-%d %H:%M:%S", "100%% %%d %d", ""]
)
def test_a_dated_template_formats_its_day_as_python_does(form):
    day = date(2026, 3, 8)
    # In a macro and where the template asks for the function first, as Llama 3 does.
    source = (
        "  {% if strftime_now is defined %}{% set today = strftime_now(form) %}{% endif %}"
        "{% macro shown() %}{{ strftime_now(form) }}{% endmacro %}{{ today }}|{{ shown() }}"
    )
    found = _compile_jinja_template(dated_template(source, day)).render(form=form)
    assert found == f"{day.strftime(form)}|{day.strftime(form)}"


@pytest.mark.parametrize("role", ["keep", "fold"])
def test_a_saved_template_reads_the_clock_and_a_measuring_one_the_date_of_the_run(
    role, recipe_of, tmp_path
):
    turns = [{"role": "user", "content": "Why?"}]
    for overrides, expected in (
        ([], "31 Jan 2026\nWhy?"),
        (["model.template_date=2020-02-29"], "29 Feb 2020\nWhy?"),
    ):
        recipe = recipe_of(DATED, overrides=[*overrides, f"model.system_role={role}"])
        measuring = saved_tokenizer(recipe, tmp_path / "measuring", "2026-01-31")
        assert measuring.apply_chat_template(turns, tokenize=False) == expected
        prompt = saved_tokenizer(recipe, tmp_path / "saved").apply_chat_template(
            turns, tokenize=False
        )
        assert prompt.startswith(f"{date.today():%d %b %Y}\n")


def test_prompts_of_tasks_that_cannot_be_rendered_are_refused(recipe_of):
    told = {"apply_chat_template": True, "system_instruction": "Be brief.", "tasks": ["stones"]}
    gemma = FAMILIES["gemma"]
    # It fails for a system turn; the other one drops it.
    silent = turns(
        "{%- if m.role == 'user' -%}" + out("m.content") + "{%- endif -%}",
        out("m.content + eos_token"),
    )
    for template, marks in ((gemma.template, gemma.marks), (silent, ())):
        with pytest.raises(InputError, match=r"no system role\. Set model\.system_role: fold"):
            check_task_prompts(recipe_of(template, marks, evaluation=told))
        check_task_prompts(recipe_of(template, marks, ["model.system_role=fold"], evaluation=told))
        for name in ("tasks", "apply_chat_template", "system_instruction"):
            fewer = {key: value for key, value in told.items() if key != name}
            check_task_prompts(recipe_of(template, marks, evaluation=fewer))


def test_a_template_for_plain_texts_is_refused(recipe_of, tmp_path):
    (tmp_path / "texts.jsonl").write_text('{"text": "So."}\n')
    data = {"sources": [{"path": str(tmp_path / "texts.jsonl"), "format": "text"}]}
    told = {"apply_chat_template": True, "tasks": ["stones"]}
    with pytest.raises(InputError, match=r"no chat template\. Set evaluation\.apply_chat"):
        check_task_prompts(recipe_of(None, data=data, evaluation=told))
    check_task_prompts(recipe_of(DATED, data=data, evaluation=told))


def test_plain_texts_leave_the_tokenizer_as_it_is(write_recipe, tmp_path):
    recipe = load_recipe(write_recipe())
    assert prompting_tokenizer(recipe).chat_template is not None
    source = {**recipe.data.sources[0].model_dump(exclude_unset=True), "format": "text"}
    data = {**recipe.data.model_dump(exclude_unset=True), "sources": [source]}
    assert prompting_tokenizer(load_recipe(write_recipe(data=data))).chat_template is None


@pytest.mark.parametrize(
    ("own", "added", "expected"),
    [(None, [1], 1), (2, [2], 2), (2, [513, 2], [2, 513]), ([2, 7], [5, 2], [2, 7, 5])],
)
def test_a_model_keeps_its_end_tokens_and_gets_those_of_the_samples(own, added, expected):
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=own))
    set_end_tokens(model, added)
    assert model.generation_config.eos_token_id == expected
