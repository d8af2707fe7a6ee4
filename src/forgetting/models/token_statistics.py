"""Statistics of a model's predictions at chosen positions, from one pass over the logits.

Input: hidden states of the positions that predict a target. Output, per target: its
log-probability and, on request, the entropy of the prediction, the spread of its surprise, the
best other token, the target's rank, and the sum of squared probabilities. Logits exist only in
blocks of some rows by some columns, small enough to stay in the processor's cache while every
statistic reads them. All sums are float32. Computes no gradient: `lm_head` is for training.
Knows nothing of batches or of what the statistics are for.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers.utils import is_triton_available
from trl.kernels import ChunkedLogProbFunction

from forgetting.errors import InputError
from forgetting.models.lm_head import (
    ROWS_PER_TILE,
    ROWS_PER_TILE_ACCELERATOR,
    Head,
    is_plain,
    scale_logits,
)

STATISTICS = ("entropy", "surprise_std", "best_other_log_prob", "rank", "sum_squares")
"""What can be requested in addition to the log-probability."""

LEAST_LOG_PROB = -1e4
"""Lower bound of `best_other_log_prob`, in nats."""

# A block has many rows, which share each piece of the weights, and is one matrix product.
ROWS_PER_BLOCK = 1024
LOGITS_PER_BLOCK = 2**19
# The statistics take some of its rows at a time: 512 KiB of float32 logits, and as much for what is
# computed from them, are read many times while they are in the cache.
LOGITS_PER_PIECE = 2**17
# Columns of a block on an accelerator, where TRL's kernel reads it once.
COLUMNS_PER_BLOCK_ACCELERATOR = 2**15
# Matrix products treat the last columns of an odd width differently.
COLUMNS_MULTIPLE = 16
# exp() of a logit this far below the largest is zero in float32, yet its square is finite.
FAR_BELOW = -1e3


@dataclass(frozen=True)
class TokenStatistics:
    """What one pass tells about each target; every field has shape (positions,).

    p is the prediction at the target's position: a distribution over the vocabulary. Fields that
    were not requested are None.
    """

    log_probs: Tensor
    """Log-probability of the target in nats, float32."""
    is_greedy: Tensor
    """Whether no token is more likely than the target, bool."""
    entropy: Tensor | None = None
    """Entropy H of p in nats, float32."""
    surprise_std: Tensor | None = None
    """Standard deviation of the surprise -log p(v) for v drawn from p, in nats, float32:
    sqrt(sum_v p(v) log(p(v))^2 - H^2)."""
    best_other_log_prob: Tensor | None = None
    """Largest log-probability among all tokens other than the target, in nats, float32; never
    below `LEAST_LOG_PROB`."""
    rank: Tensor | None = None
    """Number of tokens that are strictly more likely than the target, int32."""
    sum_squares: Tensor | None = None
    """sum_v p(v)^2, float32: the probability that two draws from p agree."""


@torch.no_grad()
def measure(
    head: Head, hidden: Tensor, targets: Tensor, statistics: Collection[str] = ()
) -> TokenStatistics:
    """Compute the statistics of targets without a gradient.

    Args:
        head: head of a causal language model, from `split_head`.
        hidden: states of the positions that predict the targets, shape (positions, hidden size).
        targets: token ids, shape (positions,).
        statistics: names from `STATISTICS` to compute in addition to the log-probability.

    Raises:
        InputError: a name in `statistics` is unknown.
    """
    wanted = check_statistics(statistics)
    is_split = is_plain(head.linear)
    on_cpu = hidden.device.type == "cpu"
    if is_split and wanted <= {"entropy"} and _has_kernel(hidden.device):
        return _measure_by_kernel(head, hidden, targets, "entropy" in wanted)
    if not is_split:
        rows, columns = ROWS_PER_TILE if on_cpu else ROWS_PER_TILE_ACCELERATOR, None
    elif on_cpu:
        rows = min(ROWS_PER_BLOCK, max(1, len(targets)))
        columns = max(1, LOGITS_PER_BLOCK // rows)
    else:
        rows, columns = ROWS_PER_TILE_ACCELERATOR, COLUMNS_PER_BLOCK_ACCELERATOR
    buffers = _Buffers(hidden.device)
    # Without targets there is one empty tile.
    tiles = [
        _measure_tile(head, states, of_tile, wanted, columns, buffers)
        for states, of_tile in zip(hidden.split(rows), targets.split(rows), strict=True)
    ]
    return TokenStatistics(
        **{
            name: torch.cat([getattr(tile, name) for tile in tiles])
            for name in ("log_probs", "is_greedy", *wanted)
        }
    )


def check_statistics(statistics: Collection[str]) -> frozenset[str]:
    """Return the requested names as a set.

    Raises:
        InputError: a name is not in `STATISTICS`.
    """
    names = [statistics] if isinstance(statistics, str) else statistics
    unknown = sorted(set(names) - set(STATISTICS))
    if unknown:
        raise InputError(
            f"unknown statistic {unknown[0]!r}. Choose from {', '.join(STATISTICS)}; "
            "log_probs and is_greedy are always computed"
        )
    return frozenset(names)


def _has_kernel(device: torch.device) -> bool:
    """Whether TRL's fused head runs as a kernel of its own, one pass over each block."""
    return device.type in ("cuda", "xpu") and is_triton_available()


