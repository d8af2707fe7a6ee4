"""Measures the models of a run: on held-out samples and on tasks, each result in a file.

Input: a recipe once, then one model after the other. Output: a JSON file a task, and the
answers if the recipe keeps them. A task that has a result file is not measured again. The base
model and the tasks' data are loaded once for all models.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from forgetting.config import Recipe
from forgetting.console import logger, progress
from forgetting.evaluation.answers import answer_prompts, item_scores, score_answers
from forgetting.evaluation.harness import Harness
from forgetting.evaluation.heldout import HeldoutMeasurement, evaluate_heldout
from forgetting.models.adapters import SharedBase
from forgetting.models.loading import load_tokenizer
from forgetting.models.prompting import prompting_tokenizer, uses_template
from forgetting.rundir import layout
from forgetting.rundir.answer_sheets import AnswerSheet, write_answer_sheet
from forgetting.rundir.heldout_losses import write_heldout
from forgetting.rundir.item_scores import write_item_scores
from forgetting.rundir.processes import ALONE, Processes
from forgetting.rundir.results import (
    ANSWERS,
    HELDOUT,
    TaskResult,
    has_result,
    read_result,
    write_answers,
    write_result,
)
from forgetting.rundir.samples import Samples


class Bench:
    """The base model and the tasks of a recipe, ready to measure one model after the other.

    Nothing is loaded before it is used. The processes of a run each have a `Bench` and call
    `measure` together; the first writes the results.

    Args:
        recipe: the recipe.
        processes: of the run.
        day: `DataSummary.date`, for templates that read the clock. Default: they read it.
        end_token_ids: `DataSummary.end_token_ids`, at which answers end.
    """

    def __init__(
        self,
        recipe: Recipe,
        processes: Processes = ALONE,
        day: str | None = None,
        end_token_ids: Collection[int] = (),
    ) -> None:
        self._recipe = recipe
        self._processes = processes
        self._day = day
        self._end_token_ids = end_token_ids
        self.models = SharedBase(recipe.model)

    @functools.cached_property
    def harness(self) -> Harness:
        """The recipe's lm-eval tasks."""
        settings = self._recipe.evaluation
        if uses_template(self._recipe) and not settings.apply_chat_template:
            logger.warning(
                "The models were trained with a chat template, and the tasks are measured without "
                "it. Set evaluation.apply_chat_template: true to prompt them as they were trained"
            )
        return Harness(
            settings,
            prompting_tokenizer(self._recipe, self._day),
            seed=self._recipe.seed,
            process_index=self._processes.index,
            num_processes=self._processes.count,
        )

    @property
    def has_heldout(self) -> bool:
        """Whether the recipe measures held-out samples, and has any."""
        return self._recipe.evaluation.heldout and self._recipe.data.num_heldout > 0

    @property
    def has_answers(self) -> bool:
        """Whether the recipe asks for answers to held-out prompts."""
        return self.has_heldout and self._recipe.evaluation.num_answers > 0

    def measure(
        self,
        variant: str,
        path: Path | None,
        heldout: Path,
        output: Path,
        keep: Callable[[Path], None] = lambda file: None,
    ) -> None:
        """Measure one model.

        Args:
            variant: name for messages and results.
            path: folder of the fine-tuned model; None: the base model.
            heldout: file of the held-out samples.
            output: folder for the result files.
            keep: called with each file that is complete.

        Raises:
            InputError: see `SharedBase.lend` and `Harness.measure`.
        """
        requests = self.harness.requests if self._recipe.evaluation.tasks else []
        # The first process decides: the others could see files that it writes in the meantime.
        names = [HELDOUT, ANSWERS, *(request.task for request in requests)]
        measured = self._processes.share([name for name in names if has_result(output, name)])
        with self.models.lend(path) as model:
            if self.has_heldout and HELDOUT not in measured:
                samples = Samples.read(heldout)
                measured_here = self._measure_heldout(model, variant, samples)
                if self._processes.is_main:
                    keep(
                        write_heldout(
                            output, samples, measured_here.log_probs, measured_here.is_greedy
                        )
                    )
                self._write_result(output, variant, measured_here.result, keep)
            if self.has_answers and ANSWERS not in measured and self._processes.is_main:
                sheet = self._answer(model, variant, Samples.read(heldout))
                keep(write_answer_sheet(output, sheet))
                keep(write_item_scores(output, ANSWERS, item_scores(sheet)))
                self._write_result(output, variant, score_answers(sheet), keep)
            done = sum(request.task in measured for request in requests)
            with progress(f"Evaluating {variant} on tasks", len(requests), done) as advance:
                for request in requests:
                    if request.task in measured:
                        continue
                    found = self.harness.measure(model, request)
                    if found is not None:
                        for name, rows in found.samples.items():
                            keep(write_answers(output, name, rows))
                        for name, scores in found.items.items():
                            keep(write_item_scores(output, name, scores))
                        for result in found.results:
                            self._write_result(output, variant, result, keep)
                    advance(1, request.task)
        if requests and self._processes.is_main:
            results = {
                request.task: read_result(layout.result_file(output, request.task))
                for request in requests
            }
            for result in self.harness.suite_results(results):
                self._write_result(output, variant, result, keep)

    def _measure_heldout(self, model: Any, variant: str, samples: Samples) -> HeldoutMeasurement:
        with progress(f"Evaluating {variant} on held-out samples", len(samples)) as advance:
            return evaluate_heldout(
                model,
                samples,
                tokens_per_batch=self._recipe.scoring.tokens_per_batch,
                process_index=self._processes.index,
                num_processes=self._processes.count,
                advance=advance,
            )

    def _answer(self, model: Any, variant: str, samples: Samples) -> AnswerSheet:
        settings = self._recipe.evaluation
        number = min(settings.num_answers, len(samples))
        with progress(f"Answers of {variant} to held-out prompts", number) as advance:
            return answer_prompts(
                model,
                load_tokenizer(self._recipe.model),
                samples,
                number=number,
                end_token_ids=self._end_token_ids,
                max_new_tokens=settings.answer_tokens,
                max_length=self._recipe.data.max_length,
                batch_size=settings.batch_size,
                advance=advance,
            )

    def _write_result(
        self, output: Path, variant: str, result: TaskResult, keep: Callable[[Path], None]
    ) -> None:
        if self._processes.is_main:
            keep(write_result(output, variant, result))
