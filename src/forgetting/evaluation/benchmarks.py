"""The paper's nine benchmarks on local files, as tasks that lm-eval reads.

Input: a folder with published files, and which tasks are wanted. Output: a folder of task
files, each of which includes the task that lm-eval ships and changes only where its items come
from. The same folder serves `lm_eval --include_path`. Knows no model.
"""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from forgetting.config import SourceSettings
from forgetting.data.files import Unreadable
from forgetting.data.sources import read_source
from forgetting.errors import InputError
from forgetting.evaluation import converters

Located = tuple[str, Any]
"""Location of a record in its file, and the record."""
SPLITS = ("training", "validation", "test")
# The instructions whose checks split text into sentences.
NEEDS_PUNKT = {"length_constraints:number_sentences", "change_case:capital_word_frequency"}


@dataclass(frozen=True)
class Form:
    """A file format in which a benchmark is published."""

    pattern: str
    """Path of the file, at any depth below `data_dir`."""
    convert: Callable[[Any], dict[str, Any]]
    read: Callable[[Path], Iterator[Located]] | None = None
    """Reads the records; None: records of a JSON, JSONL or CSV file."""
    note: str | None = None


@dataclass(frozen=True)
class Benchmark:
    """A task of lm-eval that can use local files."""

    task: str
    shipped: str
    """Its file in lm-eval's folder of tasks."""
    scored: str
    """The split whose items are scored."""
    splits: Mapping[str, tuple[Form, ...]]
    """File formats of each split, the preferred one first. Only the scored split is required."""
    tag: str | None = None
    """lm-eval's name for a group of tasks that this one belongs to."""
    needs_example: bool = False
    """Whether the task takes its examples from `train`. Without a file for that split, the first
    item of the scored split becomes the example and is not scored."""


def _records(path: Path) -> Iterator[Located]:
    for origin, record in read_source(SourceSettings(path=str(path)), seed=0):
        if isinstance(record, Unreadable):
            raise InputError(f"{origin}: {record.reason}. A benchmark must be complete: fix it")
        yield str(origin), record


def _blocks(path: Path) -> Iterator[Located]:
    """The lines of each block; blank lines separate blocks."""
    line = 1
    for block in path.read_text(encoding="utf-8-sig").split("\n\n"):
        if block.strip():
            yield f"{path} line {line}", [text.strip() for text in block.strip().split("\n")]
        line += block.count("\n") + 2


def _problems(path: Path) -> Iterator[Located]:
    """The children of each `Problem` element, by name."""
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise InputError(f"{path} is broken XML: {error}") from error
    for problem in root.iter("Problem"):
        yield f"{path} problem {problem.get('ID')}", {part.tag: part.text for part in problem}


def _questions(path: Path) -> Iterator[Located]:
    """The questions of a file in the SQuAD format, each with its passage and title."""
    try:
        articles = json.loads(path.read_text(encoding="utf-8-sig"))["data"]
        for article in articles:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    passage = {"title": article["title"], "context": paragraph["context"]}
                    yield f"{path} question {question['id']}", {**question, **passage}
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{path} is not in the SQuAD format (`data` with `paragraphs` and `qas`): {error!r}"
        ) from error


_DERIVED = "multiple choice derived from TruthfulQA.csv, not the published mc_task.json"
_TRUTHFULQA = (
    Form("mc_task.json", converters.truthfulqa),
    Form("truthfulqa_mc*.json", converters.truthfulqa, note=_DERIVED),
    Form("TruthfulQA*.csv", converters.truthfulqa_csv, note=_DERIVED),
)
_LANGUAGES = {
    "ar": "arabic",
    "bn": "bengali",
    "en": "english",
    "fi": "finnish",
    "id": "indonesian",
    "ko": "korean",
    "ru": "russian",
    "sw": "swahili",
    "te": "telugu",
}
_ARITHMETIC = {
    "1dc": "single_digit_three_ops",
    "2da": "two_digit_addition",
    "2dm": "two_digit_multiplication",
    "2ds": "two_digit_subtraction",
    "3da": "three_digit_addition",
    "3ds": "three_digit_subtraction",
    "4da": "four_digit_addition",
    "4ds": "four_digit_subtraction",
    "5da": "five_digit_addition",
    "5ds": "five_digit_subtraction",
}