def _measure_by_kernel(
    head: Head, hidden: Tensor, targets: Tensor, with_entropy: bool
) -> TokenStatistics:
    outputs = ("entropy", "is_top1") if with_entropy else ("is_top1",)
    weight: Any = head.linear.weight
    log_probs, entropy, _, _, is_greedy = ChunkedLogProbFunction.apply(
        hidden.to(weight.dtype),
        weight,
        head.linear.bias,
        targets,
        1.0,
        COLUMNS_PER_BLOCK_ACCELERATOR,
        head.softcap,
        head.scale,
        outputs,
    )
    return TokenStatistics(log_probs, is_greedy, entropy if with_entropy else None)


class _Buffers:
    """Memory that every block reuses: fresh pages cost as much as the arithmetic."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.flat: dict[str, Tensor] = {}

    def take(self, name: str, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        size = math.prod(shape)
        if name not in self.flat or self.flat[name].numel() < size:
            self.flat[name] = torch.empty(size, dtype=dtype, device=self.device)
        return self.flat[name][:size].view(shape)


@dataclass(frozen=True)
class _Piece:
    """Some rows of a block of logits."""

    block: int
    rows: slice
    begin: int
    """Token of the first column."""
    logits: Tensor
    """Float32, shape (rows, columns); overwritten when the next piece is requested."""

    def look_up(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Find one token of each row, which may lie outside the block.

        Args:
            tokens: shape (rows of the tile,).

        Returns:
            The token's column, moved into the block, shape (rows, 1); whether it was inside; the
            logit there.
        """
        column = tokens[self.rows] - self.begin
        inside = column.clamp(0, self.logits.shape[1] - 1)
        is_here = column == inside
        column = inside[:, None]
        return column, is_here, self.logits.gather(1, column)[:, 0]

    def count_above(self, limits: Tensor, buffers: _Buffers) -> Tensor:
        """Count each row's logits that are strictly above its limit.

        Comparing into float32 is vectorized, and counts stay exact up to 2^24.
        """
        out = buffers.take("exps", self.logits.shape)
        return torch.gt(self.logits, limits[:, None], out=out).sum(1)


def _pieces(head: Head, states: Tensor, columns: int | None, buffers: _Buffers) -> Iterator[_Piece]:
    """Yield the logits piece by piece. `columns` None: blocks of the whole vocabulary."""
    if is_plain(head.linear):
        weight, bias = head.linear.weight, head.linear.bias
        yield from _product_pieces(head, weight, bias, states, columns or len(weight), buffers)
        return
    logits = head.linear(states)
    for rows in _rows_of_pieces(logits):
        part = logits[rows].float()
        yield _Piece(0, rows, 0, scale_logits(part, head.scale, head.softcap))


