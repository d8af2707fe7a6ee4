"""What ForgettingTrainer refuses although SFTTrainer takes it, as the documentation lists it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset, DatasetDict
from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig
from transformers import TrainingArguments
from trl import SFTConfig

from forgetting.training.refusals import refuse_sharded_sequences
from tests.contract.conftest import Case, documented, make_trainer
from tests.contract.test_features import lora


@dataclass(frozen=True)
class Refusal:
    """A script that stops at construction, with a message that says what to do."""

    listed: str
    """In the first column of the documentation's table."""
    case: Case
    message: str
    error: type[Exception] = ValueError

    def __str__(self) -> str:
        return f"{self.listed} {self.case.args or ''}"


def given(make: Callable[[], dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    return lambda model, folder: make()


def with_values(**columns: Any) -> Callable[[Any], Any]:
    return lambda data: data.map(lambda row: columns)


PROMPTS = (PromptTuningConfig, PromptEncoderConfig, PrefixTuningConfig)
SPLITTING = {"packing": True, "packing_strategy": "wrapped", "max_length": 32}

REFUSALS = [
    Refusal(
        "`SFTConfig`, `TrainingArguments`",
        Case("", others=given(lambda: {"args": SFTConfig("out", bf16=False, use_cpu=True)})),
        "must be a ForgettingConfig, got a SFTConfig",
        TypeError,
    ),
    Refusal(
        "`SFTConfig`, `TrainingArguments`",
        Case("", others=given(lambda: {"args": TrainingArguments("out", use_cpu=True)})),
        "must be a ForgettingConfig, got a TrainingArguments",
        TypeError,
    ),
    Refusal(
        "`DatasetDict`",
        Case("", change=lambda data: DatasetDict(train=data, test=data)),
        r"a DatasetDict with the splits train, test\. Pass one of them: train_dataset\['train'\]",
        TypeError,
    ),
    Refusal("images", Case("", form="text", change=with_values(images=[])), "for text only"),
    Refusal(
        "`input_ids` without `labels`",
        Case("", form="tokens", change=lambda data: data.remove_columns("labels")),
        "no column labels",
    ),
    Refusal('`loss_type="dft"`', Case("", {"loss_type": "dft"}), "Leave loss_type at 'nll'"),
    Refusal(
        "`label_smoothing_factor`, `compute_loss_func`",
        Case("", {"label_smoothing_factor": 0.1}),
        "label_smoothing_factor at 0",
    ),
    Refusal(
        "`label_smoothing_factor`, `compute_loss_func`",
        Case("", others=given(lambda: {"compute_loss_func": lambda *_, **__: None})),
        "compute_loss_func would bypass",
    ),
    Refusal(
        '`truncation_mode="keep_end"`',
        Case("", {"truncation_mode": "keep_end"}),
        "truncation_mode must be 'keep_start'",
    ),
    Refusal(
        "`average_tokens_across_devices=False`",
        Case("", {"average_tokens_across_devices": False}),
        "average_tokens_across_devices must be True",
    ),
    Refusal(
        "an adapter on `lm_head`", Case("", adapter=lora(target_modules=["lm_head"])), "lm_head"
    ),
    *[
        Refusal(
            "`padding_free` or `packing` with learned prompts",
            Case(
                "",
                args,
                "text",
                adapter=lambda config=config: config(task_type="CAUSAL_LM", num_virtual_tokens=3),
            ),
            "needs one sample per row",
        )
        for config in PROMPTS
        for args in ({"padding_free": True}, {"packing": True, "max_length": 40})
    ],
    Refusal(
        "`npo`, `simnpo` and packing that splits samples",
        Case("", {"term": "simnpo", **SPLITTING}, "text"),
        "splits samples. Set 'bfd'",
    ),
    Refusal(
        "`npo`, `simnpo` and packing that splits samples",
        Case("", {"term": "npo", **SPLITTING}, "text", with_values(base_log_probs=-1.0)),
        "splits samples. Set 'bfd'",
    ),
]


@pytest.mark.parametrize("refusal", REFUSALS, ids=str)
def test_what_would_distort_the_objective_is_refused(refusal, models, tmp_path):
    with pytest.raises(refusal.error, match=refusal.message):
        make_trainer(refusal.case, True, models, tmp_path)


SHARDED = "tensor, context or sequence parallelism"


@pytest.mark.parametrize("name", ["tp", "cp", "sp"])
def test_processes_that_share_a_sample_are_refused(name):
    parallelism = SimpleNamespace(**{f"{name}_enabled": True})
    with pytest.raises(ValueError, match=f"{name}_size above 1 splits samples"):
        refuse_sharded_sequences(parallelism)
    refuse_sharded_sequences(SimpleNamespace(tp_enabled=False))


def test_the_documentation_lists_the_refusals():
    listed = [row[0].replace("`", "") for row in documented("refused")]
    tested = {refusal.listed.replace("`", "") for refusal in REFUSALS} | {SHARDED}
    assert sorted(listed) == sorted(tested)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda data: None, ValueError, "train_dataset is missing. Pass a Dataset"),
        (list, TypeError, "must be a Dataset or an IterableDataset, got a list"),
        (lambda data: data.remove_columns("polarity"), ValueError, "no column polarity"),
        *[
            (change, ValueError, "train_dataset has no rows")
            for change in (
                lambda data: data.select([]),
                lambda data: data.filter(lambda row: False),
                lambda data: data.select([]).with_transform(lambda batch: batch),
                lambda data: data.to_iterable_dataset().filter(lambda row: False),
            )
        ],
    ],
)
def test_other_data_is_refused_with_a_reason(change, error, message, models, tmp_path):
    with pytest.raises(error, match=message):
        make_trainer(Case("", change=change), True, models, tmp_path)


