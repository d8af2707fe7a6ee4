"""When a training writes a checkpoint, and how it ends at Ctrl-C or SIGTERM.

A signal never cuts an optimizer step: the step ends, a checkpoint is written, then training stops.
So a resumed run is the same as one that was not interrupted. Several processes agree after each
step, since a signal reaches them at different steps. Knows nothing of what is trained.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback

from forgetting.console import CONTINUE, logger
from forgetting.rundir.processes import num_processes

SECONDS_BETWEEN_CHECKPOINTS = 300.0
NOTICE = "Interrupted. Writing a checkpoint after this step. Press Ctrl-C again to stop at once.\n"


class SignalWatch:
    """Notes Ctrl-C and SIGTERM while the context is open, instead of ending the process.

    A second signal acts at once, as it would without this. Outside of the main thread, where Python
    has no signals, it notes nothing. Among several processes it leaves Ctrl-C to the launcher,
    which ends them with SIGTERM.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        """Number of the first signal; None if there was none."""
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> SignalWatch:
        if threading.current_thread() is threading.main_thread():
            numbers = [signal.SIGTERM] if num_processes() > 1 else [signal.SIGTERM, signal.SIGINT]
            for number in numbers:
                # What is ignored, such as Ctrl-C in a background job, stays ignored.
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.received is not None:
            self.__exit__()
            signal.raise_signal(number)
            return
        self.received = number
        if number == signal.SIGINT:
            # Not through the log, whose lock the interrupted code may hold.
            os.write(2, NOTICE.encode())


class CheckpointCallback(TrainerCallback):
    """Asks for a checkpoint in time and before the end, and stops at a noted signal.

    Args:
        watch: notes the signals.
        is_timed: whether checkpoints are written by the clock, at least every 5 minutes.
        clock: seconds from any point in time on.
    """

    def __init__(
        self,
        watch: SignalWatch,
        *,
        is_timed: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stopped_by: int | None = None
        """The signal at which training stopped, in any process; None if it did not."""
        self._watch, self._is_timed, self._clock = watch, is_timed, clock
        self._saved = self._ended = clock()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._saved = self._ended = self._clock()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Writing it is no part of a step.
        self._saved = self._ended = self._clock()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now = self._clock()
        # The next step is likely to take as long as this one.
        next_end = now + (now - self._ended)
        self._ended = now
        is_due = self._is_timed and next_end - self._saved > SECONDS_BETWEEN_CHECKPOINTS
        is_due, number = agree(is_due, self._watch.received or 0)
        if self._is_timed and (is_due or state.global_step >= state.max_steps):
            control.should_save = True
        if number:
            self.stopped_by = number
            control.should_save = control.should_training_stop = True


def agree(is_due: bool, number: int) -> tuple[bool, int]:
    """Whether a checkpoint is due, and the signal received, in any of the processes."""
    if num_processes() == 1:
        return is_due, number
    import torch.distributed as dist
    from accelerate import PartialState

    wanted = torch.tensor([int(is_due), number], device=PartialState().device)
    dist.all_reduce(wanted, op=dist.ReduceOp.MAX)
    due, agreed = wanted.tolist()
    return bool(due), int(agreed)


def leave(number: int) -> None:
    """End as the signal would have ended the process.

    Raises:
        KeyboardInterrupt: it was Ctrl-C.
        SystemExit: it was another one; the exit code is that of shells, 128 + its number.
    """
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    if num_processes() == 1:
        logger.warning("Terminated. %s", CONTINUE)
    raise SystemExit(128 + number)
