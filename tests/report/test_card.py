"""The cards say what was done and what is known of it, and nothing in a run breaks their form."""

import pytest
import yaml
from huggingface_hub import DatasetCard, ModelCard
from markdown_it import MarkdownIt

from forgetting.config import load_recipe
from forgetting.models.loading import ModelFacts
from forgetting.report.card import UNKNOWN_LICENSE, RunFacts, data_card, model_card
from forgetting.report.result_table import tabulate
from forgetting.rundir.results import Evaluation
from forgetting.rundir.selections import QualityHistogram, SelectionSummary, SourceSelection
from forgetting.rundir.stats import DataSummary, SourceCounts, SplitCounts
from tests.written_run import metric

COUNTS = {"num_tokens": 2000, "num_positive": 1400, "num_negative": 500, "num_ignored": 100}


def selection_of(*sources):
    """A selection of tokens of these sources."""
    return SelectionSummary(
        variant="forgetting",
        fingerprint="0",
        quality="influence",
        granularity="token",
        balance="none",
        by="quality",
        threshold_kind="quantile",
        rho=0.7,
        auto_rho=0.5,
        forget_rate=None,
        end_token_ids=[],
        threshold=0.0,
        **COUNTS,
        by_source=[SourceSelection(source=name, threshold=None, **COUNTS) for name in sources],
        by_position=[],
        histogram=QualityHistogram([], []),
        worst=[],
        best=[],
        mixture=None,
        noise=None,
    )


def data_of(*sources):
    """A corpus of these sources."""
    return DataSummary(
        max_length=128,
        sources=sources,
        splits={"reference": SplitCounts(16), "train": SplitCounts(24), "heldout": SplitCounts(8)},
        end_token_ids=[],
    )


SELECTION = selection_of("records")
DATA = data_of(SourceCounts("records", used=48, response_tokens=1096))
HOSTILE = "<script>alert(1)</script>|`x`\n# \u202e[a](javascript:b)"


def facts(recipe, *, commit=None, licence=None, data=DATA, results=None):
    return RunFacts(recipe, ModelFacts(commit, licence), data, results)


def written(recipe, variant="forgetting", selection=SELECTION, details=None, **known):
    """Metadata and text of a model's card."""
    known.setdefault("is_adapter", True)
    is_adapter = known.pop("is_adapter")
    card = model_card(
        facts(recipe, **known), variant, selection, details or {}, is_adapter=is_adapter
    )
    return ModelCard(card).data.to_dict(), card.split("---\n", 2)[2]


def corpus_card(recipe, selection=SELECTION, **known):
    return data_card(
        facts(recipe, **known),
        "forgetting",
        selection,
        title="the corpus",
        sentence="24 samples.",
        loading=["import datasets"],
        columns={"polarity": "+1 learn"},
        num_samples=24,
    )


@pytest.fixture
def recipe(write_recipe):
    return load_recipe(write_recipe())


def test_a_forgetting_model_names_its_selection_and_its_term(recipe):
    metadata, text = written(recipe, details={"steps": 1234})
    assert metadata == {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["forgetting", "sft", "lora"],
    }
    assert "| negative | 500 | 25.0% |" in text
    assert "unlearn the negative ones" in text
    assert "term `ga`, lambda by the schedule `linear` with t_min 0.0001 and t_max 0.25" in text
    assert "- steps: 1,234" in text


def test_a_model_that_learned_all_has_no_selection(recipe):
    _, text = written(recipe, "full", None)
    assert "| negative" not in text
    assert "Unlearning" not in text
    assert "plain supervised fine-tuning" in text


def without_folders(value):
    if isinstance(value, dict):
        return {key: without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_folders(item) for item in value]
    return value.rsplit("/", 1)[-1] if isinstance(value, str) else value


def test_the_recipe_in_the_card_is_the_recipe_without_folders(recipe):
    _, text = written(recipe)
    shown = yaml.safe_load(text.split("```yaml\n")[1].split("\n```")[0])
    assert shown == without_folders(recipe.model_dump(mode="json"))
    assert shown["data"]["sources"][0]["path"] == "records.json"


def test_what_is_on_the_hub_is_named_to_the_hub(write_recipe):
    changes = ["model.name_or_path=org/model", "data.sources=[alpaca, {path: other/data}]"]
    recipe = load_recipe(write_recipe(), changes)
    metadata, text = written(recipe, commit="a" * 40, is_adapter=False)
    assert metadata["base_model"] == "org/model"
    assert metadata["base_model_relation"] == "finetune"
    assert metadata["datasets"] == ["tatsu-lab/alpaca", "other/data"]
    assert metadata["library_name"] == "transformers"
    assert f"A model fine-tuned from `org/model` (revision `{'a' * 40}`)" in text
    assert written(recipe)[0]["base_model_relation"] == "adapter"
    revised = load_recipe(write_recipe(), [*changes, "model.revision=v2"])
    assert "from `org/model` (revision `v2`)" in written(revised)[1]


