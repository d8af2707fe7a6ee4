"""What a page says of a whole corpus: its counts, thresholds and legend, and what judged it.

Input: an `Inspection`. Output: an object that JSON can hold.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from forgetting.escaping import visible
from forgetting.inspector.colors import COLOR_LEVELS
from forgetting.inspector.corpus import Inspection
from forgetting.inspector.posteriors import STEPS
from forgetting.inspector.thresholds import RHOS, UNKNOWN, Floats, decimals


def whole(inspection: Inspection) -> dict[str, Any]:
    """Facts about the whole corpus, as the page reads them."""
    known = inspection.noise != UNKNOWN
    not_positive = (inspection.polarity != 1) & known
    noisy = inspection.noise > 0
    selection, judged = inspection.selection, inspection.judgment
    return {
        "name": visible(inspection.run.name),
        "run": inspection.run.fingerprint,
        "model": visible(inspection.run.model),
        "about": _about(inspection),
        "has_selection": selection.variant is not None,
        "quality": selection.quality,
        "measures": {name: measure.formula for name, measure in inspection.measures.items()},
        "detector": None
        if judged is None
        else {
            "found": judged.found,
            "suspected": judged.suspected,
            "verdict": visible(judged.words),
            "steps": decimals(STEPS),
            "num_tokens": inspection.counts.tokens.tolist(),
            "num_samples": inspection.counts.samples.tolist(),
            "histogram": inspection.counts.histogram.tolist(),
            "kinds": [visible(kind) for kind in judged.kinds],
            "num_bad": float(judged.posterior.sum(dtype=np.float64)),
            "explains": inspection.explain is not None,
        },
        "has_records": inspection.texts is not None,
        "has_base": inspection.has_base,
        "has_reference": inspection.has_reference,
        "num_samples": len(inspection),
        "num_tokens": len(inspection.quality),
        "sources": inspection.source_names,
        "rho": selection.rho,
        "rhos": RHOS.tolist(),
        "thresholds": [
            {
                "positive": _limits(inspection, at.positive),
                "negative": _limits(inspection, at.negative),
            }
            for at in inspection.thresholds
        ],
        "by_sample": inspection.by_sample,
        "by_source": inspection.by_source,
        "ignores": selection.forget_rate is not None or bool((inspection.polarity == 0).any()),
        "end_ids": list(selection.end_token_ids),
        "own_negative": int((inspection.polarity < 0).sum()),
        "scale": [inspection.scale.low, inspection.scale.center, inspection.scale.high],
        "color_levels": COLOR_LEVELS,
        "noise": None
        if inspection.curve is None
        else {
            "num_noisy": int(noisy.sum()),
            "num_known": int(known.sum()),
            "own": [int(not_positive.sum()), int((not_positive & noisy).sum())],
            "num_not_positive": inspection.curve.num_not_positive.tolist(),
            "num_found": inspection.curve.num_found.tolist(),
        },
    }


def _about(inspection: Inspection) -> str:
    """How much there is, how it was divided, and what judged."""
    selection, size = inspection.selection, f"{len(inspection.quality):,} response tokens"
    if selection.variant is None:
        judge = f"Judged by {visible(inspection.run.model)}" if inspection.run.model else "Judged"
        return f"{judge}: {len(inspection):,} records with {size}."
    about = (
        f"{len(inspection):,} samples with {size}, as selected by the variant "
        f"{visible(selection.variant)}. Quality ({selection.quality}): "
        f"{selection.measure.formula}, where l is the loss of a token in nats."
    )
    return (
        about if inspection.judgment is None else f"{about} Detector: {inspection.judgment.verdict}"
    )


def _limits(inspection: Inspection, thresholds: Floats) -> list[float | None]:
    """Thresholds as numbers that compare on the page as they do here; None is above all."""
    # A token's quality is on the page as a decimal of its float32, a sample's mean as it is.
    values = thresholds.tolist() if inspection.by_sample else decimals(thresholds)
    return [value if math.isfinite(value) else None for value in values]
