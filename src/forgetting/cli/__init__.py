"""The command line: reads arguments, calls the library, prints the results. No logic of its own.

Exit codes: 0 success, 1 failure, 2 wrong input, 130 interrupted.
"""

from forgetting.cli.program import app, entry, main

__all__ = ["app", "entry", "main"]
