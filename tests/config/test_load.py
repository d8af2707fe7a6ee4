"""Recipes come from YAML and go back to it; mistakes are named where they were written."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from forgetting.config import (
    check_batches,
    dump_recipe,
    load_recipe,
    shipped_recipes,
)
from forgetting.errors import InputError
from tests.config.conftest import SMALL


def test_a_recipe_without_name_takes_that_of_its_file(load):
    assert load().name == "some"


@pytest.mark.parametrize(
    ("sections", "path", "allowed"),
    [
        ({"trainin": {}}, "trainin", "training"),
        ({"model": {"name_or_path": "m", "dtyp": 1}}, "model.dtyp", "dtype"),
        ({"data": {"sources": [{"path": "d", "limi": 1}]}}, "data.sources.0.limi", "limit"),
        (
            {"data": {"sources": [{"path": "d"}, {"world": {"noise": 1}}]}},
            "data.sources.1.world.noise",
            "noise_rate",
        ),
        ({"training": {"learning_rat": 1}}, "training.learning_rat", "learning_rate"),
        ({"training": {"lora": {"ranks": 1}}}, "training.lora.ranks", "target_modules"),
        ({"reference": {"lora": {"ranks": 1}}}, "reference.lora.ranks", "target_modules"),
        ({"reference": {"nam": 1}}, "reference.nam", "name_or_path"),
        ({"scoring": {"batch": 1}}, "scoring.batch", "tokens_per_batch"),
        ({"selection": {"roh": 0.5}}, "selection.roh", "rho"),
        ({"forgetting": {"tmax": 1}}, "forgetting.tmax", "t_max"),
        ({"evaluation": {"task": []}}, "evaluation.task", "tasks"),
        (
            {"evaluation": {"tasks": [{"task": "boolq", "shots": 1}]}},
            "evaluation.tasks.0.shots",
            "num_fewshot",
        ),
        ({"report": {"sed": 1}}, "report.sed", "seed"),
        ({"variants": {"full": {"x": 1}}}, "variants.full.x", "objective"),
        (
            {"variants": {"forgetting": {"selection": {"roh": 1}}}},
            "variants.forgetting.selection.roh",
            "granularity",
        ),
        # Names of variants may be those of sections.
        ({"variants": {"data": {"objective": "full", "x": 1}}}, "variants.data.x", "objective"),
    ],
)
def test_an_unknown_field_is_named_with_what_is_allowed(load, sections, path, allowed):
    with pytest.raises(InputError) as caught:
        load(**sections)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert lines[0].endswith("some.yaml is not valid:")
    assert lines[1].startswith(f"  {path}: unknown field. Allowed here: ")
    listed = lines[1].split("Allowed here: ")[1].split(". Did you mean")[0]
    assert allowed in listed.split(", ")


def test_an_unknown_field_gets_its_near_match(write_recipe):
    with pytest.raises(InputError, match=r"num_trian: unknown field\. .*Did you mean num_train\?"):
        load_recipe(write_recipe(), ["data.num_trian=5"])


@pytest.mark.parametrize(
    ("sections", "path", "reason"),
    [
        ({"selection": {"rho": 0}}, "selection.rho", "strictly between 0 and 1, or `auto` (got 0)"),
        ({"selection": {"rho": 1}}, "selection.rho", "strictly between 0 and 1"),
        ({"selection": {"rho": -0.1}}, "selection.rho", "strictly between 0 and 1"),
        ({"selection": {"rho": float("nan")}}, "selection.rho", "strictly between 0 and 1"),
        ({"selection": {"rho": "most"}}, "selection.rho", "(got 'most')"),
        ({"selection": {"rho": None}}, "selection.rho", "(got None)"),
        ({"selection": {"granularity": "word"}}, "selection.granularity", "'token'"),
        ({"selection": {"threshold": "x"}}, "selection.threshold", "'quantile'"),
        ({"selection": {"rho": 0.7, "forget_rate": 0.4}}, "selection", "above 1 - rho = 0.3"),
        ({"forgetting": {"t_min": 1}}, "forgetting", "t_min 1.0 is above t_max 0.25"),
        ({"forgetting": {"t_max": -1}}, "forgetting.t_max", "greater than or equal to 0"),
        ({"forgetting": {"schedule": "x"}}, "forgetting.schedule", "'cosine'"),
        ({"training": {"learning_rate": float("inf")}}, "training.learning_rate", "finite"),
        ({"training": {"learning_rate": 0}}, "training.learning_rate", "greater than 0"),
        ({"training": {"batch_size": 5}}, "training", "not a multiple of micro_batch_size 2"),
        ({"training": {"report_to": ["x"]}}, "training.report_to.0", "'tensorboard'"),
        ({"reference": {"epochs": 0}}, "reference.epochs", "greater than 0"),
        ({"training": None}, "training", "expected a section with fields (got None)"),
        ({"model": {}}, "model.name_or_path", "is missing"),
        ({"data": {"sources": []}}, "data.sources", "at least 1 item"),
        ({"data": {"sources": [{}]}}, "data.sources.0", "either `path` or `world`"),
        ({"data": {"sources": [{"dataset": "x"}]}}, "data.sources.0", "Known: alpaca, dolly"),
        (
            {"data": {"sources": [{"path": "d", "num_samples": 3, "share": 0.5}]}},
            "data.sources.0",
            "either `num_samples` or `share`",
        ),
        (
            {"data": {"sources": [{"path": "d", "num_samples": 3, "limit": 2}]}},
            "data.sources.0",
            "limit 2 is less than num_samples 3",
        ),
        (
            {"data": {"sources": [{"path": "d.json", "columns": ["a"]}]}},
            "data.sources.0",
            "`columns` and `escaped` apply to .csv and .tsv files",
        ),
        (
            {"data": {"sources": [{"path": "d", "share": 0.7}, {"path": "e", "share": 0.5}]}},
            "data",
            "add up to 72600 samples, but num_reference 10000",
        ),
        (
            {"data": {"sources": [{"path": "d", "num_samples": 5}]}},
            "data",
            "add up to 5 samples, but num_reference 10000",
        ),
        ({"data": {"sources": ["d"], "near_threshold": 0.99}}, "data.near_threshold", "0.95"),
        (
            {"data": {"sources": [{"world": {"noise_kinds": {"lies": 1}}}]}},
            "data.sources.0.world.noise_kinds.lies",
            "'junk_phrase'",
        ),
        (
            {"data": {"sources": [{"world": {"noise_kinds": {"junk_phrase": 0}}}]}},
            "data.sources.0.world.noise_kinds",
            "above 0",
        ),
        ({"variants": {}}, "variants", "at least 1 item"),
        ({"variants": {"mine": {}}}, "variants.mine.objective", "is missing"),
        ({"variants": {"base": {"objective": "full"}}}, "variants", "untrained model"),
        ({"variants": {"full": 3}}, "variants.full", "expected a section with fields (got 3)"),
        ({"variants": {"full": {"objective": "x"}}}, "variants.full.objective", "'ignoring'"),
        ({"seed": -1}, "seed", "greater than or equal to 0"),
    ],
)
def test_a_wrong_value_is_named_once_where_it_was_written(load, sections, path, reason):
    with pytest.raises(InputError) as caught:
        load(**sections)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2, lines
    assert lines[1].startswith(f"  {path}: ")
    assert reason in lines[1]


def test_a_key_that_is_no_name_is_refused(tmp_path):
    file = tmp_path / "some.yaml"
    file.write_text(yaml.safe_dump({**SMALL, 1: 2}, sort_keys=False))
    with pytest.raises(InputError, match="1: Keys should be strings"):
        load_recipe(file)


def test_every_mistake_is_reported_at_once(load):
    with pytest.raises(InputError) as caught:
        load(selection={"rho": 2}, scoring={"x": 1}, seed="many")
    text = str(caught.value)
    assert all(path in text for path in ("selection.rho", "scoring.x", "seed"))


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("forgetting.t_min=1e-4", lambda r: r.forgetting.t_min == 1e-4),
        ("training.learning_rate=3e-05", lambda r: r.training.learning_rate == 3e-5),
        ("seed=7", lambda r: r.seed == 7),
        ("name=other", lambda r: r.name == "other"),
        ("selection.rho=auto", lambda r: r.selection.rho == "auto"),
        ("selection.keep_eos=false", lambda r: r.selection.keep_eos is False),
        ("training.lora=null", lambda r: r.training.lora is None and r.reference.lora is None),
        ("training.lora.rank=8", lambda r: r.training.lora.rank == 8),
        ("evaluation.tasks=[a, b]", lambda r: [t.task for t in r.evaluation.tasks] == ["a", "b"]),
        ("training.lora.target_modules=[q]", lambda r: r.training.lora.target_modules == ["q"]),
        ("training={epochs: 3}", lambda r: r.training.epochs == 3),
        ("data.sources.0.limit=9", lambda r: r.data.sources[0].limit == 9),
        ("model.revision=a=b", lambda r: r.model.revision == "a=b"),
        ("reference.epochs=2", lambda r: r.reference.epochs == 2 and r.training.epochs == 1),
        # The other default variants stay.
        (
            "variants.forgetting.selection.rho=0.6",
            lambda r: (
                {n: v.selection.rho for n, v in r.variants.items()}
                == {"full": 0.7, "ignoring": 0.5, "forgetting": 0.6}
            ),
        ),
        (
            "variants.bold.objective=forgetting",
            lambda r: list(r.variants) == ["full", "ignoring", "forgetting", "bold"],
        ),
        ("variants={full: {}}", lambda r: list(r.variants) == ["full"]),
    ],
)
def test_set_replaces_one_field(load, override, read):
    assert read(load(override))


def test_later_overrides_win(load):
    assert load("seed=1", "seed=2").seed == 2


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("seed", "expected section.field=value"),
        ("=1", "expected section.field=value"),
        ("a..b=1", "expected section.field=value"),
        ("seed=[1", "the value is not YAML"),
        ("seed=2020-99-99", "the value is not YAML"),
        ("data.sources.3.limit=1", "'3' is not an item of the list"),
        ("data.sources.²=1", "not an item of the list"),
        ("seeds=1", "seeds: unknown field"),
        ("model.name_or_path.x=1", "model.name_or_path: "),
    ],
)
def test_a_malformed_override_is_refused(load, override, reason):
    with pytest.raises(InputError) as caught:
        load(override)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "text", ["a: [1", "a: 2020-99-99", "!!python/object:os.system {}", "a\x00b: 1", "[" * 5000]
)
def test_what_is_not_yaml_is_refused_with_the_file(tmp_path, text):
    file = tmp_path / "broken.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"broken\.yaml is not YAML"):
        load_recipe(file)


@pytest.mark.parametrize("text", ["", "- a", "text"])
def test_yaml_that_is_no_recipe_is_refused(tmp_path, text):
    file = tmp_path / "other.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"other\.yaml is not a recipe"):
        load_recipe(file)


def test_a_missing_recipe_names_the_shipped_ones():
    with pytest.raises(InputError, match=r"no recipe nowhere\.yaml.*demo"):
        load_recipe("nowhere.yaml")


def test_local_paths_are_looked_for_beside_the_recipe_then_here(tmp_path, monkeypatch):
    beside, here = tmp_path / "beside", tmp_path / "here"
    for folder, names in ((beside, ["both.json"]), (here, ["both.json", "only.json", "model"])):
        folder.mkdir()
        for name in names:
            (folder / name).write_text("")
    monkeypatch.chdir(here)
    file = beside / "some.yaml"
    names = ["both.json", "only.json", "no/where", str(here / "both.json")]
    sections = {
        "model": {"name_or_path": "model"},
        "data": {"sources": [{"path": name} for name in names]},
    }
    file.write_text(yaml.safe_dump(sections))
    recipe = load_recipe(file)
    assert [Path(source.path) for source in recipe.data.sources] == [
        beside / "both.json",
        here / "only.json",
        Path("no/where"),
        here / "both.json",
    ]
    assert recipe.model.name_or_path == str(here / "model")


def test_a_recipe_extends_another_field_by_field(tmp_path):
    (tmp_path / "outer.yaml").write_text(
        yaml.safe_dump({**SMALL, "name": "outer", "selection": {"rho": 0.6, "keep_eos": False}})
    )
    inner = tmp_path / "inner.yaml"
    inner.write_text("extends: outer.yaml\nselection: {rho: 0.4}\nmodel: {dtype: float32}\n")
    recipe = load_recipe(inner)
    assert recipe.name == "inner"
    assert (recipe.selection.rho, recipe.selection.keep_eos) == (0.4, False)
    assert (recipe.model.name_or_path, recipe.model.dtype) == ("some/model", "float32")


def test_null_leaves_out_a_variant_of_the_extended_recipe(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "extends: baselines\nvariants: {ignoring-zero: null, full: null, mine: {objective: full}}\n"
    )
    expected = set(load_recipe("baselines").variants) - {"ignoring-zero", "full"} | {"mine"}
    assert set(load_recipe(file).variants) == expected
    # `forgetting` names no variants, so null is one without fields.
    file.write_text("extends: forgetting\nvariants: {full: null}\n")
    assert set(load_recipe(file).variants) == {"full"}
    outer = tmp_path / "outer.yaml"
    outer.write_text("extends: mine.yaml\nvariants: {full: null, ignoring: null}\n")
    assert set(load_recipe(outer).variants) == {"ignoring"}


def test_a_recipe_that_extends_itself_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    with pytest.raises(InputError, match="extends itself"):
        load_recipe(tmp_path / "a.yaml")


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_are_valid_and_come_back_equal(name, tmp_path):
    recipe = load_recipe(name)
    assert recipe.name == name
    file = tmp_path / "dumped.yaml"
    file.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(file) == recipe


@pytest.mark.parametrize("num_processes", [1, 2, 3, 4, 6, 12])
def test_a_step_is_dealt_to_processes_that_divide_it(load, num_processes):
    check_batches(load(training={"batch_size": 24, "micro_batch_size": 2}), num_processes)


@pytest.mark.parametrize("section", ["training", "reference"])
def test_a_step_that_cannot_be_dealt_is_refused(load, section):
    recipe = load(**{section: {"batch_size": 24, "micro_batch_size": 8}})
    check_batches(recipe, 3)
    with pytest.raises(InputError, match=rf"{section}.batch_size 24 .* 8 x 2 .* multiple of 16"):
        check_batches(recipe, 2)


def test_a_reference_of_ones_own_is_not_trained_and_not_checked(load):
    own = {"name_or_path": "some/reference", "batch_size": 6, "micro_batch_size": 6}
    check_batches(load(reference=own), 2)


def test_the_papers_recipe_names_its_five_data_sets():
    names = [source.dataset for source in load_recipe("paper").data.sources]
    assert names == ["flan_v2", "dolly", "oasst1", "alpaca", "wizardlm"]


@pytest.mark.parametrize(
    ("sections", "path", "reason"),
    [
        ({"forgetting": {"beta": 0}}, "forgetting.beta", "must be above 0 (got 0)"),
        ({"forgetting": {"alpha": "x"}}, "forgetting.alpha", "must be a finite number (got 'x')"),
        ({"forgetting": {"term": "wgaa"}}, "forgetting.term", "Did you mean wga?"),
        ({"selection": {"quality": "rank-gap"}}, "selection.quality", "Did you mean rank_gap?"),
        ({"data": {"sources": [{"path": "d", "format": "x"}]}}, "data.sources.0.format", "Known:"),
    ],
)
def test_names_and_parameters_of_registries_are_checked_once(load, sections, path, reason):
    with pytest.raises(InputError) as caught:
        load(**sections)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2, lines
    assert lines[1].startswith(f"  {path}: ")
    assert reason in lines[1]


@pytest.mark.parametrize("field", ["seed", "report.seed"])
def test_seeds_are_those_that_every_generator_takes(load, field):
    for seed in (0, 2**32 - 1):
        load(f"{field}={seed}")
    for seed in (-1, 2**32, 0.5):
        with pytest.raises(InputError, match=f"{field}: .* \\(got {seed}\\)"):
            load(f"{field}={seed}")


def test_the_rank_of_an_adapter_has_a_bound(load):
    with pytest.raises(InputError, match=r"training.lora.rank: .* \(got 100000000\)"):
        load("training.lora.rank=100000000")


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        ("training: {epochs: 1}\nmodel: {}\ntraining: {epochs: 2}\n", "training", 3),
        ("training:\n  epochs: 1\n  epochs: 2\n", "epochs", 3),
        ("data:\n  sources:\n  - path: a\n    path: b\n", "path", 4),
    ],
)
def test_a_key_that_is_there_twice_is_refused_with_its_line(tmp_path, text, key, line):
    path = tmp_path / "twice.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"`{key}` is there twice.*line {line}"):
        load_recipe(path)
    path.write_text("extends: demo\ntraining: &t {epochs: 1}\nreference:\n  <<: *t\n  <<: *t\n")
    assert load_recipe(path).reference.epochs == 1
    with pytest.raises(InputError, match="is not YAML"):
        load_recipe(path, ["training={epochs: 1, epochs: 2}"])