def _product_pieces(
    head: Head,
    weight: Tensor,
    bias: Tensor | None,
    states: Tensor,
    columns: int,
    buffers: _Buffers,
) -> Iterator[_Piece]:
    states = states.to(weight.dtype)
    for block, begin in enumerate(range(0, len(weight), columns)):
        part = weight[begin : begin + columns]
        product = buffers.take("product", (len(states), len(part)), weight.dtype)
        torch.mm(states, part.T, out=product)
        for rows in _rows_of_pieces(product):
            logits = product[rows]
            if logits.dtype != torch.float32:
                logits = buffers.take("logits", logits.shape).copy_(logits)
            if bias is not None:
                logits += bias[begin : begin + len(part)]
            yield _Piece(block, rows, begin, scale_logits(logits, head.scale, head.softcap))


def _rows_of_pieces(block: Tensor) -> Iterator[slice]:
    num_rows, columns = block.shape
    size = max(1, num_rows)
    if block.device.type == "cpu":
        size = max(1, LOGITS_PER_PIECE // columns)
    # Without rows there is one empty piece.
    for begin in range(0, max(1, num_rows), size):
        yield slice(begin, begin + size)


def _measure_tile(
    head: Head,
    states: Tensor,
    targets: Tensor,
    wanted: frozenset[str],
    columns: int | None,
    buffers: _Buffers,
) -> TokenStatistics:
    rank = expected = None
    if "rank" in wanted:
        rank = torch.zeros(targets.shape, device=targets.device)
        if columns is not None:
            expected = _target_logits(head, states, targets, columns, buffers)
    of_target = torch.full(targets.shape, -math.inf, device=targets.device)
    linear: Any = head.linear
    num_blocks = 1 if columns is None else math.ceil(len(linear.weight) / columns)
    blocks = _Blocks.empty(num_blocks, of_target)
    for piece in _pieces(head, states, columns, buffers):
        rows = piece.rows
        column, is_here, there = piece.look_up(targets)
        of_target[rows] = torch.where(is_here, there, of_target[rows])
        if rank is not None:
            limits = there if expected is None else expected[rows]
            rank[rows] += piece.count_above(limits, buffers)
        # The target is kept out of its block, which makes the largest logit that of the best
        # other token, and is joined to the blocks in the end.
        piece.logits.scatter_(1, column, torch.where(is_here, -math.inf, there)[:, None])
        _summarize(piece, wanted, blocks, buffers)
    if rank is not None and expected is not None:
        wrong = (expected != of_target).nonzero()[:, 0]
        if len(wrong):
            rank[wrong] = _rank_by_whole_rows(head, states[wrong], targets[wrong])
    return _join(blocks, of_target, wanted, rank)


def _target_logits(
    head: Head, states: Tensor, targets: Tensor, columns: int, buffers: _Buffers
) -> Tensor:
    """Compute the targets' logits before the blocks, to count the larger ones block by block.

    The product has the form of the blocks' own, so that both nearly always round in the same way;
    the caller compares them. A dot product per row would round differently.
    """
    tokens, place = targets.unique(return_inverse=True)
    tokens = torch.nn.functional.pad(tokens, (0, -len(tokens) % COLUMNS_MULTIPLE))
    linear: Any = head.linear
    bias = None if linear.bias is None else linear.bias[tokens]
    found = torch.zeros(targets.shape, device=targets.device)
    for piece in _product_pieces(head, linear.weight[tokens], bias, states, columns, buffers):
        _, is_here, there = piece.look_up(place)
        found[piece.rows] = torch.where(is_here, there, found[piece.rows])
    return found


def _rank_by_whole_rows(head: Head, states: Tensor, targets: Tensor) -> Tensor:
    """Rank targets among the logits of one product, for rows whose target rounds differently in
    products of different widths."""
    buffers = _Buffers(states.device)
    rank = torch.empty(targets.shape, device=targets.device)
    tiles = (values.split(ROWS_PER_TILE) for values in (states, targets, rank))
    for of_tile, targets_of_tile, rank_of_tile in zip(*tiles, strict=True):
        for piece in _pieces(head, of_tile, None, buffers):
            _, _, limits = piece.look_up(targets_of_tile)
            rank_of_tile[piece.rows] = piece.count_above(limits, buffers)
    return rank


@dataclass(frozen=True)
class _Blocks:
    """Sums over each block's tokens without the target, shape (blocks, rows).

    For logits z and their largest m in the block, with d = z - m and e = exp(d).
    """

    largest: Tensor
    """m"""
    total: Tensor
    """sum e"""
    first: Tensor
    """sum e d"""
    second: Tensor
    """sum e d^2"""
    squares: Tensor
    """sum e^2"""

    @classmethod
    def empty(cls, num_blocks: int, like: Tensor) -> _Blocks:
        return cls(*like.new_zeros(len(fields(cls)), num_blocks, len(like)))


def _summarize(piece: _Piece, wanted: frozenset[str], blocks: _Blocks, buffers: _Buffers) -> None:
    """Fill in a piece's sums, those that are wanted; overwrites its logits."""
    place = (piece.block, piece.rows)
    largest = torch.amax(piece.logits, 1, out=blocks.largest[place])
    # A block of nothing but -inf has finite differences this way, and a sum of zero.
    largest.clamp_(min=torch.finfo(torch.float32).min)
    shifted = piece.logits.sub_(largest[:, None])
    with_moments = not wanted.isdisjoint({"entropy", "surprise_std"})
    if with_moments:
        # Otherwise 0 * -inf would be NaN.
        shifted.clamp_(min=FAR_BELOW)
        exps = torch.exp(shifted, out=buffers.take("exps", shifted.shape))
    else:
        exps = shifted.exp_()
    torch.sum(exps, 1, out=blocks.total[place])
    if "sum_squares" in wanted:
        torch.linalg.vector_norm(exps, dim=1, out=blocks.squares[place]).square_()
    if with_moments:
        torch.sum(exps.mul_(shifted), 1, out=blocks.first[place])
    if "surprise_std" in wanted:
        torch.sum(exps.mul_(shifted), 1, out=blocks.second[place])


def _join(
    blocks: _Blocks, of_target: Tensor, wanted: frozenset[str], rank: Tensor | None
) -> TokenStatistics:
    """Join blocks and target to the statistics of the whole prediction.

    The prediction is a mixture of the target, with probability p, and of all other tokens, with
    q = 1 - p. Entropy and variance follow from those of the others by the rules of mixtures, in
    which all terms are positive: nothing cancels, however certain the prediction is.
    """
    tiny = torch.finfo(torch.float32).tiny
    largest = blocks.largest.amax(0)
    shift = (blocks.largest - largest).clamp(min=FAR_BELOW)
    scale = shift.exp()
    total = (scale * blocks.total).sum(0).clamp(min=tiny)
    log_total = total.log()
    # log(p / q)
    log_odds = of_target - largest - log_total
    log_prob, log_rest = logsigmoid(log_odds), logsigmoid(-log_odds)
    found: dict[str, Tensor | None] = {}
    if "best_other_log_prob" in wanted:
        found["best_other_log_prob"] = (log_rest - log_total).clamp(min=LEAST_LOG_PROB)
    p, q = log_prob.exp(), log_rest.exp()
    if "sum_squares" in wanted:
        squares = (scale.square() * blocks.squares).sum(0)
        found["sum_squares"] = p.square() + (q / total).square() * squares
    if not wanted.isdisjoint({"entropy", "surprise_std"}):
        share = scale * blocks.total / total
        within = blocks.first / blocks.total.clamp(min=tiny)
        # Mean logit of the others, and of each block, about the largest of all.
        of_block = shift + within
        mean = (share * of_block).sum(0)
        of_others = log_total - mean
        # Terms of p log p vanish long before the clamp.
        bounded = log_odds.clamp(FAR_BELOW, -FAR_BELOW)
        if "entropy" in wanted:
            binary = -p * logsigmoid(bounded) - q * logsigmoid(-bounded)
            found["entropy"] = binary + q * of_others
        if "surprise_std" in wanted:
            second = blocks.second / blocks.total.clamp(min=tiny)
            # Rounding may leave a negative variance within a block of very many columns.
            spread = (second - within.square()).clamp(min=0) + (of_block - mean).square()
            variance = (share * spread).sum(0)
            between = p * q * (bounded + of_others).square()
            found["surprise_std"] = (q * variance + between).sqrt()
    if rank is not None:
        found["rank"] = rank.int()
    return TokenStatistics(log_prob, of_target >= largest, **found)
