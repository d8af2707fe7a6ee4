"""Compares rankings of an audit by reading records without knowing which ranking chose them.

    forgetting audit alpaca_data.json --limit 1000 --output AUDIT
    forgetting score RECIPE --run-dir RUN
    python experiments/real/blind_reading.py draw AUDIT READING --run RUN
    python experiments/real/blind_reading.py unblind READING

`draw` takes the records that look worst by the detector (expected number of bad tokens), by the
base loss and by IFD (loss with the prompt over loss without), and as many at random. With `--run`,
a run that has scored the same records with a reference model, it also takes those with the lowest
mean influence (base loss minus reference loss). It writes each record once, in random order, to
READING/records.json, and the origins to READING/origins.json, which the reader leaves closed. The
reader writes READING/verdicts.json, such as {"0": "fine", "1": "broken"}, by these criteria:

- broken: the response is wrong, unreadable, unrelated to the prompt, cut off or a placeholder, or
  the prompt refers to input that is not there;
- doubtful: the response is partly wrong, misses a part of what was asked, or cannot be checked;
- fine: everything else. Style alone makes no response worse.

`unblind` counts the verdicts by origin, with 95 % Clopper-Pearson intervals of the share of broken
records.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from forgetting.auditing import Audit, open_audit
from forgetting.auditing.judged import JudgedRecord, judged_records
from forgetting.errors import InputError
from forgetting.method import token_quality
from forgetting.rundir.scores import LOG_PROBS, ScoredCorpus
from forgetting.rundir.train_records import TrainRecord, train_records

VERDICTS = ("broken", "doubtful", "fine")
COLUMNS = ("base_log_probs", "base_empty_log_probs")
Ranking = dict[int, float]
"""How suspicious records are, by their place in the audit; more is worse."""


def turns(record: TrainRecord) -> list[dict[str, str]]:
    """A record as it is read."""
    return [{"role": m.role, "content": m.content} for m in record.messages]


def mean_scores(corpus: ScoredCorpus, columns: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """The mean of each column over the response tokens of each record, shape (records,)."""
    means: dict[str, list[float]] = {name: [] for name in columns}
    for shard in corpus.scores(columns):
        ends = np.cumsum(shard.lengths)[:-1]
        for name, values in shard.columns.items():
            means[name] += [part.mean(dtype=np.float64) for part in np.split(values, ends)]
    return {name: np.array(values) for name, values in means.items()}


def influence_ranking(judged: Sequence[JudgedRecord], run: Path) -> Ranking:
    """Minus the mean influence of those records that a run with a reference model has scored."""
    corpus = ScoredCorpus(run)
    # Influence is a difference, so that its mean is the difference of the means.
    quality = token_quality(*mean_scores(corpus, LOG_PROBS).values())
    scored = [record for part in train_records(run, corpus.fingerprint) for record in part]
    places = {(record.source, record.record): i for i, record in enumerate(scored)}
    ranking = {}
    for index, record in enumerate(each.record for each in judged):
        place = places.get((record.source, record.record))
        if place is None:
            continue
        if turns(scored[place]) != turns(record):
            raise InputError(
                f"{run}: record {record.record} of {record.source} has another text than in the "
                "audit. Give a run of the same data"
            )
        ranking[index] = -float(quality[place])
    return ranking


def rank(audit: Audit, judged: Sequence[JudgedRecord], run: Path | None) -> dict[str, Ranking]:
    """The rankings that are compared, by name.

    Args:
        run: ranks by influence; None: no ranking does.
    """
    means = mean_scores(ScoredCorpus(audit.run, audit.fingerprint), COLUMNS)
    own, empty = (-mean for mean in means.values())
    found = {"detector": dict(enumerate(each.num_bad_tokens for each in judged))}
    if run is not None:
        found["influence"] = influence_ranking(judged, run)
    found["base loss"] = dict(enumerate(own.tolist()))
    found["IFD"] = dict(enumerate((own / empty).tolist()))
    return found


def draw(audit_dir: Path, reading_dir: Path, size: int, seed: int, run: Path | None = None) -> None:
    """Write the records to read, and the rankings that chose them.

    Args:
        size: records of each ranking.
        run: as in `rank`.

    Raises:
        InputError: the audit or the run is not finished, or they hold other records, or there are
            too few records.
    """
    audit = open_audit(audit_dir)
    judged = list(judged_records(audit, suspected=True))
    rankings = rank(audit, judged, run)
    for name, ranking in rankings.items():
        if missing := [i for i in range(len(judged)) if i not in ranking]:
            print(
                f"{name} does not rank {len(missing)} of the {len(judged)} records of the audit, "
                f"the first one in row {judged[missing[0]].record.record}: {run} has not scored "
                "them"
            )
        if len(ranking) < size:
            raise InputError(f"{name} ranks {len(ranking)} records, fewer than --size {size}")
    rng = random.Random(seed)
    chosen = {
        name: sorted(ranking, key=ranking.__getitem__, reverse=True)[:size]
        for name, ranking in rankings.items()
    }
    chosen["random"] = rng.sample(range(len(judged)), size)
    union = sorted({index for indices in chosen.values() for index in indices})
    rng.shuffle(union)
    place = {index: number for number, index in enumerate(union)}
    records = [
        {"id": number, "messages": turns(judged[index].record)}
        for number, index in enumerate(union)
    ]
    origins = {
        name: [
            {"id": place[i], "row": judged[i].record.record}
            | {name: ranking[i] for name, ranking in rankings.items() if i in ranking}
            for i in indices
        ]
        for name, indices in chosen.items()
    }
    reading_dir.mkdir(parents=True, exist_ok=True)
    for file, content in (("records", records), ("origins", origins)):
        text = json.dumps(content, indent=1, ensure_ascii=False)
        (reading_dir / f"{file}.json").write_text(text, encoding="utf-8")
    print(f"{len(records)} records to read, of {len(judged)}")


def row(name: str, ids: Iterable[int], verdicts: Mapping[int, str]) -> str:
    """A line of the table for the records of one ranking."""
    counts = Counter(verdicts[number] for number in ids)
    total = sum(counts.values())
    interval = binomtest(counts["broken"], total).proportion_ci(method="exact")
    cells = [name, *(str(counts[verdict]) for verdict in VERDICTS)]
    cells.append(f"{counts['broken'] / total:.2f} ({interval.low:.2f} to {interval.high:.2f})")
    return f"| {' | '.join(cells)} |"


def unblind(reading_dir: Path) -> None:
    """Print the table of verdicts by ranking."""
    origins = json.loads((reading_dir / "origins.json").read_text())
    found = json.loads((reading_dir / "verdicts.json").read_text())
    verdicts = {int(number): verdict for number, verdict in found.items()}
    unknown = set(verdicts.values()) - set(VERDICTS)
    if unknown:
        raise SystemExit(f"verdicts.json: {sorted(unknown)} is none of {VERDICTS}")
    print("| ranked by | " + " | ".join(VERDICTS) + " | share broken |")
    print("|---|---:|---:|---:|---|")
    for name, rows in origins.items():
        print(row(name, [entry["id"] for entry in rows], verdicts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True, dest="command")
    drawing = commands.add_parser("draw")
    drawing.add_argument("audit_dir", type=Path)
    drawing.add_argument("reading_dir", type=Path)
    drawing.add_argument("--run", type=Path, help="scored with a reference model, for influence")
    drawing.add_argument("--size", type=int, default=25, help="records of each ranking")
    drawing.add_argument("--seed", type=int, default=0)
    unblinding = commands.add_parser("unblind")
    unblinding.add_argument("reading_dir", type=Path)
    args = parser.parse_args()
    try:
        if args.command == "draw":
            draw(args.audit_dir, args.reading_dir, args.size, args.seed, args.run)
        else:
            unblind(args.reading_dir)
    except InputError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
