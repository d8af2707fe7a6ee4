"""The stages of a run, in order. One file a stage; to add one, put it into the list."""

from forgetting.stages.alternatives import ALTERNATIVES
from forgetting.stages.base import ALL_EARLIER, Stage, Step
from forgetting.stages.detect import DETECT
from forgetting.stages.evaluate import EVALUATE
from forgetting.stages.evolve import EVOLVE
from forgetting.stages.prepare import PREPARE
from forgetting.stages.probe import PROBE
from forgetting.stages.reference import REFERENCE
from forgetting.stages.report import REPORT
from forgetting.stages.score import SCORE
from forgetting.stages.select import SELECT
from forgetting.stages.train import TRAIN

STAGES: tuple[Stage, ...] = (
    PREPARE,
    REFERENCE,
    # Before the scores: with the copies scored, a part of D_train can already be judged.
    PROBE,
    SCORE,
    DETECT,
    ALTERNATIVES,
    EVOLVE,
    SELECT,
    TRAIN,
    EVALUATE,
    REPORT,
)

__all__ = ["ALL_EARLIER", "STAGES", "Stage", "Step"]
