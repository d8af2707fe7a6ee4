"""The token inspector: every response token of D_train, colored by its quality.

Where the detector has run, a token is colored by its probability of being bad.

Input: a run with scores and a selection or the detector's findings, and the tokenizer's `decode`.
Output: a page, either as a file with some samples or served with all of them, and a view for
terminals. `opening` reads the run and `corpus` answers questions about it; the other modules only
show the answers.
"""

from forgetting.inspector.corpus import Inspection
from forgetting.inspector.listing import Filters
from forgetting.inspector.opening import open_inspection
from forgetting.inspector.rendering import static_page
from forgetting.inspector.server import InspectorServer, usual_port
from forgetting.inspector.shown import Explain
from forgetting.inspector.terminal import as_json, show_in_terminal

__all__ = [
    "Explain",
    "Filters",
    "Inspection",
    "InspectorServer",
    "as_json",
    "open_inspection",
    "show_in_terminal",
    "static_page",
    "usual_port",
]
