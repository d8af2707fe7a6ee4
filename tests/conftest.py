"""A tiny random model, small data files, and a recipe that uses both: seconds on one core."""

from __future__ import annotations

import gc
import json
import logging
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from hypothesis import settings

from forgetting.config import ModelSettings
from forgetting.rundir import layout
from forgetting.rundir.findings import (
    CalibrationBin,
    DetectorSummary,
    KindFinding,
    PosteriorWriter,
    ProbeReport,
    ShareRange,
    SourceFinding,
)
from forgetting.rundir.samples import SAMPLE_SCHEMA, Samples, list_column, read_table, write_table
from forgetting.rundir.scores import write_scores
from forgetting.rundir.stats import DataSummary, SplitCounts

# Tests never ask a network, and two processes on two cores must not fight over threads.
os.environ["HF_HUB_OFFLINE"] = "1"
# As on the command line; transformers reads it on import.
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)
# How long a case takes depends on what else the machine does.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: else one process would be left alone with one of them."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


MODULES_OF_A_FRAMEWORK = 200
_num_modules = 0


def pytest_runtest_setup() -> None:
    """Exempt what has been imported from garbage collection.

    Every training collects garbage twice, and walks over all objects of torch, transformers and the
    other frameworks each time: nearly half of the time of a tiny run.
    """
    global _num_modules
    if len(sys.modules) > _num_modules + MODULES_OF_A_FRAMEWORK:
        _num_modules = len(sys.modules)
        gc.collect()
        gc.freeze()


