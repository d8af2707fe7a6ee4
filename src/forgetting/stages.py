"""The stages of a run. Each reads what earlier ones wrote and writes its own part.

A stage is a function `(recipe, run, work) -> None`: `run` is the directory to read from, `work`
the folder in which to write (what survives a kill is picked up there). Stages hold no
mathematics and decide nothing about order: that is the pipeline's.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from forgetting.config.schema import (
    PLAIN_TEMPLATE,
    Recipe,
    TrainingSettings,
    VariantSettings,
)
from forgetting.console import logger, progress
from forgetting.data.alignment import Tokenization
from forgetting.data.splits import build_corpus
from forgetting.errors import InputError
from forgetting.evaluation import HELDOUT, Harness, TaskResult, evaluate_heldout
from forgetting.method.loss import ForgettingTerm
from forgetting.models import loading
from forgetting.report import build_report
from forgetting.report.card import RunFacts, model_card
from forgetting.rundir import layout
from forgetting.rundir.directory import Work
from forgetting.rundir.processes import ALONE, Processes, share_one_model
from forgetting.rundir.results import has_result, read_result, write_answers, write_result
from forgetting.rundir.samples import (
    SampleFile,
    Samples,
    rows_in_parts,
)
from forgetting.rundir.scores import ScoredCorpus, join_scores, write_scores
from forgetting.rundir.selection import TOKENS, read_selection, selected_parts
from forgetting.rundir.stats import DataSummary, write_training_log
from forgetting.scoring import score_samples
from forgetting.stages_select import select_corpus
from forgetting.training.checkpoints import check_num_processes, latest_checkpoint
from forgetting.training.dataset import trainer_columns, write_stream


def prepare(recipe: Recipe, run: Path, work: Work) -> None:
    """Records to tokens: D_ref, D_train and the held-out samples, disjoint."""
    del run
    check_length(recipe)
    settings = recipe.data.model_copy(update={"num_reference": recipe.num_reference})
    tokenization = load_tokenization(recipe)
    with progress("Preparing samples", settings.num_samples) as advance, tokenizer_threads():
        account = build_corpus(
            settings,
            tokenization,
            recipe.seed,
            work.output,
            work.path,
            advance,
            recipe.reference.sources or (),
        )
    account.summary(tokenization.end_token_ids).save(work.output)
    work.details["tokens"] = sum(counts.tokens for counts in account.splits.values())
    for name, counts in account.splits.items():
        work.details[f"{name}_samples"] = counts.samples
        work.details[f"{name}_response_tokens"] = counts.response_tokens
    if dropped := account.num_dropped():
        logger.info(
            "%d records left out; reasons in data/summary.json and rejected.parquet", dropped
        )


def load_tokenization(recipe: Recipe) -> Tokenization:
    """How this recipe makes tokens of a record."""
    tokenizer = loading.load_tokenizer(recipe.model)
    template = recipe.model.chat_template
    if template == PLAIN_TEMPLATE:
        tokenizer.chat_template = template = None
    return Tokenization(
        tokenizer,
        Path(template).read_text(encoding="utf-8") if template else None,
        special_tokens_in_text=recipe.data.special_tokens_in_text,
    )


@contextmanager
def tokenizer_threads() -> Iterator[None]:
    """Let the tokenizer work on a batch with all cores, which the command line forbids elsewhere:
    processes that are forked from one with such threads may hang."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before


def check_length(recipe: Recipe) -> None:
    """Refuse samples longer than the model has positions for."""
    limit = loading.max_positions(loading.load_config(recipe.model))
    if limit is not None and recipe.data.max_length > limit:
        raise InputError(
            f"data.max_length {recipe.data.max_length} is more than the {limit} positions of "
            f"{recipe.model.name_or_path}. Set data.max_length to {limit} or less"
        )


