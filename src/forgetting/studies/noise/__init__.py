"""The noise benchmark: does token selection find noise, and does it help to forget it?

`design` says which corpora are made and what is trained on them, `cell` does all that belongs to
one of them, `run` does many at once and writes the results, `table` and `figure` show them.
"""

from forgetting.studies.noise.design import Benchmark, load_benchmark
from forgetting.studies.noise.run import list_commands, run_benchmark, run_some_cells

__all__ = [
    "Benchmark",
    "list_commands",
    "load_benchmark",
    "run_benchmark",
    "run_some_cells",
]
