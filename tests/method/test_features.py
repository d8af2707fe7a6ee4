"""Features against plain loops in float64; independence of shards."""

from __future__ import annotations

import math

import numpy as np
import pytest

from forgetting.method.features import Neighborhood, PassStatistics, compute_features

LENGTHS = [1, 0, 5, 23, 2, 40]


def statistics(seed: int, vocabulary: int = 11) -> tuple[PassStatistics, np.ndarray, np.ndarray]:
    """Statistics of random predictions; also the log-probabilities and the targets."""
    rng = np.random.default_rng(seed)
    count = sum(LENGTHS)
    logits = rng.normal(size=(count, vocabulary)) * 3
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    target = rng.integers(vocabulary, size=count)
    rows = []
    for row, index in zip(log_p, target, strict=True):
        p = np.exp(row)
        mean = -(p * row).sum()
        std = math.sqrt((p * (-row - mean) ** 2).sum())
        other = max(v for i, v in enumerate(row) if i != index)
        rows.append((row[index], mean, std, other, (row > row[index]).sum(), (p**2).sum()))
    return PassStatistics(*np.array(rows).T), log_p, target


def column(matrix: np.ndarray, names: tuple[str, ...], name: str) -> np.ndarray:
    return matrix[:, names.index(name)]


def samples() -> list[range]:
    ends = np.cumsum(LENGTHS)
    return [range(end - size, end) for size, end in zip(LENGTHS, ends, strict=True)]


def test_features_of_the_token_itself() -> None:
    base, log_p, target = statistics(0)
    empty, other_log_p, _ = statistics(1)
    matrix, names = compute_features({"base": base, "base_empty": empty}, LENGTHS)
    for token in range(sum(LENGTHS)):
        row, index = log_p[token], target[token]
        p = np.exp(row)
        entropy = -(p * row).sum()
        std = math.sqrt((p * row**2).sum() - entropy**2)
        one_hot = np.eye(len(p))[index]
        expected = {
            "base loss": -row[index],
            "base z": (-row[index] - entropy) / std,
            "base margin": max(np.delete(row, index)) - row[index],
            "base rank": math.log(1 + (row > row[index]).sum()),
            "base peak": row.max(),
            "base error": np.linalg.norm(p - one_hot),
        }
        for name, value in expected.items():
            assert column(matrix, names, name)[token] == pytest.approx(value, abs=1e-5), name
    gain = base.log_probs - empty.log_probs
    np.testing.assert_allclose(column(matrix, names, "prompt gain"), gain, atol=1e-5)
    assert other_log_p.shape == log_p.shape


def test_features_of_neighbors_against_loops() -> None:
    base, _, _ = statistics(2)
    empty, _, _ = statistics(3)
    matrix, names = compute_features({"base": base, "base_empty": empty}, LENGTHS)
    loss = -base.log_probs
    for sample in samples():
        ratio = float(np.mean(loss[sample]) / np.mean(-empty.log_probs[sample])) if sample else 0.0
        for token in sample:
            inside = set(sample)

            def mean(low: int, high: int, token: int = token, inside: set = inside) -> float:
                values = [loss[i] for i in range(token + low, token + high + 1) if i in inside]
                return float(np.mean(values)) if values else float(loss[token])

            def spans(width: int, token: int = token, sample: range = sample) -> list[float]:
                width = min(width, len(sample))
                return [
                    float(np.mean(loss[start : start + width]))
                    for start in range(token - width + 1, token + 1)
                    if start >= sample.start and start + width <= sample.stop
                ]

            near = [loss[i] for i in range(token - 2, token + 3) if i in inside]
            expected = {
                "base loss, mean of 3": mean(-1, 1),
                "base loss, mean of 15": mean(-7, 7),
                "base loss, mean of 4 before": mean(-4, -1),
                "base loss, mean of 12 after": mean(1, 12),
                "base loss, mean of sample": float(np.mean(loss[sample])),
                "base loss, deviation of sample": float(np.std(loss[sample])),
                "base loss, 2 before": loss[token - 2] if token - 2 in inside else 0.0,
                "base loss, 1 after": loss[token + 1] if token + 1 in inside else 0.0,
                "base loss, lowest of 8": min(spans(8)),
                "base loss, highest of 16": max(spans(16)),
                "base loss, smallest of 5": min(near),
                "base loss, largest of 5": max(near),
                "base loss, mean of all before": mean(-100, -1),
                "base loss, mean of all after": mean(0, 100),
                "loss ratio of sample": ratio,
                "tokens before": token - sample.start,
                "tokens after": sample.stop - 1 - token,
                "length": len(sample),
            }
            for name, value in expected.items():
                found = column(matrix, names, name)[token]
                assert found == pytest.approx(value, abs=1e-4), (name, token)


