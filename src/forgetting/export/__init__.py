"""Exports of a run: the corpus with its selection or without its worst samples, and the models.

`export` checks what is asked for and puts it together. `tokens` and `records` make the rows of a
corpus, `folder` writes an output folder atomically, `hub` uploads it.
"""

from forgetting.export.conversations import By
from forgetting.export.export import Export, Format, What, export_run

__all__ = ["By", "Export", "Format", "What", "export_run"]
