"""Measures models: loss on held-out responses, and tasks of lm-evaluation-harness, in process."""

from forgetting.evaluation.harness import Harness, Measured, write_tasks
from forgetting.evaluation.heldout import HeldoutMeasurement, evaluate_heldout
from forgetting.evaluation.suites import Request, plan_tasks
from forgetting.rundir.results import HELDOUT, Group, Metric, TaskResult

__all__ = [
    "HELDOUT",
    "Group",
    "Harness",
    "HeldoutMeasurement",
    "Measured",
    "Metric",
    "Request",
    "TaskResult",
    "evaluate_heldout",
    "plan_tasks",
    "write_tasks",
]
