"""Runs the detector over a data set, with a recipe that is made for it.

Input: a data set and a model. Output: an `Audit`, a folder with a run directory in it. Two passes
of the model over the data and over copies with planted noise; nothing is trained.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from forgetting.config import (
    DataSettings,
    ModelSettings,
    Recipe,
    ScoringSettings,
    SelectionSettings,
    SourceSettings,
    VariantSettings,
    load_recipe,
)
from forgetting.errors import InputError
from forgetting.inspecting import (
    DEFAULT_MAX_LENGTH,
    MAX_REJECTED_SHARE,
    MAX_SAMPLES,
    resolved,
    run_on_all,
    source_settings,
)
from forgetting.method.columns import POSTERIOR, columns_of
from forgetting.method.measures import DETECTOR, Measure, usable_measure
from forgetting.models import loading
from forgetting.models.gguf import EMBEDDED, title_of, with_folder
from forgetting.rundir import layout
from forgetting.rundir.findings import DetectorSummary, read_findings
from forgetting.rundir.samples import SampleFile
from forgetting.rundir.stats import DataSummary

STAGES = ("prepare", "probe", "score", "detect")
BAD = 0.5
"""Probability of being bad from which a token is flagged."""


# An audit that is interrupted loses no more than this, and can judge all that is scored.
SAMPLES_PER_SHARD_CPU = 200


@dataclass(frozen=True)
class Audit:
    """The folder of an audit. All but the paths needs one that is finished."""

    folder: Path

    @property
    def run(self) -> Path:
        """The run directory."""
        return self.folder / "run"

    @property
    def partial(self) -> Path:
        """The audit of the records that were scored when this one was interrupted."""
        return self.folder / "partial"

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

    @property
    def num_judged(self) -> int:
        """Records that are judged."""
        return sum(source.num_samples for source in self.findings.by_source)

    @property
    def num_usable(self) -> int:
        """Distinct usable records; more than are judged if the audit is a partial one."""
        return self.data.splits["train"].samples

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
    columns: Sequence[str] | None = None,
    escaped: bool = False,
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
        columns: names of the columns of a .csv or .tsv file without a header.
        escaped: whether quotes in such a file are plain text and `\\n` stands for a line break.

    Returns:
        The audit.

    Raises:
        InputError: data or the model cannot be read, or `output` holds another audit, or a finished
            one of the same data with other options.
    """
    source = source_settings(data, limit, fields, columns, escaped=escaped)
    audit = Audit(default_folder(data) if output is None else output)
    settings = ModelSettings(name_or_path=resolved(model), dtype=_dtype())
    judge = with_folder(settings)
    _refuse_other_options(audit, source, judge)
    positions = loading.max_positions(loading.load_config(judge))
    posterior = SelectionSettings(quality="detector", threshold="posterior", posterior=BAD)
    recipe = Recipe(
        name="audit",
        model=settings,
        data=DataSettings(
            sources=[source],
            num_reference=0,
            num_train=MAX_SAMPLES if limit is None else min(limit, MAX_SAMPLES),
            num_heldout=0,
            max_length=min(DEFAULT_MAX_LENGTH, positions or DEFAULT_MAX_LENGTH),
            max_rejected_share=MAX_REJECTED_SHARE,
        ),
        scoring=_scoring(),
        # Nothing is trained, and only a variant that forgets takes responses labeled false.
        variants={"audited": VariantSettings(objective="forgetting", selection=posterior)},
    )
    run_on_all(recipe, audit.run, STAGES)
    remove_partial(audit)
    return audit


def _refuse_other_options(audit: Audit, source: SourceSettings, model: ModelSettings) -> None:
    """Refuse to replace a finished audit of other records, or by another model.

    Marks of its page, and a saved `decisions.json`, fit the tokens of that audit alone.

    Raises:
        InputError: the folder holds an audit that was made with other options.
    """
    if not _is_finished(audit):
        return
    before = audit.source
    compared = {
        "data": (before.path, source.path),
        "--model": (audit.recipe.model.name_or_path, model.name_or_path),
        "--limit": (before.limit, source.limit),
        "--field": _field_options(before, source),
        "--columns": (_joined(before.columns), _joined(source.columns)),
        "--escaped": (before.escaped, source.escaped),
    }
    changes = [
        f"{name}: {_option(old)} there, {_option(new)} now"
        for name, (old, new) in compared.items()
        if old != new
    ]
    if changes:
        raise InputError(
            f"{audit.folder} holds a finished audit with other options ({'; '.join(changes)}). A "
            "new one would replace its files, and your marks in its page would be lost. Pass "
            "another --output or the same options, or remove the folder"
        )


def _is_finished(audit: Audit) -> bool:
    files = layout.recipe_file(audit.run), layout.summary_file(layout.detector_dir(audit.run))
    return all(file.is_file() for file in files)


def _field_options(*sources: SourceSettings) -> tuple[str | None, ...]:
    pairs = (sorted(source.fields.items()) for source in sources)
    return tuple(_joined([f"{name}={own}" for name, own in each]) for each in pairs)


def _joined(names: Sequence[str] | None) -> str | None:
    return ",".join(names) if names else None


def _option(value: str | int | None) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def remove_partial(audit: Audit) -> None:
    """Remove the audit of a part of the data, if there is one."""
    # A folder of this name may be the user's.
    if layout.recipe_file(Audit(audit.partial).run).is_file():
        shutil.rmtree(audit.partial)


def ranking_measure(name: str | None) -> Measure | None:
    """The measure that ranks the records of an audit; None: the detector.

    Raises:
        InputError: there is no such measure, or it needs another model than the one that judges.
    """
    if name is None or name == DETECTOR:
        return None
    known = [POSTERIOR, *columns_of(["base", "base_empty"])]
    return usable_measure(name, known, "an audit")


def default_folder(data: str) -> Path:
    """The folder of an audit without `--output`: `audits/<name of the data>`."""
    label = SourceSettings(path=resolved(data)).label
    return Path("audits") / re.sub(r"[^A-Za-z0-9_.-]", "-", label)[:80]


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
    if not layout.manifest_file(audit.run).is_file():
        raise InputError(
            f"{folder} holds the audit of a part of the data. Run the same `forgetting audit` "
            f"again to judge all of them, and pass {folder.parent}"
        )
    return audit


def _scoring() -> ScoringSettings:
    """Small shards on a CPU, where each takes a minute or more."""
    if loading.pick_device().type != "cpu":
        return ScoringSettings()
    return ScoringSettings(samples_per_shard=SAMPLES_PER_SHARD_CPU)


def _dtype() -> Literal["auto", "bfloat16"]:
    """`bfloat16` where the CPU computes in it, else `auto`."""
    on_cpu = loading.pick_device().type == "cpu"
    return "bfloat16" if on_cpu and loading.cpu_has_bfloat16() else "auto"