def _squad(name: str) -> tuple[Form, ...]:
    return (Form(name, converters.tydiqa, _questions),)


BENCHMARKS: Mapping[str, Benchmark] = {
    benchmark.task: benchmark
    for benchmark in (
        *(
            Benchmark(
                task=f"truthfulqa_{kind}",
                shipped=f"truthfulqa/truthfulqa_{kind}.yaml",
                scored="validation",
                splits={"validation": _TRUTHFULQA},
                tag="truthfulqa",
            )
            for kind in ("mc1", "mc2")
        ),
        Benchmark(
            task="boolq",
            shipped="super_glue/boolq/default.yaml",
            scored="validation",
            splits={"validation": (Form("boolq*.jsonl", converters.boolq),)},
        ),
        Benchmark(
            task="logiqa",
            shipped="logiqa/logiqa.yaml",
            scored="test",
            splits={
                "test": (Form("logiqa/Test.txt", converters.logiqa, _blocks),),
                "validation": (Form("logiqa/Eval.txt", converters.logiqa, _blocks),),
                "train": (Form("logiqa/Train.txt", converters.logiqa, _blocks),),
            },
        ),
        Benchmark(
            task="asdiv",
            shipped="asdiv/default.yaml",
            scored="validation",
            splits={"validation": (Form("ASDiv*.xml", converters.asdiv, _problems),)},
        ),
        *(
            Benchmark(
                task=f"tydiqa_goldp_{code}",
                shipped=f"tydiqa/tydiqa_goldp_{code}.yaml",
                scored="validation",
                splits={
                    "validation": _squad(f"{language}_tydiqa_dev.json"),
                    "train": _squad(f"{language}_tydiqa_train.json"),
                },
                tag="tydiqa_goldp",
                needs_example=True,
            )
            for code, language in _LANGUAGES.items()
        ),
        Benchmark(
            task="ifeval",
            shipped="ifeval/ifeval.yaml",
            scored="train",
            splits={"train": (Form("ifeval/input_data.jsonl", converters.ifeval),)},
        ),
        Benchmark(
            task="arc_challenge",
            shipped="arc/arc_challenge.yaml",
            scored="test",
            splits={
                "test": (Form("ARC-Challenge-test.json", converters.arc),),
                "train": (Form("ARC-Challenge-train.json", converters.arc),),
            },
        ),
        Benchmark(
            task="lambada_openai",
            shipped="lambada/lambada_openai.yaml",
            scored="test",
            splits={"test": (Form("lambada_test*.jsonl", converters.lambada),)},
        ),
        *(
            Benchmark(
                task=f"arithmetic_{code}",
                shipped=f"arithmetic/arithmetic_{code}.yaml",
                scored="validation",
                splits={"validation": (Form(f"{name}.jsonl", converters.arithmetic),)},
                tag="arithmetic",
            )
            for code, name in _ARITHMETIC.items()
        ),
    )
}


def find_files(benchmark: Benchmark, data_dir: Path) -> dict[str, tuple[Form, Path]]:
    """The file of each split that `data_dir` has, and its form; empty without the scored one.

    Raises:
        InputError: more than one file fits, and which is meant is open.
    """
    found = {}
    for split, forms in benchmark.splits.items():
        for form in forms:
            paths = sorted(path for path in data_dir.rglob(form.pattern) if path.is_file())
            if len(paths) > 1:
                raise InputError(
                    f"evaluation.data_dir: {', '.join(map(str, paths))} all match "
                    f"{benchmark.task}. Remove all but one"
                )
            if paths:
                found[split] = form, paths[0]
                break
    return found if benchmark.scored in found else {}


def missing_files(benchmark: Benchmark, data_dir: Path) -> str:
    """The message for a `data_dir` that lacks a benchmark."""
    names = " or ".join(form.pattern for form in benchmark.splits[benchmark.scored])
    return f"evaluation.data_dir: {data_dir} has no file {names} for the task {benchmark.task}"


