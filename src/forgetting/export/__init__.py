"""What a run gives away: its corpus with the selection, without its worst samples, its models.

`export` says what there is and puts it together; `tokens` and `records` make the rows of a corpus,
`folder` makes an output that is there whole or not at all, `hub` puts it on the hub.
"""

from forgetting.export.export import Export, Format, What, export_run
from forgetting.export.records import By

__all__ = ["By", "Export", "Format", "What", "export_run"]