def test_the_loss_ratio_stays_small_where_no_prompt_is_needed() -> None:
    base, empty = (
        PassStatistics(np.array(log_probs), *[np.zeros(3)] * 5)
        for log_probs in ([-0.1, -0.2, 0.0], [0.0, -0.01, 0.0])
    )
    matrix, names = compute_features({"base": base, "base_empty": empty}, [2, 1])
    ratios = column(matrix, names, "loss ratio of sample")
    np.testing.assert_allclose(ratios, [0.15 / 0.05, 0.15 / 0.05, 0], rtol=1e-6)


def test_features_of_sentences_against_loops() -> None:
    base, _, _ = statistics(4)
    empty, _, _ = statistics(5)
    ends = np.random.default_rng(6).random(sum(LENGTHS)) < 0.2
    matrix, names = compute_features({"base": base, "base_empty": empty}, LENGTHS, ends)
    loss = -base.log_probs
    for sample in samples():
        sentences: list[list[int]] = [[]]
        for token in sample:
            sentences[-1].append(token)
            if ends[token]:
                sentences.append([])
        sentences = [sentence for sentence in sentences if sentence]
        means = [float(np.mean(loss[sentence])) for sentence in sentences]
        for place, sentence in enumerate(sentences):
            for token in sentence:
                expected = {
                    "base loss, mean of sentence": means[place],
                    "base loss, sentence before": means[place - 1] if place else 0.0,
                    "base loss, sentence after": (
                        means[place + 1] if place + 1 < len(sentences) else 0.0
                    ),
                    "base loss, sentence less sample": means[place] - np.mean(loss[sample]),
                    "base loss, start of sentence": loss[sentence[0]],
                    "base loss, sentence so far": np.mean(loss[sentence[0] : token + 1]),
                    "sentence length": len(sentence),
                    "sentence place": token - sentence[0],
                    "sentence, tokens after": sentence[-1] - token,
                }
                for name, value in expected.items():
                    found = column(matrix, names, name)[token]
                    assert found == pytest.approx(value, abs=1e-4), (name, token)


def test_a_shard_gives_the_rows_of_the_whole() -> None:
    passes = {
        name: statistics(seed)[0]
        for seed, name in enumerate(("base", "base_empty", "reference", "reference_empty"))
    }
    ends = np.random.default_rng(0).random(sum(LENGTHS)) < 0.2
    whole, names = compute_features(passes, LENGTHS, ends)
    cut = sum(LENGTHS[:3])
    parts = []
    for part, sizes in ((slice(0, cut), LENGTHS[:3]), (slice(cut, None), LENGTHS[3:])):
        of_part = {name: values.take(part) for name, values in passes.items()}
        matrix, part_names = compute_features(of_part, sizes, ends[part])
        assert part_names == names
        parts.append(matrix)
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-5, atol=1e-5)
    assert whole.dtype == np.float32
    assert np.isfinite(whole).all()
    assert "influence gain" in names
    assert "reference prompt gain" in names


def test_infinite_statistics_become_finite_features() -> None:
    values = np.array([-np.inf, -1.0])
    broken = PassStatistics(values, np.zeros(2), np.zeros(2), values, np.zeros(2), np.zeros(2))
    matrix, _ = compute_features({"base": broken, "base_empty": broken}, [2])
    assert np.isfinite(matrix).all()


def test_nothing_has_no_rows() -> None:
    nothing = PassStatistics(*[np.zeros(0)] * 6)
    for ends in (None, np.zeros(0, bool)):
        matrix, names = compute_features({"base": nothing, "base_empty": nothing}, [0, 0], ends)
        assert matrix.shape == (0, len(names))


def test_wrong_input_is_refused() -> None:
    base, _, _ = statistics(0)
    with pytest.raises(ValueError, match="base_empty"):
        compute_features({"base": base}, LENGTHS)
    with pytest.raises(ValueError, match="other"):
        compute_features({"base": base, "base_empty": base, "other": base}, LENGTHS)
    with pytest.raises(ValueError, match="71 tokens"):
        compute_features({"base": base, "base_empty": base}, [3])
    with pytest.raises(ValueError, match="shapes"):
        PassStatistics(*[np.zeros(2)] * 5, np.zeros(3))


def test_a_window_that_holds_nothing_gives_the_token_itself() -> None:
    near = Neighborhood([1, 2])
    values = np.array([5.0, 1.0, 3.0])
    np.testing.assert_allclose(near.mean(values, 3, -1), [5.0, 1.0, 1.0])
