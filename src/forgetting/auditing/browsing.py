"""Opens an audit for looking at it, and writes its page.

Input: an `Audit`. Output: an `Inspection`, or the page as a file. If nothing was found, both show
what would look worst; see `suspicion`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from forgetting.auditing.audit import Audit, open_audit
from forgetting.auditing.suspicion import ASSUMED_SHARE, is_suspicion, suspected_parts
from forgetting.inspecting import open_run
from forgetting.inspector import Inspection, static_page
from forgetting.rundir import layout
from forgetting.rundir.findings import PosteriorPart
from forgetting.rundir.storage import write_atomically

SUSPECTED = (
    "What the page shows are suspicions: the likeliest tokens, if "
    f"{ASSUMED_SHARE:.0%} of the tokens were bad. Most may be fine."
)


def is_audit(folder: Path) -> bool:
    """Whether a folder is that of an audit, finished or not."""
    return layout.recipe_file(Audit(folder).run).is_file()


def browse_audit(audit: Audit, quality: str | None = None) -> Inspection:
    """Open an audit.

    Args:
        quality: measure that is shown. Default: the detector.

    Raises:
        InputError: a part of the audit is missing or damaged.
    """
    if not is_suspicion(audit):
        return open_run(audit.run, None, quality)
    written = _written_parts(audit)
    parts = list(suspected_parts(audit)) if written is None else [written]
    inspection = open_run(audit.run, None, quality, suspected=parts)
    if inspection.judgment is not None:
        verdict = f"{inspection.judgment.verdict} {SUSPECTED}"
        inspection.judgment = replace(inspection.judgment, verdict=verdict)
    return inspection


def _written_parts(audit: Audit) -> PosteriorPart | None:
    """What `scores.parquet` holds, which took a pass over the corpus; None if it is not there."""
    if not audit.scores.is_file():
        return None
    names = ["sample_id", "num_tokens", "posterior", "token_kind"]
    table = pq.read_table(audit.scores, columns=names)
    kinds = [kind.kind for kind in audit.findings.kinds]
    of_name = {"": -1, **{name: place for place, name in enumerate(kinds)}}
    encoded = pc.list_flatten(table["token_kind"]).combine_chunks().dictionary_encode()
    places = np.array([of_name[str(name)] for name in encoded.dictionary.to_pylist()], np.int8)
    return PosteriorPart(
        table["sample_id"].to_numpy(),
        table["num_tokens"].to_numpy(),
        pc.list_flatten(table["posterior"]).to_numpy(),
        places[encoded.indices.to_numpy()],
    )


def browse_folder(folder: Path, quality: str | None = None) -> Inspection:
    """Open the audit in a folder.

    Raises:
        InputError: there is none, it is not finished, or it is damaged.
    """
    return browse_audit(open_audit(folder), quality)


def write_page(audit: Audit) -> None:
    """Write the page with the most suspicious records.

    Raises:
        InputError: a part of the audit is missing or damaged.
    """
    write_atomically(audit.page, static_page(browse_audit(audit), audit.recipe.report.seed))
