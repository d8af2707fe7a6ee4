"""Reads the sources of a recipe into a spool: usable records, once each.

In: the data settings of a recipe. Out: records in a `Spool`, and the counts of those that were
rejected, repeated or left out. Knows nothing about tokens or splits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from forgetting.config import DataSettings, SourceSettings
from forgetting.data.account import Account, too_many_rejected
from forgetting.data.dedup import Duplicates
from forgetting.data.files import Unreadable
from forgetting.data.records import Record, Rejected, parse_records, recognise
from forgetting.data.sources import read_source
from forgetting.data.spool import Spool
from forgetting.data.usage import TrackedFields, tracked
from forgetting.errors import InputError
from forgetting.formats import FORMATS

NUM_SHOWN = 5
"""Unusable records that a message names."""
Negatives = Literal["use", "refuse", "drop"]
"""What becomes of records to forget."""
LEFT_OUT = "the response is one to forget, and D_ref holds only responses to learn"
"""Reason for records that are left out on purpose."""


def read_records(
    settings: DataSettings,
    seed: int,
    spool: Spool,
    account: Account,
    negatives: Negatives = "use",
) -> None:
    """Append every usable record to the spool, once.

    Args:
        negatives: what becomes of records to forget.

    Raises:
        InputError: as `build_corpus`.
    """
    duplicates = Duplicates(settings.duplicates, settings.near_threshold)
    for index, source in enumerate(settings.sources):
        form = None
        first_rejected: list[Rejected] = []
        num_read = num_rejected = 0
        for origin, raw in read_source(source, seed, settings.max_record_bytes):
            # What cannot be read has no format, and is counted as any other rejected record.
            if form is None and not isinstance(raw, Unreadable):
                form = recognise(raw, source, source.path or source.label)
                _check_negatives(source, form)
            fields = tracked(raw, source.fields) if isinstance(raw, Mapping) else raw
            records = parse_records(fields, form or "", source, origin)
            for record in records:
                num_read += 1
                account.of(record.source).read += 1
                if isinstance(record, Rejected):
                    account.reject(record)
                    num_rejected += 1
                    if len(first_rejected) < NUM_SHOWN:
                        first_rejected.append(record)
                    continue
                if record.is_negative and negatives == "refuse":
                    raise InputError(
                        f"{origin}: the response is one to forget, and no variant of the recipe "
                        "forgets. Add a variant with `objective: forgetting`, or remove the record"
                    )
                account.note_marks(record)
                if record.is_negative and negatives == "drop":
                    # Left out on purpose, which is no fault of the data.
                    account.reject(Rejected(record.source, origin, LEFT_OUT))
                    continue
                _append(record, index, duplicates, spool, account)
            # The demo's world says more about its records than any format reads.
            used = next((record for record in records if isinstance(record, Record)), None)
            if used is not None and isinstance(fields, TrackedFields) and source.world is None:
                account.note_unread(used.source, fields)
        if num_rejected > settings.max_rejected_share * num_read:
            raise too_many_rejected(source.label, first_rejected, num_rejected, num_read, settings)


def _check_negatives(source: SourceSettings, form: str) -> None:
    if source.negatives is not None and FORMATS[form].read_rejected is None:
        raise InputError(
            f"source {source.label}: `negatives: {source.negatives}` needs records with `chosen` "
            f"and `rejected`, and these are in the format {form}. Remove `negatives`"
        )


def _append(
    record: Record, source_index: int, duplicates: Duplicates, spool: Spool, account: Account
) -> None:
    """Append a record to the spool, or count it as a duplicate."""
    count = account.of(record.source)
    repeat = duplicates.repeats(record, len(spool))
    if repeat is None:
        spool.append(record, source_index)
    elif repeat[0] == "near":
        count.near_duplicates += 1
    else:
        count.duplicates += 1
        spool.copies[repeat[1]] += 1
