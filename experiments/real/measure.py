"""Measures the planted-noise detector on real records with injected noise.

    python experiments/real/measure.py DATA_DIR --world test --alpaca 1000 --dolly 500

Prints AUROC, average precision, precision and recall at a posterior of 0.5, by kind of injected
noise, next to the base loss; how planted noise is found, with one kind left out too; the share
with its interval; the same for the records without injected noise; and AUROC on the spans of
HaluEval that people marked. Statistics are cached, so a second run reads no text.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import noise
import numpy as np
import scoring
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from forgetting.data.planting import default_num_copies, plant
from forgetting.method.detector import Detector, Findings, fit_detector
from forgetting.method.evidence import CorpusSample, Probe
from forgetting.method.features import PassStatistics, compute_features
from forgetting.stages.corpus_detection import SAMPLES_LOOKED_AT

Item = tuple[str, str, str, Sequence[noise.Span]]
"""Prompt, response, kind of noise, spans."""


@dataclass(frozen=True)
class Table:
    """Tokens of some responses."""

    features: NDArray[np.float32]
    names: tuple[str, ...]
    kinds: NDArray[np.str_]
    lengths: NDArray[np.int64]

    @property
    def bad(self) -> NDArray[np.bool_]:
        return self.kinds != "clean"


def load(items: Sequence[Item], cache_path: Path, tokenizer: Any) -> Table:
    """Score what is not scored yet and compute features."""
    pairs = [(prompt, response) for prompt, response, _, _ in items]
    empty = [("", response) for _, response in pairs]
    scoring.score([*pairs, *empty], cache_path)
    cache = scoring.Cache(cache_path)
    passes = {
        name: PassStatistics(*np.concatenate([cache.get(pair) for pair in chosen], axis=1))
        for name, chosen in (("base", pairs), ("base_empty", empty))
    }
    kinds, ends, lengths = [], [], []
    for _, response, kind, spans in items:
        offsets = scoring.response_ids(tokenizer, response)[1]
        lengths.append(len(offsets))
        for start, end in offsets:
            is_bad = any(start < stop and end > begin for begin, stop in spans)
            kinds.append(kind if is_bad else "clean")
            text = response[start:end]
            ends.append("\n" in text or text.rstrip(" \"')*").endswith((".", "!", "?", ":", ";")))
    features, names = compute_features(passes, lengths, np.array(ends, dtype=bool))
    return Table(features, names, np.array(kinds), np.array(lengths))


def sample_corpus(corpus: Table) -> CorpusSample:
    """The first samples of the corpus, as many as the product looks at."""
    lengths = corpus.lengths[:SAMPLES_LOOKED_AT]
    return CorpusSample(corpus.features[: lengths.sum()], lengths, np.arange(len(lengths)))


def measure(records: Sequence[noise.Noisy], args: argparse.Namespace, tokenizer: Any) -> Any:
    """Plant noise into copies of records, fit, and judge the records."""
    turns = [[("user", r.prompt), ("assistant", r.response)] for r in records]
    copies = plant(
        turns, np.random.default_rng(args.seed), args.copies or default_num_copies(len(turns))
    )
    probe = load(
        [(copy.turns[0][1], copy.turns[-1][1], copy.kind, copy.spans) for copy in copies],
        args.cache,
        tokenizer,
    )
    indices = np.array([copy.index for copy in copies])
    corpus = load([(r.prompt, r.response, r.kind, r.spans) for r in records], args.cache, tokenizer)
    detector = fit_detector(
        Probe(probe.features, probe.names, probe.kinds, probe.lengths, indices),
        args.seed,
        corpus=sample_corpus(corpus),
    )
    evidence = detector.weigh(corpus.features, corpus.lengths, np.arange(len(records)))
    return detector, corpus, evidence, detector.judge(evidence, corpus.lengths, args.seed)


def line(name: str, table: Table, score: NDArray) -> str:
    """AUROC and average precision of a score, and AUROC by kind against clean tokens."""
    bad = table.bad
    text = f"{name}: AUROC {roc_auc_score(bad, score):.3f}"
    text += f", AP {average_precision_score(bad, score):.3f}"
    for kind in sorted(set(table.kinds[bad].tolist())):
        both = (table.kinds == kind) | ~bad
        text += f"; {kind} ({(table.kinds == kind).sum()}) "
        text += f"{roc_auc_score(bad[both], score[both]):.3f}"
    return text


def describe(detector: Detector, findings: Findings, table: Table) -> None:
    report = detector.report
    if report is None or findings.shares is None:
        print(findings.reason)
        return
    print(f"planted: AUROC {report.auroc:.3f}, AP {report.average_precision:.3f}", end="; ")
    print(f"calibration error {report.calibration_error:.3f}")
    for kind, found in report.kinds.items():
        print(f"  {kind}: {found}")
    marked = findings.posterior >= 0.5
    bad = table.bad
    print(findings.reason, f"True share {bad.mean():.4f}, interval {findings.shares.interval}")
    if bad.any():
        precision = bad[marked].mean() if marked.any() else float("nan")
        print(f"at 0.5: precision {precision:.3f}, recall {marked[bad].mean():.3f}")
    print(f"clean tokens marked: {marked[~bad].mean():.4f}")


def halueval(data_dir: Path, count: int) -> list[Item]:
    """Replies with spans that people marked as hallucinated."""
    rows = json.loads((data_dir / "noise/halueval_general_spans.json").read_text())
    rows = [r for r in rows if r["char_spans"] and 100 < len(r["response"]) < 600]
    rows = [r for r in rows if len(r["prompt"]) < 400]
    random.Random(0).shuffle(rows)
    return [(r["prompt"], r["response"], "marked", r["char_spans"]) for r in rows[:count]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--world", choices=["dev", "test", "final"], default="test")
    parser.add_argument("--alpaca", type=int, default=1000)
    parser.add_argument("--dolly", type=int, default=500)
    parser.add_argument("--share", type=float, default=0.25, help="share of noisy records")
    parser.add_argument("--copies", type=int, help="default: that of the product")
    parser.add_argument("--halueval", type=int, default=110)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=Path("scores.sqlite"))
    args = parser.parse_args()
    tokenizer = scoring.load_tokenizer()
    for share in (args.share, 0.0):
        records = noise.make_world(
            args.data_dir, args.world, args.alpaca, args.dolly, share, args.seed
        )
        detector, corpus, evidence, findings = measure(records, args, tokenizer)
        print(f"--- {len(records)} records, {share:.0%} of them noisy")
        describe(detector, findings, corpus)
        if share:
            print(line("detector", corpus, evidence.log_odds))
            print(line("base loss", corpus, corpus.features[:, 0]))
            marked = load(halueval(args.data_dir, args.halueval), args.cache, tokenizer)
            unseen = np.arange(len(marked.lengths)) + len(records)
            score = detector.weigh(marked.features, marked.lengths, unseen).log_odds
            print(line("HaluEval, detector", marked, score))
            print(line("HaluEval, base loss", marked, marked.features[:, 0]))


if __name__ == "__main__":
    main()
