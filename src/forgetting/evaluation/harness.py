"""Runs tasks of lm-evaluation-harness on a model in memory, with or without an adapter.

Input: the recipe's settings once, then a model for each measurement. Output: one
`TaskResult` a task. The index of tasks and their data are read once for all models. Knows
nothing of how a model was trained.

Several processes, met in torch.distributed, each have a `Harness` and a copy of the model; they
call `measure` together, the items are divided among them, and the first has the results.
"""

from __future__ import annotations

import contextlib
import math
import random
import shutil
import sys
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from forgetting.config import EvaluationSettings
from forgetting.errors import InputError
from forgetting.evaluation.benchmarks import BENCHMARKS, write_task
from forgetting.evaluation.suites import (
    Request,
    metric_label,
    plan_tasks,
    read_request,
    suite_result,
)
from forgetting.rundir.item_scores import ItemScores
from forgetting.rundir.results import Metric, TaskResult

# For bootstrapped standard errors such as that of F1. lm-eval's default takes minutes per task.
BOOTSTRAP_SAMPLES = 1000
NUMBERS = (int, float, np.number, np.bool_)
LOCAL_DATA = {"json", "csv", "parquet", "text", "arrow"}


@dataclass(frozen=True)
class Measured:
    """The results of one task."""

    results: list[TaskResult]
    """The task's own result is last; a group's tasks come before it."""
    samples: dict[str, list[dict[str, Any]]]
    """Prompts and answers by task, if the recipe keeps them."""
    items: dict[str, ItemScores]
    """Scores of the items by task, for the metrics that are means over them."""


