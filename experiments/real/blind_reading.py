"""Compares rankings of an audit by reading records without knowing which ranking chose them.

    forgetting audit alpaca_data.json --limit 500 --output AUDIT
    python experiments/real/blind_reading.py draw AUDIT READING
    python experiments/real/blind_reading.py unblind READING

`draw` takes the records that look worst by the detector (expected number of bad tokens), by the
base loss and by IFD (loss with the prompt over loss without), and as many at random. It writes
each record once, in random order, to READING/records.json, and the origins to
READING/origins.json, which the reader leaves closed. The reader writes READING/verdicts.json, such
as {"0": "fine", "1": "broken"}, by these criteria:

- broken: the response is wrong, unreadable, unrelated to the prompt, cut off or a placeholder, or
  the prompt refers to input that is not there;
- doubtful: the response is partly wrong, misses a part of what was asked, or cannot be checked;
- fine: everything else. Style alone makes no response worse.

`unblind` counts the verdicts by origin, with 95 % Clopper-Pearson intervals of the share of broken
records. Influence is not compared: it needs a trained reference model.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from scipy.stats import binomtest

from forgetting.auditing import open_audit
from forgetting.auditing.judged import JudgedRecord, judged_records
from forgetting.rundir.scores import ScoredCorpus

VERDICTS = ("broken", "doubtful", "fine")
COLUMNS = ("base_log_probs", "base_empty_log_probs")


def suspicions(judged: JudgedRecord, loss: float, empty_loss: float) -> dict[str, float]:
    """How suspicious a record is by each ranking; more is worse."""
    return {
        "detector": judged.num_bad_tokens,
        "base loss": loss,
        "IFD": loss / empty_loss,
    }


def draw(audit_dir: Path, reading_dir: Path, size: int, seed: int) -> None:
    """Write the records to read, and the rankings that chose them."""
    audit = open_audit(audit_dir)
    corpus = ScoredCorpus(audit.run, audit.fingerprint)
    losses: list[tuple[float, float]] = []
    for shard in corpus.scores(COLUMNS):
        begin = 0
        for length in shard.lengths.tolist():
            tokens = slice(begin, begin + length)
            own, empty = (float(-shard.columns[name][tokens].mean()) for name in COLUMNS)
            losses.append((own, empty))
            begin += length
    judged = list(judged_records(audit, suspected=True))
    scores = [suspicions(j, *pair) for j, pair in zip(judged, losses, strict=True)]
    rng = random.Random(seed)
    chosen = {
        name: sorted(range(len(judged)), key=lambda i: -scores[i][name])[:size]
        for name in scores[0]
    }
    chosen["random"] = rng.sample(range(len(judged)), size)
    union = sorted({index for indices in chosen.values() for index in indices})
    rng.shuffle(union)
    place = {index: number for number, index in enumerate(union)}
    records = [
        {
            "id": number,
            "messages": [{"role": m.role, "content": m.content} for m in messages],
        }
        for number, messages in enumerate(judged[index].record.messages for index in union)
    ]
    origins = {
        name: [{"id": place[i], "row": judged[i].record.record} | scores[i] for i in indices]
        for name, indices in chosen.items()
    }
    reading_dir.mkdir(parents=True, exist_ok=True)
    for name, content in (("records", records), ("origins", origins)):
        text = json.dumps(content, indent=1, ensure_ascii=False)
        (reading_dir / f"{name}.json").write_text(text)
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
    drawing.add_argument("--size", type=int, default=25, help="records of each ranking")
    drawing.add_argument("--seed", type=int, default=0)
    unblinding = commands.add_parser("unblind")
    unblinding.add_argument("reading_dir", type=Path)
    args = parser.parse_args()
    if args.command == "draw":
        draw(args.audit_dir, args.reading_dir, args.size, args.seed)
    else:
        unblind(args.reading_dir)


if __name__ == "__main__":
    main()
