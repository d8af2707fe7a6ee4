"""Cells of the evidence: recipes that the product accepts, and corpora of the asked size."""

from __future__ import annotations

import json

import pytest

from experiments.real.__main__ import main
from experiments.real.cells import (
    SHORT,
    Cell,
    all_cells,
    large_cells,
    make_recipe,
    quick_cells,
    write_corpus,
)
from experiments.real.records import load_records
from forgetting.errors import InputError
from forgetting.method import MEASURES
from forgetting.studies import measures


def write_alpaca(folder, number, ending=""):
    """Records of which every other one has an ending."""
    train = folder / "train"
    (train / "flan_v2_cot").mkdir(parents=True)
    rows = [
        {
            "instruction": f"Say {i}",
            "input": "",
            "output": f"The number {i} is what you want." + ending * (i % 2),
        }
        for i in range(number)
    ]
    (train / "alpaca_data.json").write_text(json.dumps(rows))
    for name in ("creak", "gsm8k", "qasc", "strategyqa"):
        line = f"Is this a question of {name} that is long enough?\tyes\tIt is, since it is."
        (train / "flan_v2_cot" / f"{name}_train.tsv").write_text(line)
    return folder


def test_names_are_unique_and_recipes_are_valid(tmp_path):
    cells = [*all_cells(), *large_cells()]
    assert len({cell.name for cell in cells}) == len(cells)
    for cell in [*cells, *quick_cells()]:
        recipe = make_recipe(cell, tmp_path / "corpus.jsonl", cell.num_records, tmp_path)
        assert recipe.data.num_train == cell.num_train
        assert recipe.seed == cell.seed


@pytest.mark.parametrize("cells", [all_cells, large_cells])
def test_the_paper_cell_has_the_settings_of_the_paper(tmp_path, cells):
    cell = next(cell for cell in cells() if cell.task == "paper")
    recipe = make_recipe(cell, tmp_path / "corpus.jsonl", cell.num_records, tmp_path)
    training = recipe.training
    assert training.lora is not None
    assert (training.lora.rank, training.lora.alpha) == (64, 16)
    assert (training.learning_rate, training.batch_size, training.epochs) == (1e-4, 24, 1)
    forgetting = recipe.variants["forgetting"]
    assert forgetting.selection.rho == 0.7
    assert forgetting.selection.quality == "influence"
    assert (forgetting.forgetting.term, forgetting.forgetting.t_max) == ("ga", 0.25)


def test_only_small_trainings_leave_long_records_out(tmp_path):
    data = write_alpaca(tmp_path / "data", 700, ending=" It is a long answer." * 10)
    lengths = {}
    for is_large in (False, True):
        cell = Cell("training", "alpaca", 0.0, num_train=200, is_large=is_large)
        file = tmp_path / f"{is_large}.jsonl"
        write_corpus(cell, data, file)
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        lengths[is_large] = max(len(row["completion"]) for row in rows)
    assert lengths[False] <= SHORT < lengths[True]


def test_a_corpus_that_is_too_small_gives_fewer_samples(tmp_path):
    cell = Cell("finding", "oasst", 0.15, num_train=400, num_reference=100)
    assert make_recipe(cell, tmp_path / "c.jsonl", 350, tmp_path).data.num_train == 250


def test_measures_without_a_reference_do_not_need_one():
    assert "influence" not in measures(has_reference=False)
    assert {"base_loss", "entropy_gap", "detector"} <= set(measures(has_reference=False))
    assert measures(has_reference=True) == list(MEASURES)


def test_the_corpus_is_written_with_its_noise(tmp_path):
    data = write_alpaca(tmp_path / "data", 700)
    cell = Cell("training", "alpaca", 0.25, num_train=100, num_reference=20, num_heldout=40)
    write_corpus(cell, data, tmp_path / "corpus.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "corpus.jsonl").read_text().splitlines()]
    assert len(rows) == 160
    assert sum(bool(row["noise_spans"]) for row in rows) == 40
    assert all((row["noise_kind"] is None) == (not row["noise_spans"]) for row in rows)


@pytest.mark.parametrize("number", [12, 450])
def test_a_small_corpus_keeps_all_but_the_records_that_are_swapped_in(tmp_path, number):
    data = write_alpaca(tmp_path / "data", number)
    write_corpus(Cell("finding", "alpaca", 0.3), data, tmp_path / "corpus.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "corpus.jsonl").read_text().splitlines()]
    records = load_records(data, "alpaca")
    num_outside = number // 10
    assert [row["prompt"] for row in rows] == [
        record.prompt for record in records[: min(400, number - num_outside)]
    ]
    swapped = {row["completion"] for row in rows if row["noise_kind"] == "swapped"}
    assert swapped
    assert swapped <= {record.response for record in records[-num_outside:]}


def test_every_answer_to_an_opening_question_is_a_record(tmp_path):
    def turn(text: str, role: str, *replies: dict) -> dict:
        return {"text": text, "role": role, "replies": list(replies)}

    deeper = turn("And then?", "prompter", turn("Left out.", "assistant"))
    trees = [
        turn("What?", "prompter", turn("This.", "assistant", deeper), turn("That.", "assistant")),
        # 600 characters, more than 1,500 bytes.
        turn("何" * 600, "prompter", turn("Too long a question.", "assistant")),
    ]
    (tmp_path / "train").mkdir()
    lines = "\n".join(json.dumps({"prompt": tree}) for tree in trees)
    (tmp_path / "train" / "oasst2_filtered.jsonl").write_text(lines)
    records = load_records(tmp_path, "oasst")
    assert {(record.prompt, record.response) for record in records} == {
        ("What?", "This."),
        ("What?", "That."),
    }


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"alpaca_data\.json is missing"):
        write_corpus(Cell("finding", "alpaca", 0.0), tmp_path, tmp_path / "corpus.jsonl")


def test_one_command_a_cell(tmp_path, capsys):
    output = tmp_path / "real"
    assert main([str(tmp_path), "--quick", "--list", "--output", str(output)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(quick_cells())
    assert all("--quick" in line and line.split()[-1] in line for line in lines)
    assert main([str(tmp_path), "--cell", "finding-alpaca-16-1", "--output", str(output)]) == 2


def test_a_mixed_corpus_has_two_records_of_alpaca_for_each_of_dolly(tmp_path):
    data = write_alpaca(tmp_path / "data", 60)
    rows = [{"instruction": f"Dolly {i}", "input": "", "output": "Yes."} for i in range(40)]
    (data / "train" / "dolly_3k.json").write_text(json.dumps(rows))
    prompts = [record.prompt for record in load_records(data, "mixed")]
    assert len(prompts) == len(set(prompts)) == 90
    assert all(
        prompt.startswith("Dolly") == (place % 3 == 2) for place, prompt in enumerate(prompts)
    )