class Harness:
    """The tasks of a recipe, ready to run on one model after the other.

    Args:
        settings: which tasks, and how.
        tokenizer: of the models to come, with the chat template of the run.
        seed: of everything that lm-eval draws.
        process_index: which of `num_processes` this one is.

    Raises:
        InputError: a task is unknown, listed twice, or lacks its local files.
    """

    def __init__(
        self,
        settings: EvaluationSettings,
        tokenizer: Any,
        *,
        seed: int = 0,
        process_index: int = 0,
        num_processes: int = 1,
    ) -> None:
        self._process_index, self._num_processes = process_index, num_processes
        self.requests, self.suites = plan_tasks(settings)
        self._settings = settings
        self._tokenizer = tokenizer
        self._seed = seed
        folder = Path(mkdtemp(prefix="forgetting-tasks-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._notes = write_tasks(self.requests, settings.data_dir, folder)
        self._manager = _index(self.requests, settings.include_path, folder)
        self.requests = _without_tags(self.requests, self._manager)
        self._loaded: dict[str, Any] = {}

    def measure(self, model: Any, request: Request) -> Measured | None:
        """Run one task; None in all processes but the first.

        Raises:
            InputError: the task's data cannot be loaded, or it has fewer items than processes.
        """
        from lm_eval.evaluator import evaluate

        with _on_stderr():
            loaded = self._load(request)
            items = {
                name: request.num_items(len(task.eval_docs))
                for name, task in loaded["tasks"].items()
            }
            self._check_processes(items)
            lm = self._wrap(model)
            _seed_everything(self._seed)
            shortened = {}
            for name, task in loaded["tasks"].items():
                task.set_fewshot_seed(seed=self._seed)
                shortened[name] = _fit_generation(task, lm)
            output = evaluate(
                lm=lm,
                task_dict=loaded,
                samples={name: list(range(number)) for name, number in items.items()},
                bootstrap_iters=BOOTSTRAP_SAMPLES,
                # For the scores of items; whether answers are kept is decided below.
                log_samples=True,
                system_instruction=self._settings.system_instruction,
                apply_chat_template=self._settings.apply_chat_template,
                # lm-eval's command line does so wherever there is a template.
                fewshot_as_multiturn=self._settings.apply_chat_template,
            )
        if output is None:
            return None
        # A group's own result is the last: if it is written, all of them are.
        names = [*loaded["tasks"], *reversed(loaded["groups"])]
        results = [self._result(name, output, loaded, request) for name in names]
        for result in results:
            result.notes += shortened.get(result.task, [])
        samples = {
            name: sorted(rows, key=lambda row: (row["filter"], row["doc_id"]))
            for name, rows in (output.get("samples") or {}).items()
        }
        metrics = {result.task: result.metrics for result in results}
        scores = {name: item_scores(rows, metrics[name]) for name, rows in samples.items()}
        return Measured(results, samples if self._settings.log_samples else {}, scores)

    def suite_results(self, results: Mapping[str, TaskResult]) -> list[TaskResult]:
        """One result for each suite of the recipe, from the results of its tasks."""
        return [
            suite_result(suite, results).model_copy(update=self._prompting) for suite in self.suites
        ]

    @property
    def _prompting(self) -> dict[str, Any]:
        """How prompts are rendered, for every result."""
        return {
            "chat_template": self._settings.apply_chat_template,
            "system_instruction": self._settings.system_instruction,
        }

    def _load(self, request: Request) -> Any:
        """The request's tasks with their data, as lm-eval runs them."""
        if request.task not in self._loaded:
            from datasets.exceptions import DatasetsError

            try:
                with _without_downloads() if request.local else contextlib.nullcontext():
                    loaded = self._manager.load([request.task])
            except (OSError, ValueError, AssertionError, LookupError, DatasetsError) as error:
                reason = " ".join(str(error).split())[:400]
                raise InputError(
                    f"evaluation.tasks: {request.task}: {reason}. Tasks load their data from the "
                    "Hub unless evaluation.data_dir or the task file names local data"
                ) from error
            for task in loaded["tasks"].values():
                _set_num_fewshot(task, request.num_fewshot)
                if request.max_context_tokens is not None:
                    _cut_contexts(task, self._tokenizer, request.max_context_tokens)
            self._loaded[request.task] = loaded
        return self._loaded[request.task]

    def _check_processes(self, items: Mapping[str, int]) -> None:
        """Refuse a process without items, with which lm-eval fails."""
        for name, number in items.items():
            if number < self._num_processes:
                raise InputError(
                    f"the task {name} has {number} items for {self._num_processes} processes. "
                    "Raise evaluation.limit, or evaluate on fewer processes"
                )

    def _wrap(self, model: Any) -> Any:
        """The model as lm-eval runs it, on this process's share of the items."""
        from lm_eval.models.huggingface import HFLM

        settings = self._settings
        lm = HFLM(
            pretrained=model,
            tokenizer=self._tokenizer,
            batch_size=settings.batch_size,
            # A template writes its own. Otherwise the tokenizer decides, as for texts in training.
            add_bos_token=False if settings.apply_chat_template else None,
        )
        if self._num_processes > 1:
            # For a model in memory, HFLM leaves it to the caller to divide items among processes.
            lm.accelerator = Accelerator()
            lm._rank, lm._world_size = self._process_index, self._num_processes
        return lm

    def _result(
        self, name: str, output: dict[str, Any], loaded: Any, request: Request
    ) -> TaskResult:
        figures = output["results"][name]
        better = output.get("higher_is_better", {}).get(name, {})
        metrics = {}
        for key, value in figures.items():
            metric, comma, filter_name = key.partition(",")
            is_error = metric.endswith("_stderr")
            if not comma or is_error or not isinstance(value, (int, float)):
                continue
            stderr = figures.get(f"{metric}_stderr,{filter_name}")
            metrics[metric_label(metric, filter_name)] = Metric(
                value=float(value),
                stderr=float(stderr) if isinstance(stderr, (int, float)) else None,
                higher_is_better=bool(better.get(metric, True)),
            )
        is_task = name in loaded["tasks"]
        members = (
            [name] if is_task else [t.task_name for t in loaded["groups"][name].get_all_tasks()]
        )
        counts = output["n-samples"]
        shots = output["configs"][name]["num_fewshot"] if is_task else None
        notes = list(self._notes.get(name, []))
        for member in members:
            scored, total = (int(counts[member][key]) for key in ("effective", "original"))
            if scored < total:
                notes.append(f"the first {scored:,} of the {total:,} items of {member}")
        if is_task and request.num_fewshot not in (None, shots):
            notes.append(f"the task sets {shots} examples itself; num_fewshot has no effect")
        return TaskResult(
            task=name,
            num_items=sum(int(counts[member]["effective"]) for member in members),
            metrics=metrics,
            local=all(_is_local(output["configs"][member]) for member in members),
            num_fewshot=shots,
            notes=notes,
            **self._prompting,
        )


def item_scores(rows: Sequence[Mapping[str, Any]], metrics: Mapping[str, Metric]) -> ItemScores:
    """The scores of items by metric, for the metrics whose value is the mean over the items.

    Args:
        rows: what lm-eval logs: one row per filter and item, sorted by both.
        metrics: of the task.
    """
    items: list[int] = []
    scores: dict[str, NDArray[np.float64]] = {}
    for filter_name in dict.fromkeys(row["filter"] for row in rows):
        own = [row for row in rows if row["filter"] == filter_name]
        items = [int(row["doc_id"]) for row in own]
        for metric in own[0]["metrics"]:
            label = metric_label(metric, filter_name)
            values = [row.get(metric) for row in own]
            if label not in metrics or not all(isinstance(v, NUMBERS) for v in values):
                continue
            found = np.array(values, np.float64)
            # Others, such as F1 of a corpus, are no means.
            if math.isclose(found.mean(), metrics[label].value, rel_tol=1e-9, abs_tol=1e-12):
                scores[label] = found
    return ItemScores(np.array(items, np.int64), scores)


def write_tasks(
    requests: Iterable[Request], data_dir: str | None, folder: Path
) -> dict[str, list[str]]:
    """Write the task files of the benchmarks among `requests`, with local data if there is any.

    Returns:
        By task, what a reader of its figures must know of its items.
    """
    notes = {}
    for request in requests:
        if request.task not in BENCHMARKS:
            continue
        items = read_request(request, data_dir)
        if items is not None:
            notes[request.task] = items.notes
        write_task(BENCHMARKS[request.task], folder, items, request.num_fewshot)
    return notes


def check_names(requests: Iterable[Request], include_path: str | None) -> None:
    """Refuse tasks that neither lm-eval nor the user's folder has. Reads no data.

    Raises:
        InputError: the message names them.
    """
    others = [request for request in requests if request.task not in BENCHMARKS]
    if others:
        _index(others, include_path)


def _index(
    requests: Iterable[Request], include_path: str | None, folder: Path | None = None
) -> Any:
    """lm-eval's index of tasks, from as few files as the requests need.

    Args:
        folder: of the task files of the benchmarks.
    """
    # Imported here because it takes seconds, and a run without tasks does not need it.
    from lm_eval.tasks import TaskManager

    names = {request.task for request in requests}
    # Tasks in the user's folder take precedence over ours.
    paths = [path for path in (folder, include_path) if path is not None]
    manager = TaskManager(include_path=paths, include_defaults=False)
    if not names <= set(manager.all_tasks):
        # All tasks of lm-eval, which takes tens of seconds.
        manager = TaskManager(include_path=paths)
    unknown = sorted(names - set(manager.all_tasks))
    if unknown:
        raise InputError(
            f"evaluation.tasks: lm-eval has no task {', '.join(unknown)}"
            + (f", nor has {include_path}" if include_path else "")
            + ". `lm_eval ls tasks` prints the names it knows"
        )
    return manager


def _without_tags(requests: Iterable[Request], manager: Any) -> list[Request]:
    """Replace a tag by its tasks, so that each is run and kept separately."""
    index = manager.task_index
    found: dict[str, Request] = {}
    for request in requests:
        entry = index[request.task]
        for name in sorted(entry.tags) if entry.kind.name == "TAG" else [request.task]:
            found.setdefault(name, replace(request, task=name))
    return list(found.values())


def _seed_everything(seed: int) -> None:
    import langdetect

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    # IFEval detects languages; without a seed, the same answer can pass or fail.
    langdetect.DetectorFactory.seed = seed


def _set_num_fewshot(task: Any, wanted: int | None) -> None:
    """Set the number of examples as lm-eval does: a task that sets 0 keeps it; the default is 0."""
    own = task.get_config("num_fewshot")
    if wanted is not None and own != 0:
        task.set_config(key="num_fewshot", value=wanted)
    elif own is None:
        task.set_config(key="num_fewshot", value=0)


def _fit_generation(task: Any, lm: Any) -> list[str]:
    """Shorten answers that could fill all positions of the model; lm-eval would refuse them."""
    if task.OUTPUT_TYPE != "generate_until":
        return []
    own = dict(task.config.generation_kwargs or {})
    wanted = int(own.get("max_gen_toks", lm.max_gen_toks))
    if wanted < lm.max_length:
        return []
    shorter = lm.max_length // 2
    task.set_config(key="generation_kwargs", value={**own, "max_gen_toks": shorter})
    return [
        f"answers end after {shorter} tokens, not {wanted}: the model has {lm.max_length} positions"
    ]


def _cut_contexts(task: Any, tokenizer: Any, max_tokens: int) -> None:
    """Keep the first `max_tokens` tokens of the `context` of every item and example."""

    if "context" not in task.eval_docs.features:
        raise InputError(f"max_context_tokens: the items of {task.task_name} have no `context`")

    def cut(text: str) -> str:
        offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ends = offsets["offset_mapping"]
        return text if len(ends) <= max_tokens else text[: ends[max_tokens - 1][1]]

    split = task.config.test_split or task.config.validation_split
    # Done once, here: lm-eval processes a dataset again each time it reads it.
    items = task.eval_docs
    contexts = [cut(text) for text in items["context"]]
    task.config.process_docs = None
    task.dataset[split] = items.remove_columns("context").add_column("context", contexts)
    examples = task.sampler.df[: task.get_config("num_fewshot") or 0]
    task.sampler.replace_df([{**doc, "context": cut(doc["context"])} for doc in examples])


def _is_local(config: Mapping[str, Any]) -> bool:
    path = config.get("dataset_path")
    return path in LOCAL_DATA or (isinstance(path, str) and Path(path).exists())


@contextlib.contextmanager
def _on_stderr() -> Iterator[None]:
    """Send what lm-eval prints to standard error; standard output is for results."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


@contextlib.contextmanager
def _without_downloads() -> Iterator[None]:
    """Keep lm-eval's IFEval from downloading sentence data when it is imported.

    It does so even if no item needs the data, and without a network that can take minutes.
    """
    import nltk

    download = nltk.download
    nltk.download = lambda *args, **kwargs: False
    try:
        yield
    finally:
        nltk.download = download