SKIP = {"dataset_kwargs": {"skip_prepare_dataset": True}}
BAD = [
    ("polarity", 0.5, r"holds 0.5 in polarity, which takes -1, 0 and \+1"),
    ("polarity", 5, "holds 5.0 in polarity"),
    ("token_weights", -1.0, "holds -1.0 in token_weights, which takes finite numbers of at least"),
]


def with_bad(column: str, value: float, spread: bool) -> Callable[[Any], Any]:
    """Changes the third row of the data."""

    def change(row, index):
        is_bad = index == 2
        values = value if is_bad else 1.0
        return {column: [values] * len(row["labels"]) if spread else values}

    def changed(data):
        known = data.remove_columns([name for name in (column,) if name in data.column_names])
        return known.map(change, with_indices=True)

    return changed


@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize("args", [{}, SKIP], ids=["prepared", "skipped"])
@pytest.mark.parametrize(("column", "value", "message"), BAD)
def test_values_out_of_range_name_their_row(column, value, message, args, spread, models, tmp_path):
    case = Case("", args, "tokens", with_bad(column, value, spread))
    with pytest.raises(ValueError, match=f"row 2 of the dataset {message}"):
        make_trainer(case, True, models, tmp_path)


@pytest.mark.parametrize(("column", "value", "message"), BAD)
def test_values_that_are_made_when_they_are_read_are_checked_then(
    column, value, message, models, tmp_path
):
    """Of a stream the message names the row; of a transform, the row of the batch."""
    changed = with_bad(column, value, True)
    stream = Case("", SKIP, "tokens", lambda data: changed(data).to_iterable_dataset())
    with pytest.raises(ValueError, match=f"row 2 of the dataset {message}"):
        make_trainer(stream, True, models, tmp_path).train()
    made = Case(
        "",
        {**SKIP, "remove_unused_columns": False, "per_device_train_batch_size": 10},
        "tokens",
        lambda data: changed(data).with_transform(lambda batch: batch),
    )
    with pytest.raises(ValueError, match=rf"row \d of a batch {message}"):
        make_trainer(made, True, models, tmp_path).train()


@pytest.mark.parametrize("column", ["polarity", "token_weights"])
@pytest.mark.parametrize("value", [None, "x", "", ["x"], {"a": 1}], ids=str)
@pytest.mark.parametrize("args", [{}, SKIP], ids=["prepared", "skipped"])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_column_of_no_numbers_names_its_first_row(
    column, value, args, streamed, models, tmp_path
):
    def change(data):
        known = data.remove_columns([name for name in (column,) if name in data.column_names])
        changed = known.map(
            lambda row: {column: value * len(row["labels"]) if value == ["x"] else value}
        )
        return changed.to_iterable_dataset() if streamed else changed

    case = Case("", {**args, "max_steps": 1}, "tokens", change)
    message = f"row 0 of the dataset holds .* in {column}, which takes"
    with pytest.raises(ValueError, match=message):
        make_trainer(case, True, models, tmp_path).train()


def with_data(**data):
    return Case("", others=given(lambda: data))


ROWS = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "polarity": [0, 1, -1]}]


@pytest.mark.parametrize(
    ("polarity", "complaint"),
    [
        ([True, True, False], "row 0 of the dataset holds the truth value True in polarity"),
        (False, "row 0 of the dataset holds the truth value False in polarity"),
        (["1", "1", "-1"], "row 0 of the dataset holds the text 1 in polarity"),
        ("learn", "row 0 of the dataset holds the text learn in polarity"),
        ([None, True, True], "row 0 of the dataset holds the truth value True in polarity"),
        ([0.5, 1, 1], "takes -1, 0 and +1"),
    ],
)
def test_values_that_are_no_polarity_get_one_message(polarity, complaint, models, tmp_path):
    data = Dataset.from_list([{**ROWS[0], "labels": [5, 6, 7], "polarity": polarity}] * 2)
    with pytest.raises(ValueError, match=re.escape(complaint)):
        make_trainer(with_data(train_dataset=data), True, models, tmp_path)


ALPACA = [{"instruction": "a", "output": "b", "polarity": 1}]


@pytest.mark.parametrize("name", ["train_dataset", "eval_dataset"])
def test_rows_without_a_known_column_get_one_message(name, models, tmp_path):
    complaint = f"{name} has the columns instruction, output, and none of input_ids, messages"
    with pytest.raises(ValueError, match=complaint):
        make_trainer(with_data(**{name: Dataset.from_list(ALPACA)}), True, models, tmp_path)


@pytest.mark.parametrize("data", ["some text", True, [1], {"a": "b"}])
def test_evaluation_data_of_another_type_gets_one_message(data, models, tmp_path):
    with pytest.raises(TypeError, match="eval_dataset must be a Dataset"):
        make_trainer(with_data(eval_dataset=data), True, models, tmp_path)
