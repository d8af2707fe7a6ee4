"""TRL's SFT trainer with the forgetting objective.

Takes what `trl.SFTTrainer` takes, with one more column: `polarity` (+1 learn, -1 forget, 0
ignore). If every labeled token is positive, it trains exactly like its parent. This class adds
only what differs; each override says which trap it avoids.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset, IterableDataset

from forgetting.errors import DivergenceError
from forgetting.method.loss import forgetting_loss
from forgetting.method.losses import PositiveLoss
from forgetting.method.terms import ForgettingTerm
from forgetting.models.training_head import (
    TokenRequest,
    add_training_head,
    without_virtual_tokens,
)
from forgetting.training.checkpoints import latest_checkpoint
from forgetting.training.collator import (
    ALL_COLUMNS,
    ALTERNATIVE_COLUMNS,
    TOKEN_COLUMNS,
    TokenColumnCollator,
    align_token_columns,
    column_names,
    cut_to_length,
    is_transformed,
    pack,
    report_cut_rows,
    without_format,
)
from forgetting.training.config import ForgettingConfig
from forgetting.training.dealing import deal_by_length, draws_random_numbers
from forgetting.training.model_card import PAPER, correct_card
from forgetting.training.polarity_evaluation import PolarityEvaluation
from forgetting.training.refusals import (
    evaluation_sets,
    refuse,
    refuse_columns,
    refuse_loss_function,
    refuse_sharded_sequences,
    refuse_shared_rows,
    refuse_types,
)
from forgetting.training.safe_trainer import SafeTrainer
from forgetting.training.step_figures import LossWatch, WindowSums
from forgetting.training.step_ranking import choose_tokens, values_of_samples
from forgetting.training.targets import of_targets, rows_of_samples, target_polarity


class ForgettingTrainer(SafeTrainer, PolarityEvaluation):
    """Learns the positive tokens and unlearns the negative ones (arXiv 2508.04329, equation 8).

    Args:
        args: settings; default: `ForgettingConfig()`. Set a field before training begins, and it
            counts.
        train_dataset: any form that `trl.SFTTrainer` takes (tokens with labels, prompt and
            completion, messages), with a column `polarity`. The polarity of a row is one value
            per token, or one per predicted token (label other than -100), in order, or one number
            for all of them. In the same three forms: `base_log_probs`, which some terms need,
            `reference_log_probs`, which some losses need, and `token_weights`, at least 0, the
            weight of each token in its mean (default 1). For tokens to correct: their
            `alternative_weights` in the same forms, and, with a list for each token,
            `alternative_ids` (K tokens that are expected in its place) and `alternative_log_probs`
            (theirs, and last that of all other tokens together). The cross-entropy to them is
            added to the loss of the token, times its weight.
        data_collator: your own must return `input_ids`, `labels` and an `attention_mask` that is 1
            on the tokens of each sample; it may pad on either side.
        *more: as for `trl.SFTTrainer`, in its order.
        **others: as for `trl.SFTTrainer`. An `eval_dataset` takes the same forms, also without
            `polarity`. Its `eval_loss` is the mean cross-entropy of the positive tokens, and
            `eval_negative_loss` that of the negative ones, both weighted by `token_weights`. If
            every token is positive, `eval_loss` is that of `trl.SFTTrainer`.

    Raises:
        TypeError: `args` or `train_dataset` has another type.
        ValueError: a column is missing or does not fit its tokens, an option does not work with
            polarity, or `max_length` removes all labels.
    """

    # The loss is divided by the counts of the whole optimizer step, so Trainer must not divide it
    # by the number of micro-batches as well.
    loss_is_scaled_for_ga = True

    # For the card that is written into checkpoints.
    _tag_names = ["trl", "forgetting"]
    _name = "Forgetting"
    _paper = PAPER

    def __init__(
        self,
        model: Any,
        args: ForgettingConfig | None = None,
        data_collator: Any = None,
        train_dataset: Dataset | IterableDataset | None = None,
        *more: Any,
        **others: Any,
    ) -> None:
        args = args or ForgettingConfig()
        refuse_types(args, train_dataset)
        assert train_dataset is not None
        evaluated = evaluation_sets(others.get("eval_dataset", more[0] if more else None))
        # A format may hide columns.
        train_dataset = without_format(train_dataset)
        self._columns = column_names(train_dataset)
        refuse(args, self._columns)
        formats = others.get("formatting_func") is not None or any(map(callable, more))
        if not formats:
            refuse_columns("train_dataset", self._columns, args)
            for each in evaluated:
                refuse_columns("eval_dataset", column_names(each), args)
        is_skipped = (args.dataset_kwargs or {}).get("skip_prepare_dataset")
        if is_skipped and not is_transformed(train_dataset):
            # SFTTrainer does not call `_prepare_dataset`, which would check them.
            present = [name for name in TOKEN_COLUMNS if name in self._columns]
            train_dataset = align_token_columns(train_dataset, present)
        super().__init__(model, args, data_collator, train_dataset, *more, **others)
        refuse_loss_function(self.compute_loss_func)
        refuse_sharded_sequences(self.accelerator.parallelism_config)
        refuse_shared_rows(self.model, self.padding_free)
        add_training_head(self.model.get_base_model() if is_peft_model(self.model) else self.model)
        # SFTTrainer refuses a custom collator in some modes and builds the right one itself.
        self.data_collator: Any = TokenColumnCollator(self.data_collator)
        self._num_positive = self._num_negative = torch.tensor(1)
        self._window, self._watch = WindowSums(), LossWatch()
        self._is_sorted = False

    def train(self, *positional: Any, **named: Any) -> Any:
        """Train as `transformers.Trainer` does, by the arguments as they are now."""
        refuse(self.args, self._columns)
        self._window, self._watch = WindowSums(), LossWatch()
        is_sorted = self.args.sort_by_length
        if is_sorted is None:
            noise = self.args.neftune_noise_alpha
            is_sorted = not (self.aux_loss_enabled or draws_random_numbers(self.model, noise))
        self._is_sorted = is_sorted
        return super().train(*positional, **named)

    @property
    def lam(self) -> float:
        """Lambda of the current optimizer step."""
        return self.args.lambda_schedule(self.state.global_step, self.state.max_steps)

    def _set_signature_columns_if_needed(self) -> None:
        # SFTTrainer drops every column that it does not know.
        super()._set_signature_columns_if_needed()
        known = set(self._signature_columns)
        self._signature_columns += [name for name in ALL_COLUMNS if name not in known]

    def _prepare_dataset(
        self,
        dataset: Any,
        processing_class: Any,
        args: Any,
        packing: bool,
        formatting_func: Any,
        dataset_name: str,
    ) -> Any:
        # SFTTrainer cuts and packs only `input_ids` and `labels`. So it only tokenizes here, and
        # the steps after that are done to all columns, in SFTTrainer's order.
        present = column_names(dataset)
        columns = [name for name in TOKEN_COLUMNS if name in present]
        if not columns:
            return super()._prepare_dataset(
                dataset, processing_class, args, packing, formatting_func, dataset_name
            )
        uncut = copy.copy(args)
        uncut.max_length, uncut.shuffle_dataset = None, False
        dataset = super()._prepare_dataset(
            dataset, processing_class, uncut, False, formatting_func, dataset_name
        )
        joined = packing and args.packing_strategy == "wrapped"
        dataset = align_token_columns(dataset, columns, joined=joined)
        columns += [name for name in ALTERNATIVE_COLUMNS if name in present]
        columns = ["input_ids", "labels", *columns]
        cuts = not packing or args.packing_strategy == "bfd"
        if cuts and args.max_length is not None and isinstance(dataset, Dataset):
            report_cut_rows(dataset, args.max_length, dataset_name)
        if packing:
            if args.shuffle_dataset:
                dataset = dataset.shuffle(seed=args.seed)
            dataset = pack(dataset, columns, args.max_length, args.packing_strategy)
        elif args.max_length is not None:
            dataset = cut_to_length(dataset, columns, args.max_length)
        return dataset.shuffle(seed=args.seed) if args.shuffle_dataset else dataset

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        # The only place that sees all micro-batches of an optimizer step before the first one is
        # computed.
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        num_repeated = self._blank_repeated_samples(batches)
        if self._is_sorted:
            batches = deal_by_length(batches, self.args.pad_to_multiple_of)
        if batches and self.args.positive_loss.ranking is not None:
            self._drop_low_ranks(batches)
        term = self.args.forgetting_term
        counts = torch.tensor([0, 0, -num_repeated], device=device)
        for batch in batches:
            mask = batch.get("attention_mask")
            counts[2] += batch["position_ids"].numel() if mask is None else mask.sum().to(device)
            polarity = target_polarity(batch)
            if self.args.normalization == "token":
                counts[:2] += (batch["labels"][:, 1:] != -100).sum().to(device)
                continue
            is_negative = polarity < 0
            if term.is_per_sample:
                is_negative = rows_of_samples(batch, is_negative).any(-1)
            counts[0] += (polarity > 0).sum().to(device)
            counts[1] += is_negative.sum().to(device)
        if self.args.world_size > 1:
            counts = self.accelerator.reduce(counts, reduction="sum")
        self._num_positive, self._num_negative = counts[0], counts[1]
        # SFTTrainer's counter, which it also logs in evaluations.
        self._total_train_tokens += int(counts[2])
        return batches, num_items

    @torch.no_grad()
    def _drop_low_ranks(self, batches: list[Any]) -> None:
        # Which tokens are among the highest is known once the whole step has been seen, so it is
        # read once before it is learned from. Without dropout, so that the random state stays.
        loss = self.args.positive_loss
        assert loss.ranking is not None
        was_training = self.model.training
        self.model.eval()
        values: list[Any] = []
        for batch in batches:
            inputs = {name: value for name, value in batch.items() if name not in ALL_COLUMNS}
            with self.compute_loss_context_manager():
                outputs = self.model_wrapped(
                    **self._prepare_inputs(inputs), use_cache=False, fused_lm_head=True
                )
            outputs = without_virtual_tokens(outputs, batch["labels"].shape[1] - 1)
            others = []
            if loss.ranking.needs_reference:
                others = [batch["reference_log_probs"][:, 1:].to(outputs.log_probs.device)]
            of_tokens = loss.ranking.value(outputs.log_probs.float(), *others)
            positive = target_polarity(batch).to(of_tokens.device) > 0
            values.append((of_tokens, positive))
        self.model.train(was_training)
        if loss.ranking.is_per_sample:
            values = [
                values_of_samples(of_tokens, positive, batch.get("cu_seq_lens_q"))
                for (of_tokens, positive), batch in zip(values, batches, strict=True)
            ]
        kept = choose_tokens(values, loss.keep, self.accelerator)
        for batch, is_kept in zip(batches, kept, strict=True):
            polarity = batch["polarity"][:, 1:]
            dropped = (polarity > 0) & ~is_kept.to(polarity.device)
            batch["polarity"][:, 1:] = torch.where(dropped, 0, polarity)

    def _blank_repeated_samples(self, batches: list[Any]) -> int:
        # At the end of an epoch, accelerate fills the micro-batches of all processes with samples
        # from its start, which the last step of one process does not have. Returns their tokens.
        state, size = self.accelerator.gradient_state, self.args.per_device_train_batch_size
        if self.args.world_size == 1 or not batches or not state.end_of_dataloader:
            return 0
        if self.args.dataloader_drop_last or not hasattr(self.train_dataset, "__len__"):
            return 0
        num_left = len(self.train_dataset) % (size * self.args.world_size)
        num_own = max(num_left - self.args.process_index * size, 0)
        if not num_left or num_own >= size:
            return 0
        batch = batches[-1]
        where: Any = slice(num_own, None)
        if len(batch["labels"]) != size:
            # Padding-free: all samples in one row. Packed rows do not say where their samples
            # begin, and stay as they are.
            positions = batch.get("position_ids", torch.ones(1, 1))
            starts = (positions[0] == 0).nonzero()[:, 0]
            if len(starts) != size:
                return 0
            where = (0, slice(int(starts[num_own]), None))
        batch["labels"][where] = -100
        batch["polarity"][where] = 0
        mask = batch.get("attention_mask")
        return batch["labels"][where].numel() if mask is None else int(mask[where].sum())

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Equation 8 over one micro-batch, divided by the counts of the whole step.

        In evaluation it is the mean cross-entropy of the positive tokens, see `PolarityEvaluation`.
        """
        batch = inputs
        inputs = {name: value for name, value in batch.items() if name not in ALL_COLUMNS}
        if not self.model.training:
            return self._evaluation_loss(model, inputs, batch, return_outputs, num_items_in_batch)
        polarity = target_polarity(batch)
        # Made from the settings on each use, which takes a while.
        term, positive_loss = self.args.forgetting_term, self.args.positive_loss
        inputs["use_cache"] = False
        if self.aux_loss_enabled:
            inputs["output_router_logits"] = True
        request = self._request(batch, term, positive_loss)
        outputs = without_virtual_tokens(
            model(**inputs, fused_lm_head=True, request=request), polarity.shape[1]
        )
        weights = of_targets(batch, "token_weights")
        per_token = {
            "log_probs": outputs.log_probs,
            "polarity": polarity,
            "base_log_probs": of_targets(batch, "base_log_probs"),
            "best_other_log_probs": outputs.best_other_log_probs,
            "weights": weights,
        }
        if outputs.corrections is not None:
            per_token["corrections"] = outputs.corrections
            per_token["correction_weights"] = of_targets(batch, "alternative_weights")
        statistics = {name: outputs[name] for name in positive_loss.statistics}
        if term.is_per_sample:
            per_token, statistics = (
                {
                    name: None if values is None else rows_of_samples(batch, values)
                    for name, values in group.items()
                }
                for group in (per_token, statistics)
            )
        loss = forgetting_loss(
            **per_token,
            statistics=statistics,
            lam=self.lam,
            term=term,
            loss=positive_loss,
            num_positive=self._num_positive,
            num_negative=self._num_negative,
        )
        # The counts are over all processes, and DDP averages their gradients.
        loss = loss * self.accelerator.num_processes
        if self.aux_loss_enabled:
            # A mean over the micro-batch, so it is divided by the number of micro-batches.
            weight = self.router_aux_loss_coef / self.current_gradient_accumulation_steps
            loss = loss + weight * outputs.aux_loss
        corrected = None if outputs.corrections is None else batch["alternative_weights"][:, 1:]
        self._window.add(outputs, polarity, weights, corrected)
        if self.args.divergence_ratio is not None:
            self._watch.add(outputs.log_probs, polarity, weights)
        return (loss, outputs) if return_outputs else loss

    def _request(
        self, batch: dict[str, Any], term: ForgettingTerm, loss: PositiveLoss
    ) -> TokenRequest | None:
        """What the loss needs in addition to the log-probabilities of the labels."""
        given: dict[str, Any] = {}
        if "alternative_ids" in batch:
            given = {name: batch[name] for name in ALTERNATIVE_COLUMNS}
            given["is_corrected"] = (batch["alternative_weights"] > 0) & (batch["polarity"] > 0)
        if term.needs_best_other and self.lam > 0:
            given["needs_best_other"] = batch["polarity"] < 0
        # Every forward pass gives the entropy.
        statistics = [name for name in loss.statistics if name != "entropy"]
        return TokenRequest(**given, statistics=statistics) if given or statistics else None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        # The last log of a training has the figures of the steps after the last logging step. Logs
        # of callbacks have them too, as in SFTTrainer, but they may come from one process alone,
        # and the others would wait for it.
        is_of_trainer = bool({"loss", "train_loss"} & logs.keys())
        if is_of_trainer or (self.model.training and self.args.world_size == 1):
            found = self._window.take(self.accelerator)
            if found:
                # The step counter is one ahead when the figures of a step are logged.
                step = self.state.global_step - 1
                logs.update(found)
                logs["lambda"] = self.args.lambda_schedule(step, self.state.max_steps)
                logs["num_tokens"] = self._total_train_tokens
        super().log(logs, start_time)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        # Called in every step before the optimizer, so what is bad never reaches the weights.
        norm = super()._get_grad_norm(model, grad_norm)
        if not math.isfinite(float(norm)):
            self._diverged(f"the gradient norm is {float(norm)}")
        ratio, found = self.args.divergence_ratio, self._watch.close_step(self.accelerator)
        if ratio is not None and found is not None:
            loss, start = found
            if loss > ratio * start:
                self._diverged(
                    f"the positive loss is {loss:.4g}, more than {ratio:g} times the {start:.4g} "
                    "of its start"
                )
        return norm

    def _progress(self) -> dict[str, Any]:
        return {
            **super()._progress(),
            "first_losses": self._watch.first_losses,
            "num_tokens": self._total_train_tokens,
            "window": self._window.total(self.accelerator),
        }

    def _set_progress(self, progress: dict[str, Any]) -> None:
        super()._set_progress(progress)
        self._watch.first_losses = progress["first_losses"]
        self._total_train_tokens = progress["num_tokens"]
        # The other processes add nothing, since the sums are over all of them.
        if self.is_world_process_zero() and progress.get("window") is not None:
            self._window.resume(progress["window"], self.args.device)

    def create_model_card(self, *positional: Any, **named: Any) -> None:
        """Write TRL's card, with what was forgotten and how."""
        super().create_model_card(*positional, **named)
        if self.is_world_process_zero():
            base = str(getattr(self.model.config, "_name_or_path", "") or "")
            card = Path(self.args.output_dir) / "README.md"
            correct_card(card, self.args, base, self.hub_model_id)

    def _course(self) -> dict[str, Any]:
        args, term = self.args, self.args.forgetting_term
        loss = args.positive_loss
        return {
            **super()._course(),
            "normalization": args.normalization,
            **asdict(args.lambda_schedule),
            "term.kind": term.kind,
            "term.floor": term.floor,
            **{f"term.{name}": value for name, value in term.parameters.items()},
            "loss.kind": loss.kind,
            **{f"loss.{name}": value for name, value in loss.parameters.items()},
        }

    def _diverged(self, reason: str) -> NoReturn:
        step = self.state.global_step + 1
        kept = latest_checkpoint(Path(self.args.output_dir))
        lam = self.args.lambda_schedule(step - 1, self.state.max_steps)
        raise DivergenceError(
            f"training diverged at step {step} of {self.state.max_steps}: {reason}, at lambda "
            f"{lam:g}. Last good checkpoint: {kept or 'none yet'}. Lower t_max or the learning "
            "rate, or set a floor or max_grad_norm"
        )
