"""What a model can do: held-out responses, and tasks of lm-evaluation-harness, in process.

Goes in: a model in memory. Comes out: one `TaskResult` a task, with standard errors. Knows
nothing of variants, recipes or of how the model was trained.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from forgetting.data.samples import Samples
from forgetting.errors import InputError
from forgetting.scoring import score_samples

HELDOUT = "heldout"
# Of bootstrapped standard errors, such as F1's; lm-eval's own default takes minutes a task.
BOOTSTRAP_SAMPLES = 1000


class Metric(BaseModel):
    """One figure."""

    value: float
    stderr: float | None
    higher_is_better: bool


class Group(BaseModel):
    """The figures of a part of a task's items."""

    num_items: int
    metrics: dict[str, Metric]


class TaskResult(Group):
    """The figures of a task, whole and by group."""

    task: str
    local: bool = False
    """Whether the items come from local files rather than from the task's own data set."""
    groups: dict[str, Group] = {}


def evaluate_heldout(
    model: Any,
    samples: Samples,
    *,
    tokens_per_batch: int | None = None,
    advance: Callable[[int, str], None] = lambda amount, note: None,
) -> TaskResult:
    """Measure how well a model predicts held-out responses.

    `loss` is the mean cross-entropy of the response tokens in nats, its standard error that of
    a ratio over samples, since tokens of one response are not independent; `perplexity` is its
    exponential; `exact_match` is the share of responses that greedy decoding would give token
    for token, end included (every token is the most likely one after those before it, so one
    forward pass tells).

    Args:
        samples: at least one.
    """
    scores = score_samples(model, samples, tokens_per_batch=tokens_per_batch, advance=advance)
    starts = samples.response_starts[:-1]
    losses = np.add.reduceat(-scores.log_probs.astype(np.float64), starts)
    exact = np.logical_and.reduceat(scores.is_greedy, starts)
    counts = samples.num_response_tokens
    sources = np.asarray(samples.table["source"].to_pylist(), dtype=object)
    groups = {
        str(name): _response_metrics(
            losses[sources == name], counts[sources == name], exact[sources == name]
        )
        for name in sorted(set(sources))
    }
    whole = _response_metrics(losses, counts, exact)
    return TaskResult(task=HELDOUT, local=True, groups=groups, **whole.model_dump())


def _response_metrics(
    losses: NDArray[np.float64], counts: NDArray[np.int64], exact: NDArray[np.bool_]
) -> Group:
    num_items, num_tokens = len(losses), int(counts.sum())
    loss = float(losses.sum() / num_tokens)
    stderr = None
    if num_items > 1:
        residuals = losses - loss * counts
        stderr = math.sqrt(num_items / (num_items - 1) * float((residuals**2).sum())) / num_tokens
    accuracy = float(exact.mean())
    spread = math.sqrt(accuracy * (1 - accuracy) / (num_items - 1)) if num_items > 1 else None
    # exp(709) is the largest a float holds; a loss above it has no perplexity to speak of.
    perplexity = math.exp(min(loss, 709.0))
    return Group(
        num_items=num_items,
        metrics={
            "exact_match": Metric(value=accuracy, stderr=spread, higher_is_better=True),
            "loss": Metric(value=loss, stderr=stderr, higher_is_better=False),
            "perplexity": Metric(
                value=perplexity,
                stderr=None if stderr is None else perplexity * stderr,
                higher_is_better=False,
            ),
        },
    )


def evaluate_tasks(
    model: Any,
    tokenizer: Any,
    tasks: Iterable[str],
    *,
    include_path: str | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    batch_size: int = 8,
    seed: int = 0,
) -> list[TaskResult]:
    """Run tasks of lm-evaluation-harness on a model in memory, adapter and all.

    Args:
        tasks: names of tasks that lm-eval ships or that lie in `include_path`.
        include_path: folder with task files.
        limit: items of each task; default all.
        num_fewshot: examples in the prompt; default what each task says.
        batch_size: sequences in one forward pass.
        seed: of everything that lm-eval draws.

    Raises:
        InputError: a task is unknown, or its data cannot be had.
    """
    # Imported here: it takes seconds, and a run without tasks does not need it.
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    names = list(tasks)
    # The index of all shipped tasks takes seconds; tasks of one's own do not need it.
    manager = TaskManager(include_path=include_path, include_defaults=False)
    if include_path is None or not set(names) <= set(manager.all_tasks):
        manager = TaskManager(include_path=include_path)
    unknown = sorted(set(names) - set(manager.all_tasks))
    if unknown:
        raise InputError(
            f"evaluation.tasks: lm-eval knows no task {', '.join(unknown)}"
            + (f", and none lies in {include_path}" if include_path else "")
            + ". `lm_eval ls tasks` prints the names it knows"
        )
    wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    try:
        # lm-eval prints while it works; standard output is for results.
        with contextlib.redirect_stdout(sys.stderr):
            output = lm_eval.simple_evaluate(
                model=wrapped,
                tasks=names,
                task_manager=manager,
                limit=limit,
                num_fewshot=num_fewshot,
                bootstrap_iters=BOOTSTRAP_SAMPLES,
                log_samples=False,
                random_seed=seed,
                numpy_random_seed=seed,
                torch_random_seed=seed,
                fewshot_random_seed=seed,
            )
    except (OSError, ValueError) as error:
        raise InputError(
            f"evaluation.tasks ({', '.join(names)}): {' '.join(str(error).split())[:400]}. Tasks "
            "take their data from the hub unless their file names local data"
        ) from error
    assert output is not None
    return [_task_result(name, output, _is_local(output, name)) for name in output["results"]]


def _task_result(name: str, output: dict[str, Any], local: bool) -> TaskResult:
    figures = output["results"][name]
    better = output.get("higher_is_better", {}).get(name, {})
    metrics = {}
    for key, value in figures.items():
        metric, _, _filter = key.partition(",")
        if "_stderr" in metric or not isinstance(value, (int, float)) or "," not in key:
            continue
        stderr = figures.get(f"{metric}_stderr,{_filter}")
        label = metric if _filter == "none" else f"{metric} ({_filter})"
        metrics[label] = Metric(
            value=float(value),
            stderr=float(stderr) if isinstance(stderr, (int, float)) else None,
            higher_is_better=bool(better.get(metric, True)),
        )
    num_items = output.get("n-samples", {}).get(name, {}).get("effective", 0)
    return TaskResult(task=name, num_items=int(num_items), metrics=metrics, local=local)


def _is_local(output: dict[str, Any], name: str) -> bool:
    config = output.get("configs", {}).get(name, {})
    return config.get("dataset_path") in {"json", "csv", "parquet", "text", "arrow"} or (
        isinstance(config.get("dataset_path"), str) and Path(config["dataset_path"]).exists()
    )
