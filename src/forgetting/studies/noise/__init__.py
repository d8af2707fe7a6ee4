"""The noise benchmark: does token selection find noise, and does it help to forget it?

`design` says which corpora are made and what is trained on them, `cell` does all that belongs to
one of them, `run` does many at once and writes the results, `table` and `figure` show them;
`spans` measures the same detection on a file in which people have marked what is wrong.
"""

from forgetting.studies.noise.design import Benchmark, load_benchmark
from forgetting.studies.noise.run import list_commands, run_benchmark, run_some_cells
from forgetting.studies.spans import SpanResults, measure_spans

__all__ = [
    "Benchmark",
    "SpanResults",
    "list_commands",
    "load_benchmark",
    "measure_spans",
    "run_benchmark",
    "run_some_cells",
]
