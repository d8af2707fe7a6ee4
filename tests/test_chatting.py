"""`forgetting chat`: a variant of a run answers as it was trained."""

from __future__ import annotations

import io
import json

import pytest

from forgetting.chatting import open_chat
from forgetting.cli import main
from forgetting.errors import InputError
from forgetting.rundir import layout
from forgetting.rundir.answer_sheets import read_answer_sheet

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("restored_logging")]


def user(text):
    return [{"role": "user", "content": text}]


def instruction(prompt):
    """What a prompt of the tiny corpus asks, from its plain template."""
    return prompt.split("<|user|>\n")[1].split("\n<|assistant|>")[0]


def test_it_answers_held_out_prompts_as_the_evaluation_did(finished_run):
    _, run = finished_run
    for variant in ("base", "forgetting"):
        sheet = read_answer_sheet(layout.evaluation_dir(run, variant))
        model = open_chat(run, variant)
        for each in sheet.answers[:3]:
            answer = model.answer(user(instruction(each.prompt)))
            # The evaluation keeps to the length of the corpus, and to a batch.
            assert answer.startswith(each.answer.strip()[:20])


@pytest.mark.parametrize("as_json", [False, True])
def test_every_line_of_a_pipe_is_a_prompt_of_its_own(finished_run, monkeypatch, capsys, as_json):
    _, run = finished_run
    lines = ["What is blue?", "", "What is blue?", "And red?"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    options = ["--variant", "full", "--max-tokens", "3", *(["--json"] if as_json else [])]
    assert main(["chat", str(run), *options]) == 0
    out = capsys.readouterr().out
    model = open_chat(run, "full", max_new_tokens=3)
    answers = [model.answer(user(line)) for line in lines if line]
    if not as_json:
        assert out == "".join(f"{answer}\n" for answer in answers)
        return
    found = [json.loads(line) for line in out.splitlines()]
    assert found == [
        {"variant": "full", "prompt": prompt, "answer": answer}
        for prompt, answer in zip([line for line in lines if line], answers, strict=True)
    ]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_conversation_in_a_terminal_keeps_its_turns(finished_run, monkeypatch, capsys):
    _, run = finished_run
    seen = []
    monkeypatch.setattr(
        "forgetting.chatting.Chat.answer",
        lambda self, turns: seen.append([t["content"] for t in turns]) or f"answer {len(seen)}",
    )
    monkeypatch.setattr("sys.stdin", Terminal("one\ntwo\n\n/new\nthree\n/exit\nfour\n"))
    assert main(["chat", str(run), "--variant", "ignoring"]) == 0
    assert seen == [["one"], ["one", "answer 1", "two"], ["three"]]
    out = capsys.readouterr().out
    assert out.startswith("ignoring answers.")
    assert "answer 3" in out


def test_the_default_is_what_the_report_recommends(finished_run):
    _, run = finished_run
    assert open_chat(run).variant == "full"


def test_what_is_not_there_is_said(finished_run, tmp_path):
    _, run = finished_run
    with pytest.raises(InputError, match=r"has no variant forgeting\. Did you mean forgetting\?"):
        open_chat(run, "forgeting")
    with pytest.raises(InputError, match=r"not a run directory"):
        open_chat(tmp_path)
    (tmp_path / "recipe.yaml").write_text(layout.recipe_file(run).read_text())
    with pytest.raises(InputError, match=r"full is not trained in .* Run `forgetting run"):
        open_chat(tmp_path, "full")


def test_a_conversation_that_is_too_long_is_refused(finished_run):
    _, run = finished_run
    with pytest.raises(InputError, match=r"has \d+ tokens, and the model can read \d+"):
        open_chat(run, "base").answer(user("word " * 3000))


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_prompts_that_are_not_utf_8_are_refused(finished_run, monkeypatch, capsys, errors):
    _, run = finished_run
    lines = io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8", errors=errors)
    monkeypatch.setattr("sys.stdin", lines)
    assert main(["chat", str(run), "--variant", "base"]) == 2
    assert "the prompt is not UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_terminal_does_not_obey_an_answer(finished_run, monkeypatch, capsys, is_terminal):
    _, run = finished_run
    hostile = "a\x1b[2J\x1b]0;title\x07\u202eb"
    monkeypatch.setattr("forgetting.chatting.Chat.answer", lambda self, turns: hostile)
    lines = "hello\n"
    monkeypatch.setattr("sys.stdin", Terminal(lines) if is_terminal else io.StringIO(lines))
    if not is_terminal:
        monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert main(["chat", str(run), "--variant", "base"]) == 0
    shown = capsys.readouterr().out
    assert "a⟨U+001B⟩[2J" in shown
    assert not {"\x1b", "\x07", "\u202e"}.intersection(shown)
