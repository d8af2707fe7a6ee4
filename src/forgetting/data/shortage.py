"""Whether the sources of a recipe can hold as many samples as it asks for.

In: a recipe. Out: an error if they cannot. Parses records and tokenizes nothing, so that a dry run
can ask; it does not see duplicates, or records that are too long for the model.
"""

from __future__ import annotations

from forgetting.config import Recipe, SourceSettings
from forgetting.data.files import Unreadable
from forgetting.data.records import Record, parse_records, recognise
from forgetting.data.sources import is_local, read_source
from forgetting.errors import TooFewSamples

MOST_READ = 100_000
"""Records that are read of all sources together. Reading them takes a few seconds."""


def check_number_of_records(recipe: Recipe) -> None:
    """Refuse a recipe that asks for more samples than its sources have usable records.

    Sources on the Hub, and more than `MOST_READ` records, are not checked.

    Raises:
        TooFewSamples: the message has both numbers.
        InputError: a source cannot be read.
    """
    data = recipe.data
    num_reference = 0 if recipe.reference.sources else recipe.num_reference
    asked = num_reference + data.num_train + data.num_heldout
    if asked > MOST_READ or not all(map(_is_at_hand, data.sources)):
        return
    usable = num_read = 0
    for source in data.sources:
        form = None
        for origin, raw in read_source(source, recipe.seed, data.max_record_bytes):
            num_read += 1
            if isinstance(raw, Unreadable):
                continue
            form = form or recognise(raw, source, source.path or source.label)
            parsed = parse_records(raw, form, source, origin)
            usable += sum(isinstance(record, Record) for record in parsed)
            if usable >= asked or num_read >= MOST_READ:
                return
    raise TooFewSamples(
        f"the recipe asks for {asked} samples (num_reference {num_reference} + num_train "
        f"{data.num_train} + num_heldout {data.num_heldout}), but its sources have only {usable} "
        "usable records. Ask for fewer, or add sources",
        usable,
    )


def _is_at_hand(source: SourceSettings) -> bool:
    return source.world is not None or is_local(source)