def reference(recipe: Recipe, run: Path, work: Work, fold: str | None = None) -> None:
    """Fine-tune the reference model on D_ref, all tokens positive; or that of one fold, on the
    samples of D_train that are not in it."""
    label = "Reference model"
    path = layout.split_file(layout.data_dir(run), "reference" if fold is None else "train")
    outside = np.ones(len(SampleFile(path)), dtype=bool)
    if fold is not None:
        outside = fold_of_samples(recipe, len(outside)) != recipe.fold_names.index(fold)
        label = f"{label}, {fold}"

    def tables() -> Iterator[pa.Table]:
        begin = 0
        for part in rows_in_parts(path, TOKENS):
            kept = outside[begin : begin + part.num_rows]
            begin += part.num_rows
            samples = Samples(part.filter(pa.array(kept)))
            polarity = np.ones(samples.response_ids.size, dtype=np.int8)
            yield pa.table(trainer_columns(samples, polarity))

    ignored = VariantSettings(objective="full")
    fine_tune(recipe, recipe.reference, ignored, tables(), label, work)


def fold_of_samples(recipe: Recipe, num_samples: int) -> NDArray[np.int64]:
    """The fold of each sample of D_train, by the recipe's seed; sizes differ by one at most."""
    order = np.random.default_rng(recipe.seed).permutation(num_samples)
    return order % len(recipe.fold_names)


def score(recipe: Recipe, run: Path, work: Work) -> None:
    """Log-probabilities of D_train's response tokens under base and reference, in shards."""
    score_shards(recipe, run, work)
    work.processes.wait()
    if work.processes.is_main:
        join_shards(recipe, run, work)


@dataclass(frozen=True)
class ScoringPass:
    """Some samples of D_train under one model."""

    name: str
    path: Path | str | None
    """Of a fine-tuned model; None for the base."""
    covers: NDArray[np.bool_]
    """Shape (samples of D_train,)."""

    def rows(self, shard: range) -> NDArray[np.int64]:
        """Which of a shard's samples, counted from its first."""
        return np.flatnonzero(self.covers[shard.start : shard.stop])

    def file(self, work: Work, index: int) -> Path:
        """Where the scores of a shard wait for those of the other passes."""
        return work.path / f"{self.name}-{index:05d}.parquet"


def scoring_passes(recipe: Recipe, run: Path, num_samples: int) -> list[ScoringPass]:
    """The base over all samples, then the reference, or that of each fold over its own samples."""
    every = np.ones(num_samples, dtype=bool)
    passes = [ScoringPass("base", None, every)]
    if not recipe.fold_names:
        own = recipe.reference.name_or_path
        if own == recipe.model.name_or_path and recipe.model.revision is None:
            # The base in the place of the reference is not scored twice.
            return [*passes, *passes]
        return [*passes, ScoringPass("reference", own or run / "reference", every)]
    folds = fold_of_samples(recipe, num_samples)
    for fold, name in enumerate(recipe.fold_names):
        passes.append(ScoringPass(name, run / "reference" / name, folds == fold))
    return passes


def score_shards(recipe: Recipe, run: Path, work: Work) -> None:
    """The shards of this process, under one model after the other; those that are there are kept.

    Holds one shard of the corpus at a time.
    """
    corpus = SampleFile(layout.train_file(run))
    shards = _shard_ranges(recipe, corpus)
    own = range(work.processes.index, len(shards), work.processes.count)
    # An adapter is put on the one base model, of which folds have one after the other; whole
    # weights take its place.
    base = loading.SharedBase(recipe.model)
    for scoring in scoring_passes(recipe, run, len(corpus)):
        _score_pass(recipe, work, corpus, {index: shards[index] for index in own}, scoring, base)


