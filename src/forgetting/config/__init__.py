"""Recipes: their sections as pydantic models, and reading and writing them as YAML."""

from forgetting.config.fields import ItemLimit, Name, Section
from forgetting.config.inputs import (
    MAX_RECORD_BYTES,
    PLAIN_TEMPLATE,
    DataSettings,
    ModelSettings,
    SourceSettings,
    WorldSettings,
    named_sources,
)
from forgetting.config.load import (
    check_batches,
    check_installed,
    dump_recipe,
    load_recipe,
    recipe_descriptions,
    shipped_recipes,
)
from forgetting.config.schema import (
    EvaluationSettings,
    LoraSettings,
    Recipe,
    ReferenceSettings,
    ReportSettings,
    ScoringSettings,
    TaskSettings,
    TrainingSettings,
)
from forgetting.config.unlearning import (
    DetectorSettings,
    ForgettingSettings,
    LossSettings,
    SelectionSettings,
)
from forgetting.config.variants import Objective, VariantSettings

__all__ = [
    "MAX_RECORD_BYTES",
    "PLAIN_TEMPLATE",
    "DataSettings",
    "DetectorSettings",
    "EvaluationSettings",
    "ForgettingSettings",
    "ItemLimit",
    "LoraSettings",
    "LossSettings",
    "ModelSettings",
    "Name",
    "Objective",
    "Recipe",
    "ReferenceSettings",
    "ReportSettings",
    "ScoringSettings",
    "Section",
    "SelectionSettings",
    "SourceSettings",
    "TaskSettings",
    "TrainingSettings",
    "VariantSettings",
    "WorldSettings",
    "check_batches",
    "check_installed",
    "dump_recipe",
    "load_recipe",
    "named_sources",
    "recipe_descriptions",
    "shipped_recipes",
]
