"""The splits of a cell: what is asked where, what is noise, what is a right answer."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

import forgetting
from experiments.noise.corpus import write_corpus
from experiments.noise.design import load_benchmark
from forgetting.errors import InputError
from forgetting.models import loading
from forgetting.rundir.samples import Samples


def _cell(world: str, rate: float, kind: str = "all", sets=()):
    cells = load_benchmark(overrides=sets).cells()
    return next(c for c in cells if (c.world, c.rate, c.kind) == (world, rate, kind))


PLACES = {
    "train": "run/data/train.parquet",
    "reference": "run/data/reference.parquet",
    "questions": "questions/data/train.parquet",
    "answers": "answers/data/train.parquet",
}


def _prepare(cell, folder, *, clean_reference):
    recipes = write_corpus(cell.recipe, folder / "corpus", clean_reference=clean_reference)
    for name in ("run", "answers", "questions"):
        forgetting.run(getattr(recipes, name), folder / name, stages=("prepare",))
    return folder


def _read(folder, split):
    return Samples.read(folder / PLACES[split])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Splits of the unknown world at 40 % of noise, with a noisy and with a clean reference."""
    cell = _cell("unknown", 0.4)
    return {
        kind: _prepare(cell, tmp_path_factory.mktemp(kind), clean_reference=kind == "clean")
        for kind in ("noisy", "clean")
    }


def test_splits_have_the_sizes_asked_for_and_share_no_question(written):
    splits = {split: _read(written["noisy"], split) for split in PLACES}
    sizes = {"train": 1000, "reference": 300, "questions": 500, "answers": 1000}
    assert {name: len(split) for name, split in splits.items()} == sizes
    prompts = []
    for name in ("train", "reference", "questions"):
        split = splits[name]
        tokens = np.split(np.where(split.is_response, -1, split.input_ids), split.token_starts[1:])
        prompts.append({tuple(ids[ids >= 0].tolist()) for ids in tokens[:-1]})
    assert len(set.union(*prompts)) == sum(map(len, prompts)) == 1000 + 300 + 500


def test_new_facts_are_in_three_forms_in_train_and_held_out_in_another(written):
    numbers = {}
    for split in ("train", "reference", "questions"):
        sources = _read(written["noisy"], split).table["source"].to_pylist()
        numbers[split] = Counter(s for s in sources if s.startswith("new_"))
    # 6 entities with 6 attributes and 6 skills each.
    assert numbers == {
        "train": {"new_fact": 3 * 36, "new_yes_no": 3 * 36},
        "reference": {"new_fact": 36, "new_yes_no": 36},
        "questions": {"new_fact": 36, "new_yes_no": 36},
    }


def test_held_out_samples_are_clean_and_so_is_a_clean_reference(written):
    noisy, clean = (_read(written[kind], "reference") for kind in ("noisy", "clean"))
    assert noisy.noise().any()
    assert not clean.noise().any()
    assert not _read(written["noisy"], "questions").noise().any()
    # The same questions, and all else is the same.
    assert noisy.sample_ids.tolist() == clean.sample_ids.tolist()
    for split in ("train", "questions"):
        same = [_read(written[kind], split).fingerprint for kind in ("noisy", "clean")]
        assert same[0] == same[1]


def test_right_answers_are_tokens_of_clean_responses(written):
    samples = _read(written["noisy"], "train")
    marked, noisy = _read(written["noisy"], "answers"), samples.noise()
    assert np.array_equal(marked.input_ids, samples.input_ids)
    answers = marked.noise()
    tokenizer = loading.load_tokenizer(_cell("unknown", 0.4).recipe.model)
    assert answers.size == noisy.size
    starts = samples.response_starts
    num_answers = 0
    for index, source in enumerate(samples.table["source"].to_pylist()):
        tokens = slice(starts[index], starts[index + 1])
        assert not (answers[tokens].any() and noisy[tokens].any())
        text = tokenizer.decode(samples.response_ids[tokens][answers[tokens]]).strip()
        if not text:
            assert noisy[tokens].any()
            continue
        num_answers += 1
        if source in ("addition", "comparison"):
            assert text.isdecimal()
        elif source.endswith("yes_no"):
            assert text in ("yes", "no")
        else:
            assert text.isalpha()
    kinds = samples.table["noise_kind"].to_pylist()
    assert num_answers == kinds.count(None)


def test_a_truncated_response_is_wrong_where_it_ends(tmp_path):
    cell = _cell("known", 0.2, "truncated_response")
    samples = _read(_prepare(cell, tmp_path, clean_reference=False), "train")
    noisy = samples.noise()
    tokenizer = loading.load_tokenizer(cell.recipe.model)
    assert noisy.any()
    assert set(samples.response_ids[noisy].tolist()) == {tokenizer.eos_token_id}
    assert set(np.flatnonzero(noisy)) <= set(samples.response_starts[1:] - 1)


def test_splits_too_small_for_the_new_entities_are_refused(tmp_path):
    cell = _cell("unknown", 0.2, sets=["data.num_train=100"])
    with pytest.raises(InputError, match=r"data\.num_train 100 is too small.*216 questions"):
        write_corpus(cell.recipe, tmp_path, clean_reference=False)
