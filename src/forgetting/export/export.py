"""From what a person asks for to a folder, and to the hub.

Goes in: a run directory and the name of what is to be had of it. Comes out: a folder with the
files, a card for people (`README.md`) and one for programs (`export.json`), nothing of which names
a folder of this machine. The run is only read.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from forgetting import __version__
from forgetting.config import Recipe, VariantSettings, load_recipe
from forgetting.console import logger, progress
from forgetting.errors import InputError
from forgetting.export import records, tokens
from forgetting.export.folder import Format, check_output, whole_folder, write_rows
from forgetting.export.hub import check_repo, push
from forgetting.export.records import By
from forgetting.method.terms import TERMS
from forgetting.models import loading
from forgetting.models.adapters import is_adapter as is_adapter_folder
from forgetting.models.adapters import merge_adapter
from forgetting.models.tokenization import load_tokenization, tokenizer_threads
from forgetting.pipeline import plan_with_state
from forgetting.report.card import RunFacts, data_card, model_card
from forgetting.report.results import tabulate
from forgetting.rundir import layout
from forgetting.rundir.manifest import read_manifest
from forgetting.rundir.reader import RunReader
from forgetting.rundir.samples import SampleFile
from forgetting.rundir.selection import SelectionSummary, read_selection
from forgetting.rundir.stats import DataSummary

What = Literal["data", "clean", "model", "adapter"]
PREFERRED = "forgetting"
# Of a model's folder: weights, settings, tokenizer, and the figures of its training.
MODEL_FILES = {".safetensors", ".json", ".jsonl", ".jinja", ".model", ".txt"}


@dataclass(frozen=True)
class Export:
    """What was exported."""

    path: Path
    sentence: str
    """What it is, in numbers."""
    loading: tuple[str, ...]
    """Lines of Python that read it."""
    url: str | None
    """On the hub."""


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
    """Take something along from a run.

    Args:
        what: `data`, the corpus with its selection; `clean`, its conversations without the worst
            samples; `model`, whole weights; `adapter`, what was trained.
        variant: default `forgetting`, or the first.
        output: default `exports/<recipe>-<variant>-<what>`.
        format: of a corpus; default `parquet` for `data`, `jsonl` for `clean`.
        drop_worst: share of D_train's samples that `clean` leaves out; default 0.1.
        by: how `clean` finds them, see `SampleJudgments.worst`; default `quality`.
        force: replace an earlier export at `output`.
        push_to_hub: id of a repository on the hub, which is made if there is none.
        public: everybody can read it; else it must be, or is made, private.

    Raises:
        InputError: no such run or variant, what is asked for is not done in it, an option does not
            go with it, there is something at `output`, or the repository cannot be written to.
    """
    run = Path(run_dir)
    if not layout.recipe_file(run).is_file():
        raise InputError(f"{run} is not a run directory: it has no {layout.RECIPE}")
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
        raise InputError("--public says who can read it on the hub: give --push-to-hub as well")
    recipe = load_recipe(layout.recipe_file(run))
    variant = _variant(recipe, variant, recipe.selecting_variants if is_corpus else None)
    if output is None:
        output = Path("exports") / f"{recipe.name}-{variant}-{what}"
    check_output(output, force)
    if push_to_hub is not None:
        check_repo(push_to_hub, "dataset" if is_corpus else "model", public=public)
    _, done = plan_with_state(recipe, run)
    needed = f"{'select' if is_corpus else 'train'}:{variant}"
    if needed not in done:
        raise InputError(
            f"{needed} is not done in {run} as its recipe asks for. Do it with "
            f"`forgetting run {layout.recipe_file(run)} --run-dir {run}`"
        )
    job = _Job(recipe, run, variant, output, _facts(recipe, run, done))
    about = {"what": what, "run": recipe.name, "variant": variant, "forgetting": __version__}
    with whole_folder(output, about) as folder:
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
                "adapter_config.json names the base model's folder on this machine: others need a "
                "base model that they can get"
            )
        url = push(output, push_to_hub, "dataset" if is_corpus else "model", public=public)
    return Export(output, sentence, usage, url)


_Result = tuple[str, tuple[str, ...]]
"""What was written, in a sentence, and lines of Python that read it."""


@dataclass(frozen=True)
class _Job:
    """What all exports of a run have in common."""

    recipe: Recipe
    run: Path
    variant: str
    output: Path
    facts: RunFacts

    @property
    def settings(self) -> VariantSettings:
        return self.recipe.variants[self.variant]

    def data(self, folder: Path, format: Format) -> _Result:
        selection = self._selection()
        columns = dict(tokens.COLUMNS)
        if selection.noise is None:
            for name in tokens.NOISE:
                del columns[name]
        for name in set(tokens.SCORES).difference(tokens.stored_scores(self.run)):
            del columns[name]
        if TERMS[self.settings.forgetting.term].is_per_sample:
            # The trainer refuses them with such a term.
            del columns["token_weights"]
        decode = loading.decoder(self.recipe.model)
        quality = self.settings.selection.quality
        tables = tokens.token_tables(self.run, self.variant, quality, decode, tuple(columns))
        num_samples = len(SampleFile(layout.train_file(self.run)))
        with progress("Exporting the corpus", num_samples) as advance:
            write_rows(tables, folder / f"train.{format}", format, advance)
        sentence = (
            f"{num_samples:,} samples with {selection.num_tokens:,} response tokens: "
            f"{selection.num_positive:,} to learn, {selection.num_negative:,} negative, "
            f"{selection.num_ignored:,} to ignore."
        )
        title = "the corpus with its selection"
        return self._corpus(folder, title, sentence, columns, num_samples)

    def clean(self, folder: Path, format: Format, share: float, by: By) -> _Result:
        quality = records.sample_quality(self.run, self.variant, self.settings.selection.quality)
        is_kept = ~quality.worst(share, by)
        tokenization = load_tokenization(self.recipe)
        tables = records.record_tables(
            self.recipe, self.run, tokenization, quality, is_kept, folder
        )
        first: list[str] = []

        def noted() -> Any:
            for table in tables:
                first[:] = table.column_names
                yield table

        total = int(is_kept.sum())
        with progress("Exporting the corpus", total) as advance, tokenizer_threads():
            write_rows(noted(), folder / f"train.{format}", format, advance)
        judged = "lowest mean quality" if by == "quality" else "highest share of negative tokens"
        sentence = (
            f"{total:,} of {len(is_kept):,} samples: the {len(is_kept) - total:,} of the "
            f"{judged} are left out."
        )
        columns = {name: records.COLUMNS[name] for name in first}
        title = "the corpus without its worst samples"
        return self._corpus(folder, title, sentence, columns, total)

    def _corpus(
        self,
        folder: Path,
        title: str,
        sentence: str,
        columns: Mapping[str, str],
        num_samples: int,
    ) -> _Result:
        def usage(place: str) -> tuple[str, ...]:
            return (
                "from datasets import load_dataset",
                f'data = load_dataset({place}, split="train")',
            )

        card = data_card(
            self.facts,
            self.variant,
            self._selection(),
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
                f"{self.variant} was trained or merged to whole weights, so there is no adapter: "
                "export them with --what model"
            )
        if has_adapter and not is_adapter:
            dtype = loading.pick_dtype(self.recipe.model)
            merged = merge_adapter(self.recipe.model, dtype, trained)
            merged.save_pretrained(folder)
            loading.load_tokenizer(self.recipe.model).save_pretrained(folder)
            shutil.copyfile(layout.training_log(trained), layout.training_log(folder))
        else:
            for file in sorted(trained.iterdir()):
                if file.is_file() and file.suffix in MODEL_FILES:
                    shutil.copyfile(file, folder / file.name)
        manifest = read_manifest(self.run)
        assert manifest is not None
        selection = self._selection() if self.settings.selects else None
        details = manifest.stages[f"train:{self.variant}"].details
        card = model_card(self.facts, self.variant, selection, details, is_adapter=is_adapter)
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


def _refuse_unread(options: Mapping[str, tuple[str, Any, bool]]) -> None:
    """Refuse options that what is asked for does not read: (what does, value, is read)."""
    for option, (where, value, is_read) in options.items():
        if value is not None and not is_read:
            raise InputError(f"{option} is for --what {where}: leave it out")


def _variant(recipe: Recipe, asked: str | None, selecting: list[str] | None) -> str:
    known = list(recipe.variants) if selecting is None else selecting
    if not known:
        raise InputError(
            "no variant of this run selects tokens (all are `full`), so its corpus is the one that "
            "went in"
        )
    if asked is None:
        return PREFERRED if PREFERRED in known else known[0]
    if asked not in known:
        what = "" if selecting is None else " with a selection"
        raise InputError(f"this run has no variant {asked}{what}. It has: {', '.join(known)}")
    return asked


def _facts(recipe: Recipe, run: Path, done: set[str]) -> RunFacts:
    """Of results, only those that belong to the recipe as it is."""
    evaluations = [e for e in RunReader(run).evaluations if f"evaluate:{e.variant}" in done]
    return RunFacts(
        recipe,
        loading.model_facts(recipe.model),
        DataSummary.load(layout.data_dir(run)),
        tabulate(evaluations) if evaluations else None,
    )