def _score_pass(
    recipe: Recipe,
    work: Work,
    corpus: SampleFile,
    shards: Mapping[int, range],
    scoring: ScoringPass,
    base: loading.SharedBase,
) -> None:
    # A function of its own, so that nothing holds the model when the next one is loaded.
    missing = [index for index in shards if not scoring.file(work, index).is_file()]
    if not missing:
        return
    total = sum(len(scoring.rows(shard)) for shard in shards.values())
    done = total - sum(len(scoring.rows(shards[index])) for index in missing)
    extra = {column.partition("_")[2] for column in recipe.score_columns} - {"log_probs"}
    with (
        base.lend(scoring.path, is_last=not recipe.fold_names) as model,
        progress(f"Scoring, {scoring.name} model", total, done) as advance,
    ):
        for index in missing:
            samples = corpus.read(shards[index].start, shards[index].stop)
            rows = scoring.rows(shards[index])
            scores = score_samples(
                model,
                samples,
                rows,
                with_entropy="entropy" in extra,
                with_rank="rank" in extra,
                tokens_per_batch=recipe.scoring.tokens_per_batch,
                advance=advance,
            )
            columns = {"log_probs": scores.log_probs}
            columns |= {column: getattr(scores, column) for column in sorted(extra)}
            write_scores(scoring.file(work, index), samples, rows, columns, corpus.fingerprint)


def join_shards(recipe: Recipe, run: Path, work: Work) -> None:
    """Base and reference side by side, once every process has done its shards."""
    corpus = SampleFile(layout.train_file(run))
    base, *references = scoring_passes(recipe, run, len(corpus))
    num_shards = len(_shard_ranges(recipe, corpus))
    num_tokens = 0
    for index in range(num_shards):
        parts = [reference.file(work, index) for reference in references]
        target = layout.score_file(work.output, index, num_shards)
        num_tokens += join_scores(base.file(work, index), parts, target, corpus.fingerprint)
    # The base in the place of the reference was read once, folds together once.
    num_passes = len({scoring.name for scoring in (base, references[0])})
    work.details["tokens"] = num_passes * _num_tokens(run, "train")
    work.details["response_tokens"] = num_tokens


def _num_tokens(run: Path, split: str) -> int:
    """Tokens of a split, prompts included."""
    return DataSummary.load(layout.data_dir(run)).splits[split].tokens


def _shard_ranges(recipe: Recipe, corpus: SampleFile) -> list[range]:
    size = recipe.scoring.samples_per_shard
    starts = range(0, len(corpus), size)
    return [range(begin, min(begin + size, len(corpus))) for begin in starts]


def select(recipe: Recipe, run: Path, work: Work, variant: str) -> None:
    """Scores to polarity for one variant, with a summary."""
    settings = recipe.variants[variant].selection
    end_token_ids: list[int] = []
    if settings.keep_eos:
        end_token_ids = DataSummary.load(layout.data_dir(run)).end_token_ids
    corpus = ScoredCorpus(run)
    with progress(f"Selecting for {variant}", corpus.num_samples) as advance:
        summary = select_corpus(
            corpus,
            settings,
            layout.polarity_file(work.output),
            variant=variant,
            scratch=work.path / "quality.bin",
            seed=recipe.seed,
            end_token_ids=end_token_ids,
            advance=advance,
        )
    if summary.mixture is not None and summary.mixture.fit is None:
        logger.warning(
            "%s: the mixture marks no token as negative: %s", variant, summary.mixture.reason
        )
    summary.save(work.output)
    work.details["tokens"] = summary.num_tokens
    work.details["num_positive"] = summary.num_positive
    work.details["num_negative"] = summary.num_negative


def train(recipe: Recipe, run: Path, work: Work, variant: str) -> None:
    """Fine-tune one variant on D_train."""
    settings = recipe.variants[variant]
    term = ForgettingTerm(kind=settings.forgetting.term)
    scores: list[str] = []
    if settings.objective == "forgetting" and term.needs_base:
        scores = ["base_log_probs"]
    parts = selected_parts(run, None if settings.objective == "full" else variant, scores)
    tables = (pa.table(trainer_columns(p.samples, p.polarity, **p.scores)) for p in parts)
    fine_tune(recipe, recipe.training, settings, tables, f"Training {variant}", work)
    if not work.processes.is_main:
        return
    selection = None
    if settings.objective != "full":
        fingerprint = SampleFile(layout.train_file(run)).fingerprint
        selection = read_selection(run, variant, fingerprint)
    facts = RunFacts(
        recipe,
        loading.model_facts(recipe.model),
        DataSummary.load(layout.data_dir(run)),
    )
    is_adapter = loading.is_adapter(work.output)
    card = model_card(facts, variant, selection, work.details, is_adapter=is_adapter)
    (work.output / "README.md").write_text(card, encoding="utf-8")


