"""What `ForgettingTrainer` refuses: data and options that would train the wrong thing."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from accelerate.utils import is_peft_model
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

from forgetting.training.collator import ALTERNATIVE_COLUMNS
from forgetting.training.config import ForgettingConfig

CORRECTION_COLUMNS = ("alternative_weights", *ALTERNATIVE_COLUMNS)


def refuse_types(args: Any, dataset: Any) -> None:
    """Check what is passed in the place of settings and training data.

    Raises:
        TypeError: one of them has another type.
        ValueError: there is no data.
    """
    if not isinstance(args, ForgettingConfig):
        raise TypeError(
            f"args must be a ForgettingConfig, got a {type(args).__name__}. It takes the same "
            "arguments"
        )
    if dataset is None:
        raise ValueError("train_dataset is missing. Pass a Dataset or an IterableDataset")
    if isinstance(dataset, (DatasetDict, IterableDatasetDict)):
        splits = ", ".join(dataset)
        raise TypeError(
            f"train_dataset is a {type(dataset).__name__} with the splits {splits}. Pass one of "
            f"them: train_dataset[{next(iter(dataset), 'train')!r}]"
        )
    if not isinstance(dataset, (Dataset, IterableDataset)):
        raise TypeError(
            f"train_dataset must be a Dataset or an IterableDataset, got a {type(dataset).__name__}"
        )
    # A stream says only whether there is a first row; SFTTrainer asks for it as well.
    if not (len(dataset) if isinstance(dataset, Dataset) else any(True for _ in dataset)):
        raise ValueError(
            "train_dataset has no rows. If it was filtered, check what the filter keeps"
        )


def evaluation_sets(dataset: Any) -> list[Dataset | IterableDataset]:
    """The datasets in `eval_dataset`, if there are any.

    Raises:
        TypeError: it is, or holds, something else.
    """
    given = dataset.values() if isinstance(dataset, dict) else [dataset]
    found = [each for each in given if each is not None]
    for each in found:
        if not isinstance(each, (Dataset, IterableDataset)):
            raise TypeError(
                "eval_dataset must be a Dataset, an IterableDataset or a dictionary of them, got a "
                f"{type(each).__name__}"
            )
    return found


def refuse_columns(what: str, columns: Collection[str], args: ForgettingConfig) -> None:
    """Refuse rows without a column that holds what is trained on.

    Args:
        what: name of the argument, for the message.

    Raises:
        ValueError: the message says which columns there are, and how to get the right ones.
    """
    known = {args.dataset_text_field, "messages", "conversations", "prompt", "input_ids"}
    if known & set(columns):
        return
    own = sorted(set(columns) - {"polarity"})
    raise ValueError(
        f"{what} has the columns {', '.join(own)}, and none of input_ids, messages, prompt (with "
        f"completion) and {args.dataset_text_field}. Rename them, or make prompts and completions: "
        'dataset.map(lambda row: {"prompt": ..., "completion": ...})'
    )


def refuse(args: ForgettingConfig, columns: Collection[str]) -> None:
    """Check that settings and training data go together.

    Args:
        columns: of the training data.

    Raises:
        ValueError: a setting is wrong, a column is missing, or an option does not work with
            polarity.
    """
    args.check()
    columns = set(columns)
    if {"image", "images"} & columns:
        raise ValueError("train_dataset has images. The forgetting objective is for text only")
    if "polarity" not in columns:
        raise ValueError(
            "train_dataset has no column polarity (+1 learn, -1 forget, 0 ignore). Select tokens "
            "first, or give every row the number 1 to learn all tokens"
        )
    if "input_ids" in columns and not {"labels", "completion_mask", "assistant_masks"} & columns:
        raise ValueError(
            "train_dataset has input_ids but no column labels, so prompts would be trained on as "
            "well. Add labels: the token id where it is to be predicted, -100 elsewhere"
        )
    if args.forgetting_term.needs_base and "base_log_probs" not in columns:
        raise ValueError(
            f"the term {args.term} needs a column base_log_probs in train_dataset: the base "
            "model's log-probability of each labeled token"
        )
    given = [name for name in CORRECTION_COLUMNS if name in columns]
    if given and len(given) < len(CORRECTION_COLUMNS):
        missing = next(name for name in CORRECTION_COLUMNS if name not in columns)
        raise ValueError(
            f"train_dataset has {given[0]} but no {missing}. Tokens to correct need both"
        )
    ranking = args.positive_loss.ranking
    if ranking is not None and ranking.needs_reference and "reference_log_probs" not in columns:
        raise ValueError(
            f"the loss {args.loss} needs a column reference_log_probs in train_dataset: a "
            "reference model's log-probability of each labeled token"
        )
    if ranking is not None and ranking.is_per_sample and _splits_samples(args):
        raise ValueError(
            f"the loss {args.loss} ranks whole samples, and packing_strategy "
            f"{args.packing_strategy!r} splits them. Set 'bfd'"
        )
    if args.forgetting_term.is_per_sample and given:
        raise ValueError(
            f"the term {args.term} has one value per sample. Remove {given[0]}, or set another term"
        )
    if args.forgetting_term.is_per_sample and _splits_samples(args):
        raise ValueError(
            f"the term {args.term} has one value per sample, and packing_strategy "
            f"{args.packing_strategy!r} splits samples. Set 'bfd'"
        )
    if args.packing and args.max_length is None:
        raise ValueError("packing needs max_length, the number of tokens in a row")
    if args.loss_type != "nll" or args.label_smoothing_factor:
        raise ValueError(
            "the forgetting objective replaces the loss. Leave loss_type at 'nll' and "
            "label_smoothing_factor at 0"
        )
    if args.truncation_mode != "keep_start":
        raise ValueError("truncation_mode must be 'keep_start': samples begin with the prompt")
    if not args.average_tokens_across_devices:
        raise ValueError(
            "average_tokens_across_devices must be True, because means are over all processes"
        )


def refuse_loss_function(compute_loss_func: Any) -> None:
    """Raise ValueError if there is one."""
    if compute_loss_func is not None:
        raise ValueError("compute_loss_func would bypass the forgetting objective. Remove it")


def refuse_shared_rows(model: Any, padding_free: bool) -> None:
    """Refuse learned prompts where several samples share a row.

    Raises:
        ValueError: only the first sample of each row would see the prompt, and samples would see
            each other.
    """
    if not padding_free or not is_peft_model(model):
        return
    adapter = model.active_peft_config
    if adapter.is_prompt_learning:
        raise ValueError(
            f"{adapter.peft_type.value} needs one sample per row, and padding_free or packing puts "
            "several there. Turn them off, or use another adapter"
        )


def _splits_samples(args: ForgettingConfig) -> bool:
    return bool(args.packing) and args.packing_strategy != "bfd"


def refuse_sharded_sequences(parallelism: Any) -> None:
    """Raise ValueError if processes share the tokens of a sample."""
    for name in ("tp", "cp", "sp"):
        if parallelism is not None and getattr(parallelism, f"{name}_enabled", False):
            raise ValueError(
                f"{name}_size above 1 splits samples between processes, and their tokens would be "
                "counted wrongly. Use data parallelism only (DDP, FSDP2, ZeRO)"
            )
