"""Exports a part of a run to a folder, and to the Hub.

Input: a run directory and what to export. Output: a folder with the files, a card for people
(`README.md`) and one for programs (`export.json`). None of them contains a local path. The run is
read-only.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from forgetting import __version__
from forgetting.config import Recipe, VariantSettings, load_recipe
from forgetting.console import logger, progress
from forgetting.errors import InputError
from forgetting.export import conversations, tokens
from forgetting.export.conversations import By
from forgetting.export.folder import Format, check_output, whole_folder, write_rows
from forgetting.export.hub import check_repo, push
from forgetting.method.measures import DETECTOR
from forgetting.models import loading
from forgetting.models.adapter_files import is_adapter as is_adapter_folder
from forgetting.models.prompting import prompting_tokenizer
from forgetting.models.saving import save_merged
from forgetting.models.tokenization import check_tokenizer
from forgetting.models.verification import check_prompting
from forgetting.pipeline import plan_with_state
from forgetting.report.card import RunFacts, data_card, model_card
from forgetting.report.paired import paired_results
from forgetting.report.result_table import tabulate
from forgetting.report.verdict import copies
from forgetting.rundir import layout
from forgetting.rundir.findings import DetectorSummary, read_findings
from forgetting.rundir.manifest import StageEntry, read_manifest
from forgetting.rundir.reader import RunReader, require_run
from forgetting.rundir.samples import SampleFile, rows_in_parts
from forgetting.rundir.selections import SelectionSummary, read_selection
from forgetting.rundir.stats import DataSummary
from forgetting.rundir.storage import file_sha256

What = Literal["data", "clean", "model", "adapter"]
PREFERRED = "forgetting"
REMOVED = "removed.jsonl"
"""Name of the file with the samples that `clean` drops."""
# Files of a model: weights, settings, tokenizer and training log.
MODEL_FILES = {".safetensors", ".json", ".jsonl", ".jinja", ".model", ".txt"}


@dataclass(frozen=True)
class Export:
    """A finished export."""

    path: Path
    sentence: str
    """Its content and size."""
    loading: tuple[str, ...]
    """Python code that loads it, line by line."""
    url: str | None
    """Its address on the Hub; None if it was not uploaded."""


def export_run(
    run_dir: Path | str,
    what: What = "data",
    *,
    variant: str | None = None,
    output: Path | None = None,
    format: Format | None = None,
    drop_worst: float | None = None,
    by: By | None = None,
    force: bool = False,
    push_to_hub: str | None = None,
    public: bool = False,
) -> Export:
    """Export a corpus or a model from a run.

    Args:
        run_dir: the run directory.
        what: `data` is the corpus with its selection or its weights, `clean` its conversations
            without the worst samples, `model` full weights, `adapter` the adapter alone.
        variant: default: `forgetting`, or the first.
        output: default: `exports/<recipe>-<variant>-<what>`.
        format: file format of a corpus; default: `parquet` for `data`, `jsonl` for `clean`.
        drop_worst: share of D_train's samples that `clean` drops; default: 0.1.
        by: how `clean` ranks samples, see `SampleJudgments.worst`; default: `quality`.
        force: whether to replace an earlier export at `output`.
        push_to_hub: id of a repository on the Hub, which is created if it does not exist.
        public: whether everybody may read the repository. If False, it must be private.

    Raises:
        InputError: there is no such run or variant, its stage is not done, an option does not apply
            to `what`, `output` exists, or the repository cannot be written to.
    """
    run = Path(run_dir)
    require_run(run)
    is_corpus = what in ("data", "clean")
    _refuse_unread(
        {
            "--format": ("data or clean", format, is_corpus),
            "--drop-worst": ("clean", drop_worst, what == "clean"),
            "--by": ("clean", by, what == "clean"),
        }
    )
    if drop_worst is not None and not 0 <= drop_worst < 1:
        raise InputError(f"--drop-worst must be at least 0 and below 1, got {drop_worst:g}")
    if public and push_to_hub is None:
        raise InputError("--public needs --push-to-hub")
    recipe = load_recipe(layout.recipe_file(run))
    variant = _variant(recipe, variant, what)
    if output is None:
        output = Path("exports") / f"{recipe.name}-{variant}-{what}"
    check_output(output, force)
    if push_to_hub is not None:
        check_repo(push_to_hub, "dataset" if is_corpus else "model", public=public)
    _, done = plan_with_state(recipe, run)
    for needed in _needed(recipe.variants[variant], variant, is_corpus=is_corpus):
        if needed not in done:
            raise InputError(
                f"{needed} is not done in {run} for its recipe. Run it with "
                f"`forgetting run {layout.recipe_file(run)} --run-dir {run}`"
            )
    job = _Job(recipe, run, variant, output, _facts(recipe, run, done))
    about = {"what": what, "run": recipe.name, "variant": variant, "forgetting": __version__}
    with whole_folder(output, about, force) as folder:
        if what == "data":
            result = job.data(folder, format or "parquet")
        elif what == "clean":
            share = 0.1 if drop_worst is None else drop_worst
            result = job.clean(folder, format or "jsonl", share, by or "quality")
        else:
            result = job.model(folder, is_adapter=what == "adapter")
    sentence, usage = result
    url = None
    if push_to_hub is not None:
        if what == "adapter" and Path(recipe.model.name_or_path).exists():
            logger.warning(
                "adapter_config.json names a local folder as the base model. Others cannot load "
                "the adapter without that model"
            )
        url = push(output, push_to_hub, "dataset" if is_corpus else "model", public=public)
    return Export(output, sentence, usage, url)


_Result = tuple[str, tuple[str, ...]]
"""A sentence about the content, and Python code that loads it."""


@dataclass(frozen=True)
class _Job:
    """What all exports of a run share."""

    recipe: Recipe
    run: Path
    variant: str
    output: Path
    facts: RunFacts

    @property
    def settings(self) -> VariantSettings:
        return self.recipe.variants[self.variant]

    def data(self, folder: Path, format: Format) -> _Result:
        file = SampleFile(layout.train_file(self.run))
        num_samples = len(file)
        columns = dict(tokens.COLUMNS)
        judgment: SelectionSummary | DetectorSummary
        corrects = False
        if self.settings.selects:
            selection = judgment = self._selection()
            has_noise = selection.noise is not None
            title, quality = "the corpus with its selection", self.settings.selection.quality
            sentence = (
                f"{num_samples:,} samples with {selection.num_tokens:,} response tokens: "
                f"{selection.num_positive:,} positive, {selection.num_negative:,} negative, "
                f"{selection.num_ignored:,} ignored."
            )
        else:
            findings = judgment = read_findings(self.run, file.fingerprint)
            # If nothing was found, the variant is one that learns every token.
            corrects = findings.found and self.settings.objective == "corrected"
            has_noise = _knows_noise(layout.train_file(self.run))
            title, quality = "the corpus with its weights", DETECTOR
            num_tokens = self.facts.data.splits["train"].response_tokens
            sentence = (
                f"{num_samples:,} samples with {num_tokens:,} response tokens, each with a weight."
            )
        if not corrects:
            for name in tokens.ALTERNATIVES:
                del columns[name]
        if not has_noise:
            for name in tokens.NOISE:
                del columns[name]
        variant = self.variant if self.settings.selects else None
        for name in set(tokens.SCORES).difference(tokens.stored_scores(self.run, variant)):
            del columns[name]
        check_tokenizer(self.recipe, self.run)
        decode = loading.decoder(self.recipe.model)
        tables = tokens.token_tables(
            self.run, variant, quality, decode, tuple(columns), self.settings.caution
        )
        with progress("Exporting the corpus", num_samples) as advance:
            write_rows(tables, folder / f"train.{format}", format, advance)
        return self._corpus(folder, title, sentence, columns, num_samples, judgment)

    def clean(self, folder: Path, format: Format, share: float, by: By) -> _Result:
        quality = conversations.sample_quality(
            self.run, self.variant, self.settings.selection.quality
        )
        is_worst = quality.worst(share, by)
        # Other trainers would learn the responses that the data says to forget.
        is_kept = ~(is_worst | quality.is_negative)
        own = conversations.OwnRecords(self.recipe) or None
        tables = conversations.record_tables(self.run, quality, is_kept, own)
        first: list[str] = []

        def noted() -> Any:
            for table in tables:
                first[:] = table.column_names
                yield table

        total = int(is_kept.sum())
        with progress("Exporting the corpus", total) as advance:
            write_rows(noted(), folder / f"train.{format}", format, advance)
        # From the beginning of the data again.
        own = conversations.OwnRecords(self.recipe) or None
        with (folder / REMOVED).open("w", encoding="utf-8") as file:
            for row in conversations.dropped_rows(self.run, quality, is_kept, by, own):
                file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
        judged = "lowest mean quality" if by == "quality" else "highest share of negative tokens"
        num_to_forget = int(quality.is_negative.sum())
        others = f" and the {num_to_forget:,} to forget" if num_to_forget else ""
        sentence = (
            f"{total:,} of {len(is_kept):,} samples, without the {int(is_worst.sum()):,} that "
            f"have the {judged}{others}. {REMOVED} holds what was dropped."
        )
        columns = {name: conversations.COLUMNS[name] for name in first}
        title = "the corpus without its worst samples"
        return self._corpus(folder, title, sentence, columns, total, self._selection())

    def _corpus(
        self,
        folder: Path,
        title: str,
        sentence: str,
        columns: Mapping[str, str],
        num_samples: int,
        judgment: SelectionSummary | DetectorSummary,
    ) -> _Result:
        def usage(place: str) -> tuple[str, ...]:
            return (
                "from datasets import load_dataset",
                f'data = load_dataset({place}, split="train")',
            )

        card = data_card(
            self.facts,
            self.variant,
            judgment,
            title=title,
            sentence=sentence,
            loading=usage('"."'),
            columns=columns,
            num_samples=num_samples,
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
        return sentence, usage(repr(str(self.output)))

    def model(self, folder: Path, *, is_adapter: bool) -> _Result:
        trained = layout.model_dir(self.run, self.variant)
        has_adapter = is_adapter_folder(trained)
        if is_adapter and not has_adapter:
            raise InputError(
                f"{self.variant} has no adapter, because it was trained or merged to full weights. "
                "Export it with --what model"
            )
        manifest = read_manifest(self.run)
        assert manifest is not None
        entry = manifest.stages[f"train:{self.variant}"]
        tokenizer, ends = prompting_tokenizer(self.recipe), self.facts.data.end_token_ids
        if has_adapter and not is_adapter:
            dtype = loading.pick_dtype(self.recipe.model)
            save_merged(self.recipe.model, dtype, trained, folder, tokenizer, ends)
            shutil.copyfile(layout.training_log(trained), layout.training_log(folder))
        else:
            # Their logits were compared when they were trained.
            _copy_unchanged(trained, folder, entry)
            check_prompting(folder, tokenizer, ends)
        selection = self._selection() if self.settings.selects else None
        card = model_card(self.facts, self.variant, selection, entry.details, is_adapter=is_adapter)
        (folder / "README.md").write_text(card, encoding="utf-8")
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 2**20
        kind, package = ("adapter", "peft") if is_adapter else ("model", "transformers")
        name = "AutoPeftModelForCausalLM" if is_adapter else "AutoModelForCausalLM"
        usage = (
            f"from {package} import {name}",
            f"model = {name}.from_pretrained({str(self.output)!r})",
        )
        return f"The {kind} of {self.variant}: {size:,.1f} MiB of safetensors.", usage

    def _selection(self) -> SelectionSummary:
        fingerprint = SampleFile(layout.train_file(self.run)).fingerprint
        return read_selection(self.run, self.variant, fingerprint)


def _copy_unchanged(trained: Path, folder: Path, entry: StageEntry) -> None:
    """Copy the files of a model that its training wrote.

    Args:
        trained: folder of the model in the run.
        folder: to copy into.
        entry: of the training in the manifest.

    Raises:
        InputError: a copy differs from the file that was written.
    """
    for name, output in entry.outputs.items():
        file = trained / Path(name).name
        # Files in folders are those of trackers.
        if Path(name).parent.name != trained.name or file.suffix not in MODEL_FILES:
            continue
        shutil.copyfile(file, folder / file.name)
        if file_sha256(folder / file.name) != output.sha256:
            raise InputError(
                f"{file} is not the file that was written after training. Remove {trained}, and "
                "train again with `forgetting run`"
            )


def _refuse_unread(options: Mapping[str, tuple[str, Any, bool]]) -> None:
    """Refuse options that do not apply.

    Args:
        options: by name, (where it applies, its value, whether it applies here).
    """
    for option, (where, value, is_read) in options.items():
        if value is not None and not is_read:
            raise InputError(f"{option} applies to --what {where} only. Remove it")


def _variant(recipe: Recipe, asked: str | None, what: What) -> str:
    known = [name for name, settings in recipe.variants.items() if _can_export(settings, what)]
    needed = {"data": " with a selection or weights", "clean": " with a selection"}.get(what, "")
    if not known:
        advice = {
            "data": "It gives no token a polarity or a weight of its own. Add the variant "
            "`weighted: {}` to the recipe, and run it again",
            "clean": "Weights do not divide the samples into good and bad ones. Add the variant "
            "`ignoring: {selection: {quality: detector, threshold: posterior}}` to the recipe, and "
            "run it again; or export the weights with --what data",
        }[what]
        raise InputError(f"this run has no variant{needed}. {advice}")
    if asked is None:
        return PREFERRED if PREFERRED in known else known[0]
    if asked not in known:
        raise InputError(f"this run has no variant {asked}{needed}. It has: {', '.join(known)}")
    return asked


def _can_export(settings: VariantSettings, what: What) -> bool:
    if what in ("model", "adapter"):
        return True
    return settings.selects or (what == "data" and settings.objective in ("weighted", "corrected"))


def _needed(settings: VariantSettings, variant: str, *, is_corpus: bool) -> list[str]:
    """Steps that must be done."""
    if not is_corpus:
        return [f"train:{variant}"]
    if settings.selects:
        return [f"select:{variant}"]
    return ["detect", *(["alternatives"] if settings.objective == "corrected" else [])]


def _knows_noise(train: Path) -> bool:
    """Whether noise is known for every sample."""
    return not any(part["noise"].null_count for part in rows_in_parts(train, ["noise"]))


def _facts(recipe: Recipe, run: Path, done: set[str]) -> RunFacts:
    """Facts for the cards. Results are included only if they are up to date with the recipe."""
    reader = RunReader(run)
    evaluations = [e for e in reader.evaluations if f"evaluate:{e.variant}" in done]
    paired = paired_results(reader, evaluations=evaluations)
    return RunFacts(
        recipe,
        loading.model_facts(recipe.model),
        DataSummary.load(layout.data_dir(run)),
        tabulate(evaluations, None, paired, copies(reader, evaluations)) if evaluations else None,
    )
