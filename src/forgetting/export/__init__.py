"""Exports of a run: the corpus with its selection or without its worst samples, and the models.

`export` checks what is asked for and puts it together. `tokens` and `records` make the rows of a
corpus, `folder` writes an output folder atomically, `hub` uploads it.
"""

from forgetting.export.export import Export, Format, What, export_run
from forgetting.export.records import By

__all__ = ["By", "Export", "Format", "What", "export_run"]