def save_tiny_model(folder: Path, *, vocab_extra: int = 0, seed: int = 0, **changes: Any) -> Path:
    """A Llama of 2 layers and 32 dimensions over bytes, with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = byte_tokenizer()
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer) + vocab_extra,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(seed)
    # Larger weights than usual, so that tokens differ clearly in probability.
    model = LlamaForCausalLM(LlamaConfig(**{**settings, "initializer_range": 0.2, **changes}))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def byte_tokenizer() -> Any:
    """Byte-level, without merges: one token a byte, and <s>, </s>, <pad>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: index for index, symbol in enumerate(["<s>", "</s>", "<pad>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def small_model(kind: str, vocab_size: int) -> Any:
    """A model of an architecture, with 2 layers, 32 dimensions and random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    common = {"vocab_size": vocab_size, "initializer_range": 0.3, "pad_token_id": 0}
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    if kind == "gpt_neo":
        shape = {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "intermediate_size": 48,
            "attention_types": [[["global", "local"], 1]],
            "max_position_embeddings": 256,
            "window_size": 8,
        }
    elif kind == "gemma2":
        shape = {
            **sizes,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "final_logit_softcapping": 2.0,
            "sliding_window": 8,
        }
    elif kind == "mixtral":
        shape = {**sizes, "num_key_value_heads": 2, "num_local_experts": 3}
    elif kind == "granite":
        shape = {**sizes, "num_key_value_heads": 2, "logits_scaling": 3.0}
    else:
        shape = {**sizes, "num_key_value_heads": 2}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **common, **shape)).eval()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny model and its tokenizer."""
    return save_tiny_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="session")
def quantizable_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose rows are whole blocks of 64 weights: on processors with bf16 units bitsandbytes
    fails on smaller ones."""
    folder = tmp_path_factory.mktemp("quantizable-model")
    return save_tiny_model(folder, hidden_size=64, intermediate_size=128, initializer_range=0.1)


def alpaca_records(number: int) -> list[dict[str, str]]:
    """Distinct records in the Alpaca form."""
    words = ["red", "green", "blue", "gold", "gray"]
    return [
        {
            "instruction": f"What is the color of stone {index}?",
            "input": "" if index % 2 else f"Stone {index} lies in the river.",
            "output": f"It is {words[index % 5]}, number {index}.",
        }
        for index in range(number)
    ]


def save_tiny_recipe(folder: Path, model: Path, **sections: Any) -> Path:
    """A recipe and its data that run in seconds; keyword arguments replace whole sections."""
    data = folder / "records.json"
    if not data.exists():
        data.write_text(json.dumps(alpaca_records(60)), encoding="utf-8")
    recipe = {
        "name": "tiny",
        "model": {"name_or_path": str(model), "dtype": "float32"},
        "data": {
            "sources": [{"path": str(data)}],
            "num_reference": 16,
            "num_train": 24,
            "num_heldout": 8,
            "max_length": 128,
        },
        "training": {
            "learning_rate": 1e-3,
            "batch_size": 4,
            "micro_batch_size": 2,
            "gradient_checkpointing": False,
            "save_steps": 1,
            "logging_steps": 1,
            "lora": {"rank": 4, "alpha": 8},
        },
        "scoring": {"tokens_per_batch": 512, "samples_per_shard": 8},
        **sections,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture
def write_recipe(tmp_path: Path, tiny_model: Path) -> Callable[..., Path]:
    """Writes a recipe that runs in seconds; keyword arguments replace whole sections."""
    return partial(save_tiny_recipe, tmp_path, tiny_model)


def count_decodings(monkeypatch: pytest.MonkeyPatch, caller: ModuleType) -> list[ModelSettings]:
    """The models whose vocabulary is decoded from now on, by `caller` or the detection."""
    # transformers reads the environment on import, which is set above.
    from forgetting.stages import corpus_detection, corpus_features

    found: list[ModelSettings] = []

    def segment_ends(model: ModelSettings) -> Any:
        found.append(model)
        return corpus_features.segment_ends(model)

    for module in (caller, corpus_detection):
        monkeypatch.setattr(module, "segment_ends", segment_ends)
    return found


EOS = 1


def write_shards(
    run: Path, samples: Samples, columns: Mapping[str, Any], shard_sizes: Sequence[int]
) -> None:
    """Write scores of D_train as the stage `score` does.

    Args:
        columns: by name with the model's, such as `base_log_probs`, over all response tokens.
        shard_sizes: samples of each shard.
    """
    folder = layout.scores_dir(run)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    begin = 0
    for shard, size in enumerate(shard_sizes):
        part = Samples(samples.table.slice(begin, size))
        tokens = slice(samples.response_starts[begin], samples.response_starts[begin + size])
        own = {name: values[tokens] for name, values in columns.items()}
        target = layout.score_file(folder, shard, len(shard_sizes))
        write_scores(target, part, np.arange(size), own, samples.fingerprint)
        begin += size


def save_scored_run(path: Path, shard_sizes: Sequence[int] = (7, 5), num_samples: int = 12) -> Path:
    """A run directory in which samples of two sources are scored, with noise that is known.

    All columns that scoring can write are there; the quality of a token is its place in a random
    order. `shard_sizes` are the samples of each shard; they do not change the numbers.
    """
    random = np.random.default_rng(0)
    rows = []
    for index in range(num_samples):
        response = [*random.integers(3, 200, int(random.integers(2, 9))).tolist(), EOS]
        rows.append(
            {
                "sample_id": 100 + index,
                "source": "even" if index % 2 == 0 else "odd",
                "input_ids": [5, 6, *response],
                "labels": [-100, -100, *response],
                "noise": [int(index % 3 == 0)] * (len(response) - 1) + [0],
                "noise_kind": "junk_phrase" if index % 3 == 0 else None,
            }
        )
    samples = Samples(pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA))
    data = layout.data_dir(path)
    data.mkdir(parents=True)
    write_table(samples.table, layout.train_file(path))
    total = int(samples.response_ids.size)
    splits = {"train": SplitCounts(num_samples, int(samples.input_ids.size), total)}
    ends = [0, EOS, 2]
    DataSummary(max_length=128, sources=[], splits=splits, end_token_ids=ends).save(data)
    base = -random.random(total).astype(np.float32) * 5
    columns = {
        "base_log_probs": base,
        "reference_log_probs": base + random.permutation(total).astype(np.float32) / total - 0.4,
        "base_entropy": random.random(total).astype(np.float32) * 4,
        "reference_entropy": random.random(total).astype(np.float32) * 4,
        "base_rank": random.integers(0, 200, total).astype(np.int32),
        "reference_rank": random.integers(0, 200, total).astype(np.int32),
    }
    write_shards(path, samples, columns, shard_sizes)
    save_findings(path, random.random(total).astype(np.float32))
    return path


def save_findings(run: Path, posterior: Any, found: bool = True, **changes: Any) -> None:
    """Write what the detector found in D_train, as the stage `detect` does.

    Args:
        posterior: of all response tokens.
        changes: fields of the summary.
    """
    samples = Samples.read(layout.train_file(run))
    folder = layout.detector_dir(run)
    folder.mkdir(parents=True, exist_ok=True)
    kinds = np.arange(posterior.size, dtype=np.int8) % 2
    with PosteriorWriter(layout.posterior_file(folder), samples.fingerprint) as writer:
        writer.write(samples.sample_ids, samples.num_response_tokens, posterior, kinds)
    share = ShareRange(float(posterior.mean()), 0.01, 0.9)
    summary: dict[str, Any] = {
        "fingerprint": samples.fingerprint,
        "found": found,
        "verdict": "About half of the tokens look bad."
        if found
        else "Nothing found. It is hidden.",
        "passes": ["base", "base_empty"],
        "num_copies": 200,
        "num_clean_copies": 66,
        "report": ProbeReport(
            num_tokens=900,
            share_planted=0.2,
            auroc=0.91,
            average_precision=0.7,
            precision=0.8,
            recall=0.6,
            calibration_error=0.02,
            calibration=[CalibrationBin(0.1, 0.12, 700), CalibrationBin(0.9, 0.87, 200)],
            auroc_without_reference=None,
            average_precision_without_reference=None,
        ),
        "kinds": [
            KindFinding("garble", "garbled word", 60, 80, 0.95, 0.7, 0.9, 0.2, 0.85),
            KindFinding("swap", "answer to another question", 74, 100, 0.9, 0.6, None, 0.3),
        ],
        "tokens": share,
        "samples": share,
        "by_source": [
            SourceFinding("even", 6, posterior.size // 2, posterior.sum() / 2, 3),
            SourceFinding("odd", 6, posterior.size - posterior.size // 2, posterior.sum() / 2, 2),
        ],
    }
    DetectorSummary(**{**summary, **changes}).save(folder)


@pytest.fixture
def restored_logging() -> Iterator[None]:
    """The command line sets the library's log up for a terminal; other tests want it as it was."""
    log = logging.getLogger("forgetting")
    before = log.handlers[:], log.level, log.propagate
    handler = signal.getsignal(signal.SIGINT)
    with warnings.catch_warnings():
        yield
    log.handlers[:], level, log.propagate = before
    log.setLevel(level)
    # A command that was interrupted ignores Ctrl-C from then on.
    signal.signal(signal.SIGINT, handler)


@pytest.fixture(autouse=True)
def _restored_ctrl_c() -> Iterator[None]:
    """A command that was interrupted ignores Ctrl-C from then on, as it is about to end."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def all_scores(run: Path) -> dict[str, Any]:
    """Every score of a run by its column, and the posterior; arrays over all response tokens."""
    tables = [read_table(file) for file in layout.score_files(layout.scores_dir(run))]
    names = tables[0].column_names[1:]
    found = {name: np.concatenate([list_column(t, name)[0] for t in tables]) for name in names}
    posterior = layout.posterior_file(layout.detector_dir(run))
    if posterior.is_file():
        found["posterior"], _ = list_column(read_table(posterior), "posterior")
    return found


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Path, Path]:
    """A recipe, and the directory in which it has run from start to end. Copy it to change it."""
    from forgetting.pipeline import run

    folder = tmp_path_factory.mktemp("finished")
    recipe = save_tiny_recipe(folder, tiny_model)
    return recipe, run(recipe, folder / "run")


def save_detector_recipe(folder: Path, model: Path, **sections: Any) -> Path:
    """A recipe with the detector in it; keyword arguments replace whole sections."""
    (folder / "records.json").write_text(json.dumps(alpaca_records(90)), encoding="utf-8")
    sections = {
        "data": {
            "sources": [{"path": str(folder / "records.json")}],
            "num_reference": 16,
            "num_train": 60,
            "num_heldout": 4,
            "max_length": 128,
        },
        "scoring": {"tokens_per_batch": 1024, "samples_per_shard": 25},
        "detector": {"copies": 80},
        "variants": {
            "full": {},
            "weighted": {},
            "ignoring": {"selection": {"quality": "detector", "threshold": "posterior"}},
        },
        **sections,
    }
    return save_tiny_recipe(folder, model, **sections)


NUM_TREES = 4


@contextmanager
def few_trees() -> Iterator[None]:
    """Detectors are fitted in a tenth of the time: for what is done with a detector, not for how
    much it finds."""
    from forgetting.method import classifiers

    trees = classifiers.TREES, classifiers._FAST_TREES, classifiers.KIND_TREES
    before = [dict(each) for each in trees]
    for each in trees:
        each["max_iter"] = NUM_TREES
    try:
        yield
    finally:
        for each, settings_before in zip(trees, before, strict=True):
            each.update(settings_before)


@pytest.fixture
def with_few_trees() -> Iterator[None]:
    """See `few_trees`; for tests that go on with `detected_run`."""
    with few_trees():
        yield


@pytest.fixture(scope="session")
def detected_run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Path, Path]:
    """A recipe with the detector, and the directory in which it has run up to `detect`. Copy it to
    change it."""
    from forgetting.pipeline import run

    folder = tmp_path_factory.mktemp("detected")
    recipe = save_detector_recipe(folder, tiny_model)
    stages = ["prepare", "score", "probe", "detect"]
    with few_trees():
        return recipe, run(recipe, folder / "run", stages=stages)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run with seeded numbers in the place of models."""
    from tests.written_run import write_run

    return write_run(tmp_path / "run")


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run with the keywords of `write_run`, under a name of its own."""
    from tests.written_run import write_run

    return lambda **settings: write_run(
        tmp_path / f"run-{len(list(tmp_path.iterdir()))}", **settings
    )


@pytest.fixture(scope="session")
def decode() -> Callable[[Sequence[int]], str]:
    """Decodes the tokens of `run_dir`."""
    from tests.written_run import decode

    return decode


@pytest.fixture(scope="session")
def hostile() -> str:
    """A token of `run_dir` that would act if it were not escaped."""
    from tests.written_run import HOSTILE

    return HOSTILE


CHROMIUM_OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --window-size=1200,900"
)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One session of Chromium for all tests."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, driver_path = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver_path):
        pytest.skip("chromium and chromium-driver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for option in CHROMIUM_OPTIONS.split():
        options.add_argument(option)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver_path))
    driver.set_page_load_timeout(15 * 60)
    driver.set_script_timeout(15 * 60)
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture
def registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forgets after the test what it registered."""
    from forgetting.formats import FORMATS
    from forgetting.method import MEASURES
    from forgetting.method.corruptions import CORRUPTIONS
    from forgetting.method.losses import LOSSES
    from forgetting.method.terms import TERMS

    for registry in (MEASURES, TERMS, LOSSES, FORMATS, CORRUPTIONS):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
