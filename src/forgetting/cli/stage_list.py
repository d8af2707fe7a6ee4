"""The stages that have a command of their own."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StageCommand:
    """A stage, as far as the command line knows it."""

    name: str
    summary: str
    is_shared: bool
    """Whether several processes can share it."""


STAGES = (
    StageCommand("prepare", "Build the corpus: tokens, labels and disjoint splits.", False),
    StageCommand("reference", "Fine-tune the reference model on D_ref.", True),
    StageCommand("score", "Score D_train under the base and the reference model.", True),
    StageCommand("select", "Select the tokens to learn, forget and ignore.", False),
    StageCommand("train", "Fine-tune every variant on D_train.", True),
    StageCommand("evaluate", "Evaluate every variant and the untrained base model.", True),
    StageCommand("report", "Write the report: one page, with its figures and tables.", False),
)
