"""Where turns are in rendered text, and which records and templates are refused."""

from __future__ import annotations

from datetime import date

import pytest

from forgetting.data.encoding import SpecialTokens
from forgetting.data.jinja import reads_clock
from forgetting.data.templates import PLAIN, ChatTemplate
from forgetting.errors import InputError
from forgetting.formats import Unusable
from tests.data.families import FAMILIES, out, record, text_record, tokenizer_of, turns

CHATML = FAMILIES["chatml"].template


def chat_template(source, marks=("<|im_start|>", "<|im_end|>"), **options):
    tokenizer = tokenizer_of("merging", *marks)
    options = {"today": date(2026, 1, 31), **options}
    return ChatTemplate(tokenizer, SpecialTokens(tokenizer), source, **options)


def spans_of(rendering):
    """The labeled texts."""
    return [rendering.text[span.start : span.end] for span in rendering.turns]


def family(name, **options):
    given = FAMILIES[name]
    options = {"system_role": given.system_role, **options}
    return chat_template(given.template or PLAIN, given.marks, **options)


def test_a_turn_that_the_template_changes_in_history_is_context():
    rendering = family("qwen-3").render(
        record("2+2?", "<think>\nTwo and two.\n</think>\n\n4.", "And 3+3?", "<think>x</think>6.")
    )
    assert spans_of(rendering) == ["<think>\nx\n</think>\n\n6.<|im_end|>"]
    assert rendering.num_context_turns == 1
    assert "Two and two" not in rendering.text


def test_a_prompt_that_the_template_changes_in_history_makes_its_response_context():
    # The system text belongs to the last question, as in Mistral's templates.
    template = (
        "{%- if messages[0].role == 'system' -%}{%- set system = messages[0].content -%}"
        "{%- set rest = messages[1:] -%}{%- else -%}{%- set system = none -%}"
        "{%- set rest = messages -%}{%- endif -%}{{- bos_token -}}{%- for m in rest -%}"
        "{%- if m.role == 'user' -%}{{- '[INST] ' -}}"
        "{%- if system is not none and loop.index0 >= rest | length - 2 -%}{{- system + ' ' -}}"
        "{%- endif -%}{{- m.content + '[/INST]' -}}"
        "{%- else -%}{{- ' ' + m.content + eos_token -}}{%- endif -%}{%- endfor -%}"
    )
    rendering = chat_template(template).render(record("a", "b", "c", "d", system="be"))
    assert rendering.text == "<s>[INST] a[/INST] b</s>[INST] be c[/INST] d</s>"
    assert spans_of(rendering) == [" d</s>"]
    assert rendering.num_context_turns == 1
    rendering = chat_template(template).render(record("a", "b", "c", "d"))
    assert spans_of(rendering) == [" b</s>", " d</s>"]
    assert rendering.num_context_turns == 0


def test_a_turn_that_the_template_drops_is_context():
    template = CHATML.replace("for m in messages", "for m in messages[-2:]").replace(
        "add_generation_prompt", "add_generation_prompt and messages | length"
    )
    # Of the turns before a response only the question is left; the prompt for it holds two turns.
    template = template.replace(
        "messages[-2:]", "(messages[-1:] if add_generation_prompt else messages[-2:])"
    )
    rendering = chat_template(template).render(record("a", "one", "b", "two"))
    assert spans_of(rendering) == ["two<|im_end|>"]
    assert "one" not in rendering.text
    assert rendering.num_context_turns == 1


def test_a_response_is_labeled_from_where_it_and_its_prompt_part():
    rendering = family("deepseek-r1").render(record("<b>?", "<b>."))
    assert spans_of(rendering) == ["<b>.</s>"]
    assert rendering.has_other_prompt
    assert not family("chatml").render(record("a", "b")).has_other_prompt


def test_reasoning_that_the_prompt_opens_is_labeled_after_it():
    template = turns(
        out("'<|User|>' + m.content"),
        out("'<|Assistant|>' + m.content + eos_token"),
        end=out(r"'<|Assistant|><think>\n'"),
    )
    rendering = chat_template(template).render(record("a", "<think>\nb\n</think>\nc"))
    assert spans_of(rendering) == ["b\n</think>\nc</s>"]
    assert not rendering.has_other_prompt


