"""Runs the detector over a data set, with a recipe that is made for it.

Input: a data set and a model. Output: an `Audit`, a folder with a run directory in it. Two passes
of the model over the data and over copies with planted noise; nothing is trained.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from forgetting.config import (
    DataSettings,
    ModelSettings,
    Recipe,
    SelectionSettings,
    SourceSettings,
    VariantSettings,
    load_recipe,
)
from forgetting.data.sources import is_local
from forgetting.errors import InputError
from forgetting.inspecting import (
    DEFAULT_MAX_LENGTH,
    MAX_SAMPLES,
    resolved,
    run_on_all,
)
from forgetting.models import loading
from forgetting.models.gguf import EMBEDDED, title_of, with_folder
from forgetting.rundir import layout
from forgetting.rundir.findings import DetectorSummary, read_findings
from forgetting.rundir.samples import SampleFile
from forgetting.rundir.stats import DataSummary

STAGES = ("prepare", "score", "probe", "detect")
BAD = 0.5
"""Probability of being bad from which a token is flagged."""
# A file with many broken records is what an audit is for. With fewer usable ones, the settings are
# wrong.
MAX_REJECTED_SHARE = 0.9


@dataclass(frozen=True)
class Audit:
    """A finished audit."""

    folder: Path

    @property
    def run(self) -> Path:
        """The run directory."""
        return self.folder / "run"

    @property
    def page(self) -> Path:
        """The page with some records, token by token."""
        return self.folder / "index.html"

    @property
    def flagged_jsonl(self) -> Path:
        """The flagged records, for programs."""
        return self.folder / "flagged.jsonl"

    @property
    def flagged_csv(self) -> Path:
        """The flagged records, for tables."""
        return self.folder / "flagged.csv"

    @property
    def scores(self) -> Path:
        """All records, with lists of numbers for each token."""
        return self.folder / "scores.parquet"

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe that was made for the data."""
        return load_recipe(layout.recipe_file(self.run))

    @property
    def source(self) -> SourceSettings:
        """The data."""
        return self.recipe.data.sources[0]

    @property
    def model_name(self) -> str:
        """The model that judged: the name of its folder, or its Hub id."""
        name = self.recipe.model.name_or_path
        return title_of(name) or (Path(name).name if Path(name).is_absolute() else name)

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the tokens."""
        return SampleFile(layout.train_file(self.run)).fingerprint

    @cached_property
    def findings(self) -> DetectorSummary:
        """What the detector found."""
        return read_findings(self.run, self.fingerprint)

    @cached_property
    def data(self) -> DataSummary:
        """What became of the records."""
        return DataSummary.load(layout.data_dir(self.run))


def audit_data(
    data: str,
    output: Path | None = None,
    *,
    model: str = EMBEDDED,
    limit: int | None = None,
    fields: Mapping[str, str] | None = None,
) -> Audit:
    """Judge every usable record of a data set.

    Finished stages in `output` are skipped and interrupted ones resume.

    Args:
        data: a file or folder, or a data set id on the Hub.
        output: folder to write. Default: `audits/<name of the data>`.
        model: a folder, a GGUF file, a Hub id, or `embedded`.
        limit: read only the first records, this many.
        fields: new names for fields of a record: `{"prompt": "question"}` reads `question` as
            `prompt`.

    Returns:
        The audit.

    Raises:
        InputError: data or the model cannot be read, or `output` holds another audit.
    """
    source = SourceSettings(path=resolved(data), limit=limit, fields=dict(fields or {}))
    is_local(source)  # Refuse a missing file before loading a model.
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", source.label)[:80]
    audit = Audit(Path("audits") / name if output is None else output)
    settings = ModelSettings(name_or_path=resolved(model), dtype=_dtype())
    positions = loading.max_positions(loading.load_config(with_folder(settings)))
    posterior = SelectionSettings(quality="detector", threshold="posterior", posterior=BAD)
    recipe = Recipe(
        name=f"audit-{name}",
        model=settings,
        data=DataSettings(
            sources=[source],
            num_reference=0,
            num_train=MAX_SAMPLES if limit is None else min(limit, MAX_SAMPLES),
            num_heldout=0,
            max_length=min(DEFAULT_MAX_LENGTH, positions or DEFAULT_MAX_LENGTH),
            max_rejected_share=MAX_REJECTED_SHARE,
        ),
        # Nothing is trained, and only a variant that forgets takes responses labeled false.
        variants={"audited": VariantSettings(objective="forgetting", selection=posterior)},
    )
    run_on_all(recipe, audit.run, STAGES)
    return audit


def open_audit(folder: Path) -> Audit:
    """The audit in a folder.

    Raises:
        InputError: there is none, or it is not finished.
    """
    audit = Audit(folder)
    if not layout.recipe_file(audit.run).is_file():
        raise InputError(f"{folder} holds no audit. Run `forgetting audit DATA --output {folder}`")
    if not layout.summary_file(layout.detector_dir(audit.run)).is_file():
        raise InputError(
            f"{folder} holds an unfinished audit. Run the same `forgetting audit` again to "
            "continue it"
        )
    return audit


def _dtype() -> Literal["auto", "bfloat16"]:
    """`bfloat16` where the CPU computes in it, else `auto`."""
    on_cpu = loading.pick_device().type == "cpu"
    return "bfloat16" if on_cpu and loading.cpu_has_bfloat16() else "auto"
