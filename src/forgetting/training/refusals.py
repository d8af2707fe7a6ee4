"""What `ForgettingTrainer` refuses: data and options that would train the wrong thing."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from trl.data_utils import get_dataset_column_names

from forgetting.training.config import ForgettingConfig


def refuse(args: ForgettingConfig, dataset: Dataset, kwargs: dict[str, Any]) -> None:
    if not isinstance(args, ForgettingConfig):
        raise TypeError(f"args must be a ForgettingConfig, got {type(args).__name__}")
    columns = set(get_dataset_column_names(dataset))
    if {"image", "images"} & columns:
        raise ValueError("train_dataset holds images: the forgetting objective is for text alone")
    if "polarity" not in columns:
        raise ValueError(
            "train_dataset has no column polarity (+1 learn, -1 forget, 0 ignore). Select tokens "
            "first, or give every row the number 1 to learn all tokens"
        )
    if "input_ids" in columns and not {"labels", "completion_mask", "assistant_masks"} & columns:
        raise ValueError(
            "train_dataset has input_ids and no column labels, so prompts would be trained on as "
            "well. Add labels: the token where it is to be predicted, -100 elsewhere"
        )
    if args.forgetting_term.needs_base and "base_log_probs" not in columns:
        raise ValueError(
            f"the term {args.term} needs a column base_log_probs in train_dataset: the base "
            "model's log-probability of each labelled token"
        )
    if args.forgetting_term.is_per_sample and "token_weights" in columns:
        raise ValueError(
            f"the term {args.term} is one value a sample: drop token_weights, or use another term"
        )
    if args.forgetting_term.is_per_sample and args.packing and args.packing_strategy != "bfd":
        raise ValueError(
            f"the term {args.term} is one value a sample, and packing_strategy "
            f"{args.packing_strategy!r} takes samples apart: use 'bfd'"
        )
    if args.packing and args.max_length is None:
        raise ValueError("packing needs a max_length: the tokens of a row")
    if args.loss_type != "nll" or args.label_smoothing_factor:
        raise ValueError(
            "the forgetting objective replaces the loss: leave loss_type at 'nll' and "
            "label_smoothing_factor at 0"
        )
    if args.truncation_mode != "keep_start":
        raise ValueError("truncation_mode must be 'keep_start': a response ends its sample")
    if not args.average_tokens_across_devices:
        raise ValueError(
            "average_tokens_across_devices must stay True: the means are over all processes"
        )
    if kwargs.get("compute_loss_func") is not None:
        raise ValueError("compute_loss_func would bypass the forgetting objective: leave it out")


def refuse_sharded_sequences(parallelism: Any) -> None:
    for name in ("tp", "cp", "sp"):
        if parallelism is not None and getattr(parallelism, f"{name}_enabled", False):
            raise ValueError(
                f"{name}_size above 1 divides samples between processes, and their tokens would "
                "be counted wrongly: use data parallelism (DDP, FSDP2, ZeRO) alone"
            )
