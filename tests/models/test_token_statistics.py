"""Every statistic against a float64 computation from full logits."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from forgetting.errors import InputError
from forgetting.models import token_statistics as module
from forgetting.models.lm_head import Head
from forgetting.models.token_statistics import (
    LEAST_LOG_PROB,
    STATISTICS,
    _measure_by_kernel,
    measure,
)
from tests.models.small_head import HIDDEN, VOCABULARY, Wrapped, make

ALL = ("log_probs", "is_greedy", *STATISTICS)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    # Tiles of 4 rows, in blocks of 10, 10, 10 and 7 columns.
    monkeypatch.setattr(module, "ROWS_PER_TILE", 4)
    monkeypatch.setattr(module, "ROWS_PER_BLOCK", 4)
    monkeypatch.setattr(module, "LOGITS_PER_BLOCK", 40)


def draw(positions, dtype=torch.float32, size=3.0, vocabulary=VOCABULARY):
    generator = torch.Generator().manual_seed(2)
    hidden = size * torch.randn(positions, HIDDEN, generator=generator)
    targets = torch.randint(0, vocabulary, (positions,), generator=generator)
    return hidden.to(dtype), targets


def given_logits(logits, wrapped=False):
    """A head whose logits are exactly the given ones: one-hot states choose columns of weights."""
    linear = nn.Linear(*logits.shape, bias=False)
    linear.weight.data = logits.T.contiguous()
    return Head(nn.Identity(), Wrapped(linear) if wrapped else linear, 1.0, None), torch.eye(
        len(logits)
    )


def expected(logits, targets):
    """Statistics of float64 logits, shape (positions, vocabulary)."""
    here = targets[:, None]
    log_p = logits.log_softmax(1)
    p = log_p.exp()
    log_p_or_0 = log_p.where(p > 0, 0.0)
    entropy = -(p * log_p_or_0).sum(1)
    of_target = logits.gather(1, here)
    others = log_p.scatter(1, here, -torch.inf).amax(1)
    rank = (logits > of_target).sum(1)
    return {
        "log_probs": log_p.gather(1, here)[:, 0],
        "is_greedy": rank == 0,
        "entropy": entropy,
        # The same as sqrt(sum p (log p)^2 - H^2), without its cancellation.
        "surprise_std": (p * (log_p_or_0 + entropy[:, None]).square()).sum(1).sqrt(),
        "best_other_log_prob": others.clamp(min=LEAST_LOG_PROB),
        "rank": rank.int(),
        "sum_squares": p.square().sum(1),
    }


def check(found, wanted, names=ALL, rtol=1e-5, atol=1e-5):
    for name in names:
        values = getattr(found, name)
        if name in ("rank", "is_greedy"):
            assert values.dtype == wanted[name].dtype
            assert values.tolist() == wanted[name].tolist(), name
        else:
            assert values.dtype == torch.float32
            torch.testing.assert_close(
                values.double(),
                wanted[name],
                rtol=rtol,
                atol=atol,
                msg=lambda m, n=name: f"{n}: {m}",
            )


every_head = pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": True},
        {"scale": 0.3},
        {"scale": 2.0, "softcap": 5.0},
        {"bias": True, "softcap": 3.0},
        {"wrapped": True, "bias": True, "scale": 0.5, "softcap": 4.0},
    ],
    ids=str,
)


def logits_of(head, linear, hidden):
    """Float64, from the weights in float64."""
    bias = 0.0 if linear.bias is None else linear.bias.detach().double()
    logits = head.scale * (hidden.double() @ linear.weight.detach().double().T + bias)
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)


@pytest.mark.parametrize("positions", [1, 4, 11])
@every_head
def test_statistics_are_those_of_the_softmax(positions, options):
    head, linear = make(**options)
    hidden, targets = draw(positions)
    found = measure(head, hidden.requires_grad_(), targets, STATISTICS)
    assert not found.log_probs.requires_grad
    check(found, expected(logits_of(head, linear, hidden.detach()), targets))


@pytest.mark.parametrize("asked", [(), *((name,) for name in STATISTICS)], ids=str)
@pytest.mark.parametrize("wrapped", [True, False])
def test_a_statistic_does_not_depend_on_the_others(asked, wrapped):
    head, linear = make(bias=True, wrapped=wrapped)
    hidden, targets = draw(11)
    found = measure(head, hidden, targets, asked)
    check(
        found,
        expected(logits_of(head, linear, hidden), targets),
        ("log_probs", "is_greedy", *asked),
    )
    assert {name for name in STATISTICS if getattr(found, name) is not None} == set(asked)
    everything = measure(head, hidden, targets, STATISTICS)
    assert found.log_probs.tolist() == everything.log_probs.tolist()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("positions", [4, 11])
@pytest.mark.parametrize("wrapped", [True, False])
def test_half_precision_weights_have_a_float32_softmax(positions, dtype, wrapped):
    head, linear = make(dtype=dtype, wrapped=wrapped)
    hidden, targets = draw(positions, dtype)
    # The product itself is rounded to the dtype of the weights, so that logits tie.
    logits = linear(hidden).detach().double()
    check(measure(head, hidden, targets, STATISTICS), expected(logits, targets))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 3, 16])
@pytest.mark.parametrize("vocabulary", [1, 2, 9, 10, 11, 501])
def test_blocks_need_not_divide_the_vocabulary(dtype, rows, vocabulary, monkeypatch):
    monkeypatch.setattr(module, "ROWS_PER_BLOCK", rows)
    monkeypatch.setattr(module, "LOGITS_PER_BLOCK", 10 * rows)
    head, linear = make(dtype=dtype, vocabulary=vocabulary)
    hidden, targets = draw(16, dtype, vocabulary=vocabulary)
    logits = linear(hidden).detach().double()
    check(measure(head, hidden, targets, STATISTICS), expected(logits, targets))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_of_real_size_give_the_same(dtype, monkeypatch):
    monkeypatch.undo()
    torch.manual_seed(3)
    linear = nn.Linear(64, 5003, bias=False, dtype=dtype)
    hidden = (20 * torch.randn(700, 64)).to(dtype)
    targets = torch.randint(0, 5003, (700,))
    logits = linear(hidden).detach().double()
    # Some certain ones too.
    targets[::3] = logits.argmax(1)[::3]
    found = measure(Head(nn.Identity(), linear, 1.0, None), hidden, targets, STATISTICS)
    wanted = expected(logits, targets)
    close = {"rtol": 1e-5, "atol": 3e-5}
    check(found, wanted, set(ALL) - {"rank", "is_greedy"}, **close)
    # Another product of the same numbers may round the last bit of a logit differently.
    of_target = logits.gather(1, targets[:, None])
    off = 1e-4 if dtype == torch.float32 else 0.0
    assert (found.rank <= (logits > of_target - off).sum(1)).all()
    assert (found.rank >= (logits > of_target + off).sum(1)).all()


# Ties, certain tokens, gaps beyond the range of exp(), and ordinary logits.
extreme = st.sampled_from([0.0, -0.0, 1.0, 1.0000001, 30.0, -30.0, 88.0, 700.0, 1e4, -1e4, -1e30])
values = st.one_of(extreme, st.floats(-50, 50, width=32))


@given(
    st.integers(1, 14).flatmap(
        lambda v: st.lists(
            st.tuples(st.lists(values, min_size=v, max_size=v), st.integers(0, v - 1)),
            min_size=1,
            max_size=6,
        )
    ),
    st.integers(1, 15),
    st.booleans(),
)
def test_extreme_logits_give_the_statistics_of_float64(rows, columns, wrapped):
    logits = torch.tensor([row for row, _ in rows])
    targets = torch.tensor([target for _, target in rows])
    head, hidden = given_logits(logits, wrapped)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LOGITS_PER_BLOCK", columns * min(4, len(rows)))
        found = measure(head, hidden, targets, STATISTICS)
    assert all(getattr(found, name).isfinite().all() for name in ALL)
    # Distances of 1e4 have a float32 spacing of 1e-3, and its square root is in none of them.
    check(found, expected(logits.double(), targets), rtol=3e-6, atol=3e-5)
    assert (found.log_probs <= 0).all()
    assert (found.entropy >= 0).all()
    assert (found.best_other_log_prob >= LEAST_LOG_PROB).all()


def test_tied_tokens_are_not_more_likely():
    logits = torch.tensor([[2.0, 2.0, 2.0, 1.0, 2.0] * 5, [2.0, 2.0, 2.0, 1.0, 2.0] * 5])
    head, hidden = given_logits(logits)
    found = measure(head, hidden, torch.tensor([7, 8]), STATISTICS)
    assert found.rank.tolist() == [0, 20]
    assert found.is_greedy.tolist() == [True, False]
    check(found, expected(logits.double(), torch.tensor([7, 8])))


def test_a_certain_prediction_has_no_spread():
    logits = torch.zeros(2, VOCABULARY)
    logits[:, 20] = 1e5
    head, hidden = given_logits(logits)
    found = measure(head, hidden, torch.tensor([20, 30]), STATISTICS)
    assert found.log_probs.tolist() == [0.0, -1e5]
    assert found.surprise_std.tolist() == found.entropy.tolist() == [0.0, 0.0]
    assert found.sum_squares.tolist() == [1.0, 1.0]
    assert found.best_other_log_prob.tolist() == [LEAST_LOG_PROB, 0.0]
    assert found.rank.tolist() == [0, 1]


def test_the_doubt_about_a_nearly_certain_token_is_kept():
    # 1 - p = 36 exp(-20) is lost where p is rounded to float32.
    logits = torch.zeros(1, VOCABULARY)
    logits[:, 20] = 20.0
    head, hidden = given_logits(logits)
    found = measure(head, hidden, torch.tensor([20]), STATISTICS)
    wanted = expected(logits.double(), torch.tensor([20]))
    names = ("log_probs", "entropy", "surprise_std", "best_other_log_prob")
    check(found, wanted, names, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("wrapped", [True, False])
def test_tokens_that_cannot_occur_change_nothing(wrapped):
    head, linear = make(bias=True, wrapped=wrapped)
    hidden, targets = draw(11)
    impossible = torch.arange(0, VOCABULARY, 2)
    # One whole block of 10 columns, and every other token of the rest.
    linear.bias.data[impossible] = -torch.inf
    linear.bias.data[10:20] = -torch.inf
    targets = targets % 2 * 20 + 1 + 2 * (targets % 4)
    wanted = expected(logits_of(head, linear, hidden), targets)
    check(measure(head, hidden, targets, STATISTICS), wanted)


def test_all_tokens_but_the_target_impossible():
    head, hidden = given_logits(torch.zeros(1, VOCABULARY))
    head.linear.bias = nn.Parameter(torch.full((VOCABULARY,), -torch.inf))
    head.linear.bias.data[5] = 0.0
    found = measure(head, hidden, torch.tensor([5]), STATISTICS)
    assert {name: getattr(found, name).item() for name in ALL} == {
        "log_probs": 0.0,
        "is_greedy": True,
        "entropy": 0.0,
        "surprise_std": 0.0,
        "best_other_log_prob": LEAST_LOG_PROB,
        "rank": 0,
        "sum_squares": 1.0,
    }


@pytest.mark.parametrize("error", [torch.inf, -torch.inf])
@every_head
def test_the_rank_is_exact_where_products_round_differently(error, options, monkeypatch):
    """As if each target's logit came out one unit in the last place off in a narrower product."""
    head, linear = make(**options)
    hidden, targets = draw(40)
    right = module._target_logits

    def wrong(*arguments):
        logits = right(*arguments)
        return torch.nextafter(logits, torch.full_like(logits, error))

    # Each token has a twin, which ties.
    linear.weight.data[1::2] = linear.weight.data[:-1:2]
    if linear.bias is not None:
        linear.bias.data[1::2] = linear.bias.data[:-1:2]
    wanted = expected(head.linear(hidden).detach().double(), targets)
    monkeypatch.setattr(module, "_target_logits", wrong)
    found = measure(head, hidden, targets, ("rank",))
    assert found.rank.tolist() == wanted["rank"].tolist()