def fine_tune(
    recipe: Recipe,
    training: TrainingSettings,
    variant: VariantSettings,
    tables: Iterator[pa.Table],
    label: str,
    work: Work,
) -> None:
    """Fine-tune the base model, and write it to `work.output`; goes on from the checkpoints that
    are in `work.path`.

    Args:
        tables: samples as `training_data.trainer_columns` has them, in parts.
        label: for the progress bar.
    """
    # Imported here: TRL takes seconds, and no other stage needs it.
    from datasets import Dataset
    from transformers import PrinterCallback

    from forgetting.training.trainer import ForgettingConfig, ForgettingTrainer, ProgressCallback

    dtype = loading.pick_dtype(recipe.model)
    # Mapped into memory by every process, not held by any.
    data = work.path / "samples.arrow"
    if work.processes.is_main:
        write_stream(tables, data)
    work.processes.wait()
    dataset = Dataset.from_file(str(data))
    # A constant zero leaves the negatives out, and their figures are still logged.
    unlearning: dict[str, Any] = {"schedule": "constant", "t_min": 0.0, "t_max": 0.0}
    if variant.objective == "forgetting":
        unlearning = variant.forgetting.model_dump()
    checkpoints = work.path / "checkpoints"
    latest = latest_checkpoint(checkpoints)
    if latest is not None:
        check_num_processes(latest, work.processes.count)
    config = ForgettingConfig(
        output_dir=str(checkpoints),
        **unlearning,
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.lr_scheduler,
        warmup_steps=training.warmup_ratio,
        num_train_epochs=training.epochs,
        per_device_train_batch_size=training.micro_batch_size,
        gradient_accumulation_steps=training.batch_size
        // (training.micro_batch_size * work.processes.count),
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        gradient_checkpointing=training.gradient_checkpointing,
        bf16=dtype == torch.bfloat16,
        ddp_find_unused_parameters=False,
        use_cpu=loading.pick_device().type == "cpu",
        save_strategy="steps",
        save_steps=training.save_steps,
        # The one before the newest stays until the newest is sealed.
        save_total_limit=2,
        logging_steps=training.logging_steps,
        report_to=[tracker for tracker in training.report_to if tracker != "tensorboard"],
        run_name=f"{recipe.name}: {label}",
        disable_tqdm=True,
        # The samples were cut when they were prepared.
        max_length=None,
        seed=recipe.seed,
    )
    # All weights are trained in float32, with arithmetic in `dtype`; an adapter's base is frozen.
    # After the configuration, which may say that the weights are read in parts.
    model = loading.load_base_model(
        recipe.model, dtype if training.lora else torch.float32, in_parts=share_one_model()
    )
    trainer = ForgettingTrainer(
        model=model,
        args=config,
        train_dataset=dataset,
        processing_class=loading.load_tokenizer(recipe.model),
        peft_config=loading.lora_config(training.lora) if training.lora else None,
        callbacks=[ProgressCallback(label), *_tensorboard(training, work)],
    )
    trainer.remove_callback(PrinterCallback)
    if latest is not None:
        logger.info("%s: resuming from step %s", label, latest.name.removeprefix("checkpoint-"))
    trainer.train(resume_from_checkpoint=str(latest) if latest else None)
    trainer.save_model(str(work.path / "adapter" if training.merge else work.output))
    if not work.processes.is_main:
        return
    write_training_log(work.output, (e for e in trainer.state.log_history if "loss" in e))
    num_tokens = pc.sum(pc.list_value_length(dataset.data["input_ids"])).as_py()
    work.details["tokens"] = round(training.epochs * num_tokens)
    work.details["steps"] = trainer.state.global_step
    work.details["trainable_parameters"] = sum(
        p.numel() for p in trainer.model.parameters() if p.requires_grad
    )
    if training.merge:
        del trainer, model
        merged = loading.merge_adapter(recipe.model, dtype, work.path / "adapter")
        merged.save_pretrained(work.output)
        loading.load_tokenizer(recipe.model).save_pretrained(work.output)
    shutil.rmtree(checkpoints, ignore_errors=True)