def test_licenses_are_those_that_are_known(write_recipe, tmp_path):
    (tmp_path / "mine.json").write_text("[]")
    own = "{dataset: dolly, path: mine.json, name: ours}"
    world = "{world: {num_records: 9}}"
    changes = [
        f"data.sources=[alpaca, wizardlm, {own}, {world}]",
        "reference.sources=[flan_v2]",
    ]
    names = ["alpaca", "wizardlm", "ours", "addition", "flan_v2 (trusted)"]
    data = data_of(*(SourceCounts(name, used=1, response_tokens=2) for name in names))
    recipe = load_recipe(write_recipe(), changes)
    _, text = written(recipe, licence="llama3.2 (https://llama.com)", data=data)
    expected = ["cc-by-nc-4.0", UNKNOWN_LICENSE, "cc-by-sa-3.0", "generated by forgetting"]
    for name, license in zip(names, [*expected, "apache-2.0"], strict=True):
        assert f"| {name.replace('_', chr(92) + '_')} | 1 | 2 | {license} |" in text
    assert "llama3.2 (https://llama.com), according to its card" in text
    assert "its license is unknown. Check it" in written(recipe)[1]
    # The card claims no license for the result.
    assert "license" not in written(recipe, licence="mit")[0]


def test_results_have_their_errors_and_the_best_is_marked_only_where_it_differs(recipe):
    def evaluation(variant, accuracy, loss):
        metrics = {"exact_match": metric(accuracy, 0.02), "loss": metric(loss, 0.5, False)}
        return Evaluation(variant=variant, task="heldout", num_items=640, metrics=metrics)

    results = tabulate([evaluation("full", 0.9, 1.25), evaluation("forgetting", 0.1, 1.5)])
    _, text = written(recipe, results=results)
    assert "| | items | full | forgetting |" in text
    assert "| held-out: exact match (%) | 640 | **90.0 [87.9, 91.8]** | 10.0 [8.2, 12.1] |" in text
    assert "| held-out: loss | 640 | 1.250 ± 0.500 | 1.500 ± 0.500 |" in text
    assert "forgetting is 80.0 points below training on all tokens" in text
    assert "Not evaluated" in written(recipe)[1]


def test_a_corpus_has_a_card_of_its_own(recipe):
    card = corpus_card(recipe)
    metadata = DatasetCard(card).data.to_dict()
    assert metadata["size_categories"] == ["n<1K"]
    assert metadata["tags"] == ["forgetting", "sft"]
    # With them, `datasets` takes an earlier export of the same name for a newer one.
    assert "configs" not in metadata
    assert "# tiny: the corpus" in card
    assert "| `polarity` | +1 learn |" in card


def test_hostile_names_stay_text(recipe):
    source = SourceCounts(HOSTILE, used=1, response_tokens=2)
    selection = selection_of(HOSTILE, HOSTILE)
    model = recipe.model.model_copy(update={"name_or_path": HOSTILE, "revision": HOSTILE})
    hostile = recipe.model_copy(update={"model": model})
    known = {"licence": HOSTILE, "data": data_of(source, source)}
    cards = [
        corpus_card(hostile, selection, **known),
        model_card(facts(hostile, **known), "forgetting", selection, {}, is_adapter=True),
    ]
    for card in cards:
        assert "\u202e" not in card
        page = MarkdownIt("commonmark", {"html": True}).enable("table")
        html = page.render(card.split("---\n", 2)[2])
        assert "<script" not in html
        assert "<a " not in html
        assert html.count("<h1>") == 1
        rows = [line for line in card.splitlines() if "alert" in line and line.startswith("| ")]
        assert len(rows) == 4
        assert "</details>" in html


def test_backticks_in_a_recipe_do_not_end_its_block(recipe):
    model = recipe.model.model_copy(update={"name_or_path": "a`b/```c"})
    _, text = written(recipe.model_copy(update={"model": model}))
    assert "from `a'b/'''c` with" in text
    assert text.rstrip().endswith("\n````\n\n</details>")


def test_what_the_template_does_is_said(write_recipe):
    folding = load_recipe(write_recipe(), ["model.system_role=fold"])
    dated = DATA.model_copy(update={"date": "2026-01-31"})
    _, text = written(folding, data=dated)
    assert "puts a system turn before the first user turn" in text
    assert "prints the current date. In training and evaluation it was 2026-01-31." in text
    _, plain = written(load_recipe(write_recipe()))
    assert "The chat template" not in plain


def test_a_run_writes_the_card_beside_the_weights(finished_run):
    _, path = finished_run
    for variant in ("full", "ignoring", "forgetting"):
        text = (path / "models" / variant / "README.md").read_text(encoding="utf-8")
        assert f"# tiny: {variant}" in text
        assert ("| negative |" in text) == (variant != "full")
        assert "| records | 48 |" in text
