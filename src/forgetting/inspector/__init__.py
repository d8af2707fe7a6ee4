"""The token inspector: every response token of D_train, colored by its quality.

Input: a run with scores and a selection, and the tokenizer's `decode`. Output: a page, either
as a file with some samples or served with all of them, and a view for terminals. `corpus` reads the
run and answers questions about it; the other modules only show the answers.
"""

from forgetting.inspector.corpus import Inspection, open_inspection
from forgetting.inspector.rendering import static_page
from forgetting.inspector.server import InspectorServer
from forgetting.inspector.terminal import show_in_terminal

__all__ = [
    "Inspection",
    "InspectorServer",
    "open_inspection",
    "show_in_terminal",
    "static_page",
]