def _tensorboard(training: TrainingSettings, work: Work) -> list[Any]:
    """A callback that writes beside the model; Trainer's own would write among the checkpoints,
    which are gone when training ends."""
    if "tensorboard" not in training.report_to or not work.processes.is_main:
        return []
    from transformers.integrations import TensorBoardCallback

    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError(
            "training.report_to names tensorboard, which is not installed: "
            "pip install 'forgetting[tensorboard]'"
        ) from error
    return [TensorBoardCallback(SummaryWriter(str(work.output / "tensorboard")))]


class Bench:
    """What the variants of a run share while they are measured: the base model in memory, and
    lm-eval's tasks with their data. Held by who runs the stages; empty until it is used."""

    def __init__(self, recipe: Recipe, processes: Processes = ALONE) -> None:
        self._recipe = recipe
        self._processes = processes
        self.models = loading.SharedBase(recipe.model)

    @functools.cached_property
    def harness(self) -> Harness:
        """The recipe's lm-eval tasks, read once."""
        return Harness(
            self._recipe.evaluation,
            loading.load_tokenizer(self._recipe.model),
            seed=self._recipe.seed,
            process_index=self._processes.index,
            num_processes=self._processes.count,
        )


def evaluate(
    recipe: Recipe, run: Path, work: Work, variant: str, bench: Bench | None = None
) -> None:
    """Measure one variant, or the untrained `base`. What has a result file is not done again."""
    settings = recipe.evaluation
    processes = work.processes
    bench = bench or Bench(recipe, processes)
    requests = bench.harness.requests if settings.tasks else []
    path = None if variant == layout.BASE else layout.model_dir(run, variant)
    has_heldout = settings.heldout and recipe.data.num_heldout > 0
    # Settled by one: others could see what it writes in the meantime.
    names = [*([HELDOUT] if has_heldout else []), *(r.task for r in requests)]
    measured = processes.share([name for name in names if has_result(work.output, name)])
    if has_heldout:
        work.details["tokens"] = _num_tokens(run, "heldout")
    with bench.models.lend(path) as model:
        if has_heldout and HELDOUT not in measured:
            samples = Samples.read(layout.split_file(layout.data_dir(run), "heldout"))
            with progress(f"Evaluating {variant} on held-out samples", len(samples)) as advance:
                result = evaluate_heldout(
                    model,
                    samples,
                    tokens_per_batch=recipe.scoring.tokens_per_batch,
                    process_index=processes.index,
                    num_processes=processes.count,
                    advance=advance,
                )
            if processes.is_main:
                write_result(work.output, variant, result)
        done = sum(request.task in measured for request in requests)
        with progress(f"Evaluating {variant} on tasks", len(requests), done) as advance:
            for request in requests:
                if request.task in measured:
                    continue
                output = bench.harness.measure(model, request)
                if output is not None:
                    for name, rows in output.samples.items():
                        write_answers(work.output, name, rows)
                    for result in output.results:
                        write_result(work.output, variant, result)
                advance(1, request.task)
    if requests and processes.is_main:
        results: dict[str, TaskResult] = {
            r.task: read_result(layout.result_file(work.output, r.task)) for r in requests
        }
        for result in bench.harness.suite_results(results):
            write_result(work.output, variant, result)


def report(recipe: Recipe, run: Path, work: Work) -> None:
    """The page, its figures and tables."""
    build_report(
        run,
        work.output,
        decode=loading.decoder(recipe.model),
        special_ids=loading.special_token_ids(recipe.model),
        seed=recipe.report.seed,
    )