@every_head
def test_the_kernel_of_accelerators_measures_the_same(options):
    if options.get("wrapped"):
        pytest.skip("only plain heads go through the kernel")
    head, _ = make(**options)
    hidden, targets = draw(11)
    with torch.no_grad():
        # On a CPU the same blocks are put together without Triton.
        found = _measure_by_kernel(head, hidden, targets, with_entropy=True)
        assert _measure_by_kernel(head, hidden, targets, with_entropy=False).entropy is None
    own = measure(head, hidden, targets, ["entropy"])
    torch.testing.assert_close(found.log_probs, own.log_probs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.entropy, own.entropy, rtol=1e-5, atol=1e-5)
    assert found.is_greedy.tolist() == own.is_greedy.tolist()


def test_damaged_weights_show():
    head, linear = make()
    hidden, targets = draw(11)
    linear.weight.data[3] = torch.nan
    found = measure(head, hidden, targets, STATISTICS)
    assert found.log_probs.isnan().all()
    assert found.entropy.isnan().all()


@pytest.mark.parametrize("wrapped", [True, False])
def test_nothing_to_measure_gives_nothing(wrapped):
    head, _ = make(wrapped=wrapped)
    none = torch.zeros(0, dtype=torch.long)
    found = measure(head, torch.zeros(0, HIDDEN), none, STATISTICS)
    assert all(getattr(found, name).shape == (0,) for name in ALL)


@pytest.mark.parametrize("asked", ["perplexity", ["entropy", "perplexity"]])
def test_an_unknown_statistic_is_refused(asked):
    head, _ = make()
    with pytest.raises(InputError, match=r"'perplexity'.*surprise_std"):
        measure(head, *draw(2), asked)
