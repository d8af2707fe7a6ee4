"""`prepare` refuses what the model cannot read."""

from __future__ import annotations

import json
from datetime import date

import pytest

from forgetting import pipeline
from forgetting.config import load_recipe
from forgetting.errors import InputError
from forgetting.pipeline import describe_plan
from forgetting.rundir import layout
from forgetting.rundir.manifest import read_manifest
from forgetting.rundir.samples import Samples
from forgetting.rundir.stats import DataSummary
from forgetting.stages.prepare import check_length


def test_max_length_beyond_the_positions_is_refused(write_recipe):
    recipe = load_recipe(write_recipe(), ["data.max_length=257"])
    with pytest.raises(InputError, match=r"max_length 257 is more than the 256 positions"):
        check_length(recipe)
    # A dry run refuses it too.
    with pytest.raises(InputError, match=r"max_length 257 is more than the 256 positions"):
        describe_plan(recipe)


DATED = (
    "{{- strftime_now('%d %b %Y') + '\\n' -}}{%- for m in messages -%}"
    "{{- m.role + ': ' + m.content + eos_token -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'assistant: ' -}}{%- endif -%}"
)


@pytest.fixture
def on_day(monkeypatch):
    """A function that sets the current date."""
    from forgetting.data import alignment

    def set_day(day):
        class Today(date):
            @classmethod
            def today(cls):
                return date(2026, 1, day)

        monkeypatch.setattr(alignment, "date", Today)

    return set_day


def test_a_run_keeps_the_date_of_its_first_day(write_recipe, tmp_path, on_day):
    template = tmp_path / "dated.jinja"
    template.write_text(DATED, encoding="utf-8")

    def prepared(name, *overrides):
        given = [f"model.chat_template={template}", *overrides]
        run = pipeline.run(write_recipe(), tmp_path / name, stages=["prepare"], overrides=given)
        ids = Samples.read(layout.train_file(run)).input_ids
        entry = read_manifest(run).stages["prepare"]
        date_ = DataSummary.load(layout.data_dir(run)).date
        return bytes(ids.astype("uint8")), entry, date_

    on_day(30)
    ids, entry, first = prepared("run")
    assert first == "2026-01-30"
    on_day(31)
    assert prepared("run") == (ids, entry, first)
    # Prepared again on another day for another reason: with the date of the run.
    again, other, second = prepared("run", "data.special_tokens_in_text=true")
    assert other.fingerprint != entry.fingerprint
    assert second == first
    assert again == ids
    assert prepared("new")[2] == "2026-01-31"
    fixed = prepared("fixed", "model.template_date=2026-01-30")
    assert (fixed[0], fixed[2]) == (ids, first)
    assert fixed[1].fingerprint != entry.fingerprint


def test_a_template_without_a_clock_has_no_date(write_recipe, tmp_path):
    run = pipeline.run(write_recipe(), tmp_path / "run", stages=["prepare"])
    assert DataSummary.load(layout.data_dir(run)).date is None


def test_responses_to_forget_need_a_variant_that_forgets(write_recipe, tmp_path):
    records = [{"prompt": f"{i}?", "completion": f"{i}.", "label": i % 4 > 0} for i in range(16)]
    file = tmp_path / "kto.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    sizes = {"num_reference": 4, "num_train": 10, "num_heldout": 2, "max_length": 64}
    data = {"sources": [{"path": str(file)}], **sizes}
    recipe = write_recipe(data=data, variants={"full": {}, "ignoring": {}})
    with pytest.raises(InputError, match=r"kto.jsonl, record 1 \(line 1\).* no variant"):
        pipeline.run(recipe, tmp_path / "refused", stages=["prepare"])
    recipe = write_recipe(data=data, variants={"some": {"objective": "forgetting"}})
    run = pipeline.run(recipe, tmp_path / "run", stages=["prepare"])
    (source,) = DataSummary.load(layout.data_dir(run)).sources
    assert source.negatives == Samples.read(layout.train_file(run)).is_negative.sum() == 4


def test_data_that_change_while_they_are_read_are_refused(write_recipe, tmp_path, monkeypatch):
    from forgetting.data import splits

    build = splits.build_corpus

    def build_while_writing(*args, **named):
        result = build(*args, **named)
        with (tmp_path / "records.json").open("a") as file:
            file.write("\n")
        return result

    recipe, run = write_recipe(), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(splits, "build_corpus", build_while_writing)
        with pytest.raises(InputError, match=r"records\.json changed while it was read"):
            pipeline.run(recipe, run, stages=["prepare"])
    assert read_manifest(run).stages == {}
    pipeline.run(recipe, run, stages=["prepare"])
    assert "prepare" in read_manifest(run).stages
