"""The answers of a run's models to held-out prompts, side by side, for the page and as JSON."""

from __future__ import annotations

from typing import Any

from forgetting.rundir.answer_sheets import side_by_side
from forgetting.rundir.reader import RunReader


def answer_entries(run: RunReader) -> list[dict[str, Any]]:
    """One entry per prompt: sample, source, prompt, expected response, and an answer per variant.

    The answers are by variant, in the order of the variants. Empty if nothing was generated.
    """
    return [
        {
            "sample_id": prompt.sample_id,
            "source": prompt.source,
            "prompt": prompt.prompt,
            "expected": prompt.expected,
            "answers": {
                variant: {
                    "answer": answer.answer,
                    "exact_match": answer.exact_match,
                    "chrf": answer.chrf,
                    "is_cut": answer.is_cut,
                }
                for variant, answer in prompt.answers.items()
            },
        }
        for prompt in side_by_side(run.answers)
    ]