@pytest.mark.parametrize("name", ["gemma", "no system"])
def test_system_text_is_folded_into_the_first_user_turn_if_asked(name):
    silent = CHATML.replace("for m in messages", "for m in messages if m.role != 'system'")
    source = FAMILIES["gemma"].template if name == "gemma" else silent
    marks = FAMILIES["gemma" if name == "gemma" else "chatml"].marks
    some = record("Hi", "Yo.", system="Be kind.")
    with pytest.raises(Unusable, match=r"Set model\.system_role: fold"):
        chat_template(source, marks).render(some)
    folded = chat_template(source, marks, system_role="fold")
    assert "user\nBe kind.\n\nHi<" in folded.render(some).text
    assert (
        folded.render(record("Hi", "Yo.", system=" ")).text
        == folded.render(record("Hi", "Yo.")).text
    )
    assert chat_template(source, marks).render(record("Hi", "Yo.")).text


def test_the_clock_stands_still():
    assert "Today Date: 31 Jan 2026\n" in family("llama-3").render(record("a", "b")).text
    assert reads_clock(FAMILIES["llama-3"].template)
    assert not reads_clock(CHATML)


def test_written_out_special_tokens_are_found_and_change_no_position():
    template = family("llama-3")
    clean = template.render(record("a  b", "c  d"))
    rendering = template.render(record(" a </s><|eot_id|> b", "c <|eot_id|> d\n", system="<s>"))
    assert spans_of(rendering) == ["c <|eot_id|> d<|eot_id|>"]
    found = [rendering.text[start:end] for start, end in rendering.literals]
    assert found == ["<s>", "</s>", "<|eot_id|>", "<|eot_id|>"]
    assert clean.literals == ()
    as_tokens = family("llama-3", literal_special_tokens=False)
    assert as_tokens.render(record("a </s>", "b")).literals == ()
    text = template.render(text_record("x</s>y"))
    assert (text.text, text.literals, spans_of(text)) == ("x</s>y</s>", ((1, 5),), ["x</s>y</s>"])


def test_noise_is_where_its_characters_are():
    def marked(name, response, span):
        rendering = family(name).render(record("q", response, noise_spans=(span,)))
        return [rendering.text[start:end] for start, end in rendering.noise]

    assert marked("chatml", "  a cat", (4, 7)) == ["cat"]
    assert marked("llama-3", "  a cat ", (4, 7)) == ["cat"]
    assert marked("llama-2", " a cat ", (3, 8)) == ["cat", "</s>"]
    assert marked("llama-3", " a cat ", (0, 1)) == []
    # The text of the template is not taken for that of the response.
    assert marked("qwen-3", "think", (0, 5)) == ["think"]
    assert marked("qwen-3", "<think>a b</think>\n c", (7, 10)) == ["a b"]
    assert marked("qwen-3", "<think>a b</think>\n c", (9, 21)) == ["b\n</think>\n\n c"]
    assert marked("glm", "a cat", (5, 6)) == ["<|user|>"]
    assert marked("chatml", "a </s> cat", (7, 10)) == ["cat"]


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (CHATML.replace("m.content", "m.content.split('#')[0]"), "drops or changes the text"),
        (CHATML.replace("m.content", "m.content | replace('#', '') | string"), "drops or changes"),
        (CHATML.replace("m.content", "(1 // (m.content != '#')) * m.content"), "fails"),
        (CHATML + "{{ raise_exception('no') if messages[0].content == '#' }}", "fails: no"),
    ],
)
@pytest.mark.parametrize("side", [0, 1])
def test_a_record_that_the_template_cannot_render_is_unusable(template, reason, side):
    if "messages[0]" in template and side:
        return
    made = chat_template(template)
    contents = ["a", "b"]
    assert made.render(record(*contents)).text
    contents[side] = "#"
    with pytest.raises(Unusable, match=reason):
        made.render(record(*contents))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages[0].content }}</s>", "drops or changes the text of the response"),
        ("{{ messages[0].content }}{{ messages[-1].content | upper }}</s>", "drops or changes"),
        ("{{ raise_exception('no') }}", "fails: no"),
        ("{% for %}", "is not valid Jinja"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(template, message):
    with pytest.raises(InputError, match=message) as caught:
        chat_template(template)
    assert "model.chat_template" in str(caught.value)


def test_a_template_that_fails_for_an_empty_prompt_says_so():
    template = chat_template("{{- raise_exception('empty') if not messages[0].content -}}" + CHATML)
    with pytest.raises(InputError, match=r"cannot render an empty user turn.*: empty"):
        template.render_empty_prompt()
    assert chat_template(CHATML).render_empty_prompt() == (
        "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n"
    )
