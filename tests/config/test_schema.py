"""Settings have the paper's values as defaults, and values that do not fit are refused."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from forgetting.config import (
    ForgettingSettings,
    Recipe,
    SelectionSettings,
    SourceSettings,
    TrainingSettings,
    dump_recipe,
    load_recipe,
    named_sources,
)
from forgetting.errors import InputError
from forgetting.formats import FORMATS
from forgetting.method import MEASURES
from forgetting.method.losses import LOSSES
from forgetting.method.terms import TERMS
from tests.config.conftest import SMALL


def test_defaults_are_those_of_the_paper(load):
    recipe = load()
    assert recipe.selection.rho == 0.7
    assert recipe.variants["ignoring"].selection.rho == 0.5
    assert recipe.variants["forgetting"].selection.rho == 0.7
    assert (recipe.forgetting.t_min, recipe.forgetting.t_max) == (1e-4, 0.25)
    assert recipe.forgetting.schedule == "linear"
    for training in (recipe.training, recipe.reference):
        assert (training.lora.rank, training.lora.alpha, training.lora.dropout) == (64, 16, 0.1)
        assert training.lora.target_modules == "all-linear"
        assert training.weight_decay == 0
        assert training.max_grad_norm == 0
        assert training.batch_size == 24
        assert training.epochs == 1
        assert training.learning_rate == 1e-4
        assert training.lr_scheduler == "linear"
        assert training.warmup_ratio == 0.03
    assert recipe.data.max_length == 2048
    assert (recipe.data.num_reference, recipe.data.num_train) == (10_000, 50_000)
    assert list(recipe.variants) == ["full", "ignoring", "forgetting"]
    assert {name: v.objective for name, v in recipe.variants.items()} == {
        name: name for name in recipe.variants
    }


@pytest.mark.parametrize("name", ["../x", "a/b", "/x", "", ".", "..", ".hidden", "a\nb", "x" * 101])
def test_names_that_would_leave_the_run_directory_are_refused(load, name):
    with pytest.raises(InputError, match="name: must be letters"):
        load(name=name)
    with pytest.raises(InputError, match="variants"):
        load(variants={name: {"objective": "full"}})


def test_the_reference_is_trained_like_the_variants_unless_it_says_otherwise(load):
    recipe = load(
        training={"learning_rate": 1e-3, "batch_size": 8, "lora": {"rank": 4}},
        reference={"epochs": 2, "batch_size": 16},
    )
    assert recipe.reference.learning_rate == 1e-3
    assert recipe.reference.lora.rank == 4
    assert (recipe.reference.batch_size, recipe.reference.epochs) == (16, 2)
    assert (recipe.training.batch_size, recipe.training.epochs) == (8, 1)


def test_variants_take_selection_and_forgetting_of_the_recipe(load):
    recipe = load(
        selection={"rho": 0.6, "granularity": "sequence"},
        forgetting={"t_max": 0.5},
        variants={
            "forgetting": None,
            "bold": {
                "objective": "forgetting",
                "selection": {"rho": 0.4},
                "forgetting": {"t_max": 0.9},
            },
        },
    )
    assert recipe.variants["forgetting"].selection == recipe.selection
    assert recipe.variants["forgetting"].forgetting == recipe.forgetting
    bold = recipe.variants["bold"]
    assert (bold.selection.rho, bold.selection.granularity) == (0.4, "sequence")
    assert (bold.forgetting.t_max, bold.forgetting.t_min) == (0.9, 1e-4)
    assert recipe.selecting_variants == ["forgetting", "bold"]


shares = st.floats(min_value=0.001, max_value=0.999)
selections = st.fixed_dictionaries(
    {"rho": shares | st.just("auto"), "threshold": st.sampled_from(["quantile", "zero"])},
    optional={
        "granularity": st.sampled_from(["token", "sequence"]),
        "by": st.sampled_from(["quality", "random"]),
        "keep_eos": st.booleans(),
    },
)


@given(selection=selections, t=st.tuples(*[st.floats(0, 1e6)] * 2).map(sorted))
def test_any_settings_survive_the_way_to_yaml_and_back(selection, t):
    forgetting = {"t_min": t[0], "t_max": t[1]}
    given = {**SMALL, "name": "x", "selection": selection, "forgetting": forgetting}
    recipe = Recipe.model_validate(given)
    assert recipe.selection == SelectionSettings(**selection)
    assert recipe.variants["forgetting"].forgetting == ForgettingSettings(**forgetting)
    assert Recipe.model_validate(yaml.safe_load(dump_recipe(recipe))) == recipe


def test_a_recipe_cannot_be_changed_once_read(load):
    with pytest.raises(ValidationError, match="frozen"):
        load().selection.rho = 0.1


@given(
    micro=st.integers(1, 8),
    accumulation=st.integers(1, 6),
    num_samples=st.integers(1, 500),
    epochs=st.integers(1, 4),
)
def test_whole_epochs_take_as_many_steps_as_batches_of_samples(
    micro, accumulation, num_samples, epochs
):
    training = TrainingSettings(
        batch_size=micro * accumulation, micro_batch_size=micro, epochs=epochs
    )
    assert training.num_steps(num_samples) == epochs * -(-num_samples // training.batch_size)


def test_quantised_weights_take_adapters_alone(load):
    with pytest.raises(InputError, match=r"training\.lora cannot be null"):
        load("training.lora=null", "reference.lora={rank: 4}", "model.quantization=nf4")
    assert load("model.quantization=nf4").model.quantization == "nf4"


def test_only_an_adapter_is_merged_and_the_reference_is_not(load):
    with pytest.raises(InputError, match="merge needs an adapter"):
        load("training.lora=null", "training.merge=true")
    recipe = load("training.merge=true")
    assert recipe.training.merge
    assert not recipe.reference.merge


@pytest.mark.parametrize(
    ("limit", "read"), [("20", 20), ("0.99", 0.99), ("1.0", 1), ("0", None), ("1.5", None)]
)
def test_a_limit_is_a_number_of_items_or_a_share(write_recipe, limit, read):
    overrides = [f"evaluation.tasks=[boolq, {{task: asdiv, limit: {limit}}}]"]
    if read is None:
        with pytest.raises(InputError, match=r"evaluation.tasks.1.limit: must be a whole number"):
            load_recipe(write_recipe(), overrides)
        return
    boolq, asdiv = load_recipe(write_recipe(), overrides).evaluation.tasks
    assert (boolq.task, boolq.limit, asdiv.task, asdiv.limit) == ("boolq", None, "asdiv", read)
    assert type(asdiv.limit) is type(read)


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"quality": "base_loss", "rho": "auto"}, "0 does not divide .* by quality base_loss"),
        ({"quality": "min_loss", "threshold": "zero"}, "0 does not divide .* quality min_loss"),
        ({"quality": "detector", "threshold": "zero"}, "0 does not divide .* quality detector"),
        ({"threshold": "posterior"}, "threshold posterior does not apply to quality influence"),
        ({"threshold": "mixture", "quality": "detector"}, "mixture does not apply to quality det"),
        (
            {"threshold": "posterior", "quality": "detector", "forget_rate": 0.1},
            "threshold posterior estimates .* forget_rate 0.1 has no effect",
        ),
        ({"balance": "source", "rho": "auto"}, "nothing to balance"),
        ({"balance": "source", "threshold": "zero"}, "nothing to balance"),
        ({"quality": "beauty"}, "influence"),
        ({"threshold": "mixture", "quality": "rank_gap"}, "rank_gap takes few"),
        ({"threshold": "mixture", "balance": "source"}, "balance source has no effect"),
        ({"threshold": "mixture", "by": "random"}, "by random has no effect"),
        ({"by": "known", "forget_rate": 0.1}, "forget_rate 0.1 has no effect"),
        ({"by": "known", "granularity": "sequence"}, "granularity sequence has no effect"),
        ({"by": "known", "balance": "source"}, "balance source has no effect"),
        ({"by": "known", "threshold": "zero"}, "threshold zero has no effect"),
        ({"threshold": "mixture", "forget_rate": 0.1}, "forget_rate 0.1 has no effect"),
    ],
)
def test_selections_without_meaning_are_refused(write_recipe, selection, message):
    with pytest.raises(InputError, match=message):
        load_recipe(write_recipe(selection=selection))


def test_scores_are_those_that_the_measures_need(write_recipe):
    variants = {
        "full": {"objective": "full", "selection": {"quality": "rank_gap"}},
        "a": {"objective": "ignoring", "selection": {"quality": "entropy_gap"}},
        "b": {"objective": "forgetting", "selection": {"quality": "min_loss"}},
    }
    recipe = load_recipe(write_recipe(variants=variants))
    assert recipe.score_columns == ["base_log_probs", "base_entropy", "reference_log_probs"]
    assert recipe.needs_reference
    assert not recipe.needs_detector


DETECTOR = {"quality": "detector", "threshold": "posterior"}


@pytest.mark.parametrize(
    ("variants", "overrides", "passes"),
    [
        ({"full": {}, "forgetting": {}}, [], []),
        ({"weighted": {}}, [], ["base", "base_empty"]),
        ({"ignoring": {"selection": DETECTOR}}, [], ["base", "base_empty"]),
        ({"full": {"selection": DETECTOR}}, [], []),
        (
            {"weighted": {}, "forgetting": {}},
            [],
            ["base", "base_empty", "reference", "reference_empty"],
        ),
        ({"weighted": {}, "forgetting": {}}, ["detector.reference=never"], ["base", "base_empty"]),
        (
            {"weighted": {}},
            ["detector.reference=always"],
            ["base", "base_empty", "reference", "reference_empty"],
        ),
    ],
)
def test_the_detector_looks_through_the_models_that_are_there(
    write_recipe, variants, overrides, passes
):
    recipe = load_recipe(write_recipe(variants=variants), overrides)
    assert recipe.detector_passes == passes
    assert recipe.needs_detector == bool(passes)
    found = {column.rpartition("_log_probs")[0] for column in recipe.score_columns}
    assert found >= set(passes)
    assert recipe.needs_reference == ("reference" in passes or "forgetting" in variants)


def test_without_a_reference_there_need_be_no_samples_for_one(write_recipe):
    recipe = load_recipe(write_recipe(variants={"weighted": {}}), ["data.num_reference=0"])
    assert recipe.num_reference == 0
    assert recipe.score_columns == [
        f"{name}_{statistic}"
        for name in ("base", "base_empty")
        for statistic in (
            "log_probs",
            "entropy",
            "surprise_std",
            "best_other_log_prob",
            "rank",
            "sum_squares",
        )
    ]


def test_a_term_that_compares_with_the_base_needs_its_log_probs(write_recipe):
    variant = {"selection": {"quality": "rank_gap"}, "forgetting": {"term": "npo"}}
    recipe = load_recipe(write_recipe(variants={"forgetting": variant}))
    assert recipe.score_columns == ["base_log_probs", "base_rank", "reference_rank"]


def test_the_posterior_from_which_a_token_is_negative_depends_on_the_objective(write_recipe):
    variants = {
        "ignoring": {"selection": DETECTOR},
        "forgetting": {"selection": DETECTOR},
        "own": {"objective": "ignoring", "selection": {**DETECTOR, "posterior": 0.7}},
    }
    found = load_recipe(write_recipe(variants=variants)).variants
    posteriors = [found[name].selection_in_effect.posterior for name in variants]
    assert posteriors == [0.5, 0.9, 0.7]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("detector.corruptions=[swap, lies]", r"detector.corruptions.1: unknown corruption 'lies'"),
        ("detector.corruptions=[]", r"detector.corruptions: .*at least 1 item"),
        ("detector.copies=0", r"detector.copies: .*greater than 0"),
        ("detector.reference=maybe", r"detector.reference: .*'auto'"),
    ],
)
def test_a_detector_that_cannot_be_is_refused(write_recipe, override, message):
    with pytest.raises(InputError, match=message):
        load_recipe(write_recipe(variants={"weighted": {}}), [override])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["reference.folds=2", "reference.name_or_path=a/b"], "name_or_path and folds exclude"),
        (["reference.folds=1"], r"reference\.folds"),
        (["reference.folds=30"], "folds 30 is more than data.num_train 24"),
        (["data.num_reference=0"], "leaves no samples to train the reference model on"),
        (["reference.sources=[]"], r"reference\.sources"),
    ],
)
def test_a_reference_that_cannot_be_is_refused(write_recipe, changes, message):
    with pytest.raises(InputError, match=message):
        load_recipe(write_recipe(), changes)


def test_a_reference_may_need_no_samples_of_its_own(write_recipe):
    for change in ("reference.folds=2", "reference.name_or_path=a/b"):
        load_recipe(write_recipe(), [change, "data.num_reference=0"])
    full = ["data.num_reference=0", "variants={full: {}}"]
    assert load_recipe(write_recipe(), full).num_reference == 0


def test_a_source_may_be_a_mere_name_or_path(load):
    alpaca, own = load(data={"sources": ["alpaca", "some/data"]}).data.sources
    assert (alpaca.path, alpaca.format, alpaca.label) == ("tatsu-lab/alpaca", "alpaca", "alpaca")
    assert (own.path, own.format, own.label) == ("some/data", "auto", "data")


def test_a_known_data_set_reads_its_local_files_as_they_are(load):
    given = [
        {"dataset": "flan_v2", "path": "x/creak_train.tsv"},
        {"dataset": "flan_v2", "path": "x/creak_train.tsv.gz", "escaped": False, "name": "own"},
        {"dataset": "flan_v2", "path": "x/flan.jsonl"},
        {"dataset": "dolly", "path": "x/dolly.json"},
    ]
    tsv, own, lines, dolly = load(data={"sources": given}).data.sources
    assert (tsv.columns, tsv.escaped) == (["question", "answer", "rationale"], True)
    assert (tsv.format, tsv.label) == ("question_answer", "flan_v2")
    assert (own.columns, own.escaped, own.label) == (tsv.columns, False, "own")
    # What is known of the hub's form says nothing of a file's.
    assert (lines.columns, lines.format) == (None, "auto")
    assert (dolly.path, dolly.format) == ("x/dolly.json", "auto")


@pytest.mark.parametrize("name", named_sources())
def test_known_data_sets_are_documented_and_kept_in_the_run_as_they_are(name):
    assert name in SourceSettings.model_fields["dataset"].description
    source = SourceSettings.model_validate(name)
    assert SourceSettings.model_validate(source.model_dump(mode="json")) == source


@pytest.mark.parametrize("other", ["sources=[some/data]", "folds=2"])
def test_repeats_in_the_reference_need_a_reference_from_the_corpus(write_recipe, other):
    changes = ["data.duplicates_in_reference=true", f"reference.{other}"]
    with pytest.raises(InputError, match=f"Remove reference.{other.partition('=')[0]}"):
        load_recipe(write_recipe(), changes)


def test_a_section_keeps_the_parameters_of_its_term(load):
    recipe = load(
        forgetting={"term": "tnpo", "alpha": 3},
        variants={
            "forgetting": None,
            "weighted": {
                "objective": "forgetting",
                "forgetting": {"term": "wtnpo", "beta": "1e-1"},
            },
            "plain": {"objective": "forgetting", "forgetting": {"term": "ga"}},
        },
    )
    assert recipe.forgetting.term_parameters == {"beta": 0.1}
    variants = {name: v.forgetting.term_parameters for name, v in recipe.variants.items()}
    assert variants == {
        "forgetting": {"beta": 0.1},
        "weighted": {"alpha": 3.0, "beta": 0.1},
        "plain": {},
    }
    assert Recipe.model_validate(yaml.safe_load(dump_recipe(recipe))) == recipe


def test_the_json_schema_lists_registered_names_and_the_parameters_of_terms():
    sections = Recipe.model_json_schema()["$defs"]
    quality = sections["SelectionSettings"]["properties"]["quality"]
    assert quality["enum"] == list(MEASURES)
    assert sections["SourceSettings"]["properties"]["format"]["enum"] == ["auto", *FORMATS]
    properties = sections["ForgettingSettings"]["properties"]
    assert properties["term"]["enum"] == list(TERMS)
    assert set(ForgettingSettings.field_names()) == set(properties)
    assert sections["ForgettingSettings"]["additionalProperties"] is False
    assert properties["beta"] == {
        "type": "number",
        "default": 0.1,
        "exclusiveMinimum": 0,
        "description": "Exponent of p / r, the ratio to the base model. For npo, tnpo, wtnpo.",
    }


def test_every_field_has_a_description_that_stands_alone():
    for name, section in Recipe.model_json_schema()["$defs"].items():
        for field, schema in section["properties"].items():
            text = schema.get("description", "")
            assert text, f"{name}.{field}"
            assert not text.startswith("Of "), f"{name}.{field}: {text}"


PAIRS = "data.sources=[{path: pairs.jsonl, negatives: rejected}]"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([PAIRS, "variants={full: {}, ignoring: {}}"], "`negatives`, which no variant forgets"),
        (
            ["reference.sources=[{path: pairs.jsonl, negatives: rejected}]"],
            "reference.sources hold only responses to learn",
        ),
        (["data.sources=[{path: pairs.jsonl, negatives: chosen}]"], "negatives: .*'rejected'"),
    ],
)
def test_rejected_responses_are_asked_for_where_a_variant_forgets_them(
    write_recipe, overrides, message
):
    with pytest.raises(InputError, match=message):
        load_recipe(write_recipe(), overrides)
    assert load_recipe(write_recipe(), [PAIRS]).data.sources[0].negatives == "rejected"


def test_a_loss_is_a_name_or_a_section_with_its_parameters(load):
    recipe = load(
        variants={
            "full": {"loss": "dft"},
            "sure": {"objective": "full", "loss": {"name": "dft", "min_weight": "1e-1"}},
            "plain": {"objective": "full"},
        }
    )
    losses = {name: (v.loss.name, v.loss.parameters) for name, v in recipe.variants.items()}
    assert losses == {
        "full": ("dft", {"min_weight": 0.0}),
        "sure": ("dft", {"min_weight": 0.1}),
        "plain": ("cross_entropy", {}),
    }
    assert Recipe.model_validate(yaml.safe_load(dump_recipe(recipe))) == recipe
    properties = Recipe.model_json_schema()["$defs"]["LossSettings"]["properties"]
    assert properties["name"]["enum"] == list(LOSSES)
    assert set(properties) == {"name", "min_weight", "alpha", "keep"}
    assert properties["keep"]["description"].endswith("For truncation, rho1.")


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("dfft", r"loss.name: unknown loss 'dfft'. Did you mean dft\?"),
        ({"name": "dft", "keep": 0.5}, "loss.keep: loss dft does not have it. It has min_weight"),
        ({"keep": 0.5}, "loss.keep: loss cross_entropy does not have it. It has none"),
        ({"name": "dft", "min_weight": 2}, r"loss.min_weight: must be at most 1 \(got 2\)"),
        ({"name": "dft", "min_wait": 2}, "min_wait: unknown field.*Did you mean min_weight"),
        (3, "loss: expected a section"),
    ],
)
def test_a_bad_loss_is_one_message(load, loss, message):
    with pytest.raises(InputError, match=message):
        load(variants={"full": {"loss": loss}})


def test_corrected_needs_the_detector_and_rho1_the_reference(load):
    recipe = load(variants={"corrected": {}})
    assert (recipe.needs_detector, recipe.needs_alternatives) == (True, True)
    assert not recipe.needs_reference
    recipe = load(variants={"full": {"loss": "rho1"}})
    assert recipe.score_columns == ["reference_log_probs"]
    assert recipe.needs_reference
    assert not recipe.needs_alternatives


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"objective": "forgetting"},
            "forgetting does not do. Set objective to ignoring",
        ),
        ({"objective": "full"}, "objective full does not do"),
        ({"objective": "weighted"}, "objective weighted does not do"),
        ({"selection": {"by": "known"}}, "selection.by known does not apply. Remove it, or remove"),
        ({"selection": {"by": "random"}}, "selection.by random does not apply"),
        ({"selection": {"threshold": "zero"}}, "selection.threshold zero does not apply"),
        ({"selection": {"granularity": "sequence"}}, "selection.granularity sequence does not"),
        ({"selection": {"balance": "source"}}, "selection.balance source does not apply"),
        ({"selection": {"forget_rate": 0.1}}, "selection.forget_rate 0.1 does not apply"),
        ({"selection": {"rho": "auto"}}, "Set selection.rho to a number"),
        ({"selection": {"quality": "detector"}}, "selection.quality detector does not. Set it to"),
        ({"selection": {"quality": "base_loss"}}, "selection.quality base_loss does not"),
        ({"selection": {"quality": "rank_gap"}}, "selection.quality rank_gap does not"),
        ({"loss": "rho1"}, "rounds trains no reference model, which loss rho1 needs"),
        ({"rounds": 1}, r"variants.self.rounds: .* greater than or equal to 2 \(got 1\)"),
        ({"rounds": 9}, "variants.self.rounds 9 is more than data.num_train 8"),
    ],
)
def test_rounds_are_refused_where_they_do_not_apply(load, changes, message):
    variant = {"objective": "ignoring", "rounds": 3, **changes}
    with pytest.raises(InputError, match=message):
        load("data.num_train=8", variants={"self": variant})


def test_caution_is_for_weighted_variants(load):
    load(variants={"some": {"objective": "weighted", "caution": 1}})
    for objective in ("full", "corrected"):
        with pytest.raises(InputError, match=f"caution .* objective {objective} does not use it"):
            load(variants={"some": {"objective": objective, "caution": 2}})


def test_rounds_need_the_scores_of_the_base_alone(load):
    own = {"self": {"objective": "ignoring", "rounds": 3}}
    recipe = load("data.num_reference=0", variants=own)
    assert (recipe.needs_reference, recipe.needs_detector) == (False, False)
    assert recipe.score_columns == ["base_log_probs"]
    assert load(variants={**own, "ignoring": {}}).needs_reference
    # Of the measures and losses that rounds allow.
    for changes in ({"loss": "dft"}, {"selection": {"quality": "relative", "keep_eos": False}}):
        assert load(variants={"self": {**own["self"], **changes}}).evolving_variants == ["self"]


def test_without_bad_tokens_a_variant_is_the_first_that_learns_all_with_its_loss(load):
    recipe = load(
        variants={
            "weighted": {},
            "corrected": {"loss": "dft"},
            "slow": {"objective": "full", "loss": "dft"},
            "full": {},
            "again": {"objective": "full"},
            "bounded": {"objective": "weighted", "loss": "eaft"},
            "ignoring": {},
        }
    )
    same = {name: recipe.plain_variant(name) for name in recipe.variants}
    assert {name: plain for name, plain in same.items() if plain} == {
        "weighted": "full",
        "corrected": "slow",
    }
    order = ["slow", "full", "again", "weighted", "corrected", "bounded", "ignoring"]
    assert recipe.variants_in_order == order


def test_what_the_shipped_recipes_for_ones_own_data_train():
    trained = {
        name: list(load_recipe(name).variants)
        for name in ("quickstart", "detector", "forgetting", "arena")
    }
    assert trained["quickstart"] == ["full", "weighted"]
    assert trained["detector"] == ["full", "weighted", "ignoring", "corrected"]
    assert trained["forgetting"] == ["full", "ignoring", "forgetting"]
    paper = ["full", "ignoring", "forgetting"]
    cleaning = {"fixed-model-cleaning": None, "self-evolving-cleaning": 5}
    assert trained["arena"][:7] == [*paper, *cleaning, "weighted", "corrected"]
    for name, rounds in cleaning.items():
        variant = load_recipe("arena").variants[name]
        assert (variant.objective, variant.selection.rho) == ("ignoring", 0.6)
        assert (variant.selection.quality, variant.rounds) == ("influence", rounds)
    for name in ("quickstart", "detector"):
        assert not load_recipe(name).needs_reference
        assert load_recipe(name).scores_heldout
    assert not load_recipe("forgetting").needs_detector
    assert not load_recipe("quickstart", ["data.num_heldout=0"]).scores_heldout
