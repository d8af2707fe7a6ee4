"""Which samples of an optimizer step share a micro-batch.

Input: the micro-batches of a step, as collated. Output: the same samples sorted by length, which
needs less padding. Knows nothing of losses.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from forgetting.rundir.samples import IGNORE_INDEX


def draws_random_numbers(model: Any, neftune_noise_alpha: float | None = None) -> bool:
    """Whether a forward pass in training draws random numbers, as dropout and NEFTune do."""
    if neftune_noise_alpha is not None:
        return True
    layers = any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in model.modules())
    # Attention takes its own from the configuration.
    settings = vars(model.config.get_text_config()).items()
    return layers or any(
        name.endswith(("dropout", "pdrop")) and isinstance(value, float) and value > 0
        for name, value in settings
    )


def deal_by_length(
    batches: list[dict[str, Tensor]], multiple: int | None = None
) -> list[dict[str, Tensor]]:
    """Sort the samples of an optimizer step into its micro-batches by length, longest first.

    Where a loss is divided by counts of the whole step, which micro-batch a sample is in changes
    nothing but the padding that is computed with it.

    Args:
        batches: as collated; sizes, number and side of the padding stay as they are. Batches
            without a mask, or that differ in what they hold, come back unchanged.
        multiple: widths are multiples of it; default: of 1.
    """
    if len(batches) < 2 or any("attention_mask" not in batch for batch in batches):
        return batches
    for batch in batches:
        shapes = {getattr(value, "shape", ())[:2] for value in batch.values()}
        # Of left-padded batches, only those with padding have position_ids.
        if len(shapes) > 1 or batch.keys() != batches[0].keys():
            return batches
    masks = [batch["attention_mask"] for batch in batches]
    # One transfer from the accelerator, because each transfer waits for all pending work.
    first, lengths = torch.stack(
        [torch.cat([m[:, 0] for m in masks]), torch.cat([m.sum(1) for m in masks])]
    ).tolist()
    is_left = not all(first)
    width = max(mask.shape[1] for mask in masks)
    fill = {"labels": IGNORE_INDEX}
    whole = {}
    for name in batches[0]:
        parts = [batch[name].flip(1) if is_left else batch[name] for batch in batches]
        # What has a third dimension lacks it in batches whose lists are empty.
        sizes = [max(part.shape[2] for part in parts)] if parts[0].dim() > 2 else []
        short = [
            [0, sizes[0] - part.shape[2], 0, width - part.shape[1]]
            if sizes
            else [0, width - part.shape[1]]
            for part in parts
        ]
        whole[name] = torch.cat(
            [
                pad(part, missing, value=fill.get(name, 0))
                for part, missing in zip(parts, short, strict=True)
            ]
        )
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    sorted_batches = []
    begin = 0
    for mask in masks:
        rows = order[begin : begin + len(mask)]
        begin += len(mask)
        end = lengths[rows[0]] + -lengths[rows[0]] % (multiple or 1)
        index = torch.tensor(rows, device=mask.device)
        cut = {name: values[index, :end] for name, values in whole.items()}
        sorted_batches.append({name: v.flip(1) if is_left else v for name, v in cut.items()})
    return sorted_batches
