"""Shows the progress of a training in the library's own way."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from transformers import TrainerCallback

from forgetting.console import progress


class ProgressCallback(TrainerCallback):
    """Shows steps and time left in the library's own way."""

    def __init__(self, label: str) -> None:
        self.label = label
        self._stack = ExitStack()
        self._note = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        bar = progress(self.label, state.max_steps, state.global_step)
        self._advance = self._stack.enter_context(bar)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self._note = f"loss {logs['loss']:.3f}"

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._advance(1, self._note)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._stack.close()
