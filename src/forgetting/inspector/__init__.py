"""The token inspector: every response token of D_train coloured by its quality.

Goes in: a run in which tokens were scored and selected, and the tokenizer's `decode`. Comes out:
one page in two uses (a file of its own with some samples; served, with all of them) and a view
for terminals. `corpus` reads the run and answers questions about it; the others only show.
"""

from forgetting.inspector.corpus import Inspection, open_inspection
from forgetting.inspector.page import static_page
from forgetting.inspector.server import InspectorServer
from forgetting.inspector.terminal import show_in_terminal

__all__ = [
    "Inspection",
    "InspectorServer",
    "open_inspection",
    "show_in_terminal",
    "static_page",
]