@dataclass(frozen=True)
class LocalItems:
    """The items of a benchmark, read and converted."""

    splits: Mapping[str, list[dict[str, Any]]]
    notes: list[str]
    """What a reader of the results must know about the origin of the items."""


def read_items(benchmark: Benchmark, data_dir: Path) -> LocalItems:
    """Read a benchmark's files.

    Raises:
        InputError: a file is absent or broken; the message names it, and the record.
    """
    found = find_files(benchmark, data_dir)
    if not found:
        raise InputError(missing_files(benchmark, data_dir))
    splits = {split: _convert(form, path) for split, (form, path) in found.items()}
    form, path = found[benchmark.scored]
    notes = [f"local build of {path.name}, {len(splits[benchmark.scored])} items"]
    if form.note:
        notes.append(form.note)
    if benchmark.needs_example and "train" not in splits:
        first, *rest = splits[benchmark.scored]
        if not rest:
            raise InputError(f"{path} has one item, which would be both example and question")
        splits |= {"train": [first], benchmark.scored: rest}
        notes.append(
            f"no training file: the first item of {path.name} is the example and is not scored"
        )
    return LocalItems(splits, notes)


def _convert(form: Form, path: Path) -> list[dict[str, Any]]:
    items = []
    for origin, record in (form.read or _records)(path):
        try:
            items.append(form.convert(record))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            reason = f"has no field {error}" if isinstance(error, KeyError) else str(error)
            raise InputError(f"{origin} cannot be read for {form.pattern}: {reason}") from error
    if not items:
        raise InputError(f"{path} holds no items")
    return items


def write_task(
    benchmark: Benchmark, folder: Path, items: LocalItems | None, num_fewshot: int | None = None
) -> None:
    """Write the task file of a benchmark into `folder`, and local items next to it."""
    shipped = _shipped_tasks() / benchmark.shipped
    task: dict[str, Any] = {"include": str(shipped), "task": benchmark.task}
    if num_fewshot is not None:
        task["num_fewshot"] = num_fewshot
    if benchmark.needs_example:
        # The same example for every item, independent of their number, order and process.
        task["fewshot_config"] = {"sampler": "first_n", "split": "train"}
    if items is not None:
        files = {}
        for split, records in items.splits.items():
            file = folder / f"{benchmark.task}.{split}.jsonl"
            lines = (json.dumps(record, ensure_ascii=False) for record in records)
            file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            files[split] = str(file)
        task["dataset_path"] = "json"
        task["dataset_name"] = None
        task["dataset_kwargs"] = {"data_files": files, "cache_dir": str(folder / "cache")}
        given = {"training": "train", "validation": "validation", "test": "test"}
        if benchmark.scored == "train":
            given = {"test": "train"}
        for name in SPLITS:
            task[f"{name}_split"] = given[name] if given.get(name) in files else None
    path = folder / f"{benchmark.task}.yaml"
    path.write_text(yaml.safe_dump(task, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _shipped_tasks() -> Path:
    spec = find_spec("lm_eval")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(next(iter(spec.submodule_search_locations))) / "tasks"


def check_sentences(items: Iterable[Mapping[str, Any]], data_dir: Path) -> None:
    """Refuse IFEval items whose checks need sentence data that is not on this machine.

    Looks where nltk looks, and in `data_dir/nltk_data`.

    Raises:
        InputError: the message says how to get the data.
    """
    if not any(NEEDS_PUNKT.intersection(item["instruction_id_list"]) for item in items):
        return
    import nltk

    own = str(data_dir / "nltk_data")
    if own not in nltk.data.path:
        nltk.data.path.append(own)
    try:
        nltk.data.find("tokenizers/punkt_tab/english/")
    except LookupError as error:
        raise InputError(
            "ifeval counts sentences with nltk's punkt_tab data, which is not on this machine. "
            f"Download it with `python -m nltk.downloader -d {own} punkt_tab`, or copy "
            f"tokenizers/punkt_tab from another machine's nltk_data into {own}"
        ) from error
