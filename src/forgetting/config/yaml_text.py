"""YAML without what a few lines can blow up to.

Input: text. Output: the value it stands for. Anchors make it possible to write in ten lines a list
of a billion entries, or one that holds itself; both are refused before they are built.
"""

from __future__ import annotations

from typing import Any

import yaml

from forgetting.config.unique_keys import UniqueKeyLoader

MAX_NODES = 100_000
"""Values that a text may stand for, anchors counted wherever they are used."""
# A date that does not exist and bytes that are not UTF-8 are ValueErrors.
NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)
"""What `parse_yaml` raises."""


def parse_yaml(text: str) -> Any:
    """The value of a YAML text, with plain types only.

    Raises:
        yaml.YAMLError: it is not YAML, has a key twice, or stands for too many values.
        ValueError: a value is impossible, such as a date that does not exist.
        RecursionError: it is nested too deeply.
    """
    loader = UniqueKeyLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        if _size(root, {}) > MAX_NODES:
            raise yaml.YAMLError(
                f"it stands for more than {MAX_NODES:,} values, what anchors repeat included"
            )
        return loader.construct_document(root)
    finally:
        loader.dispose()


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """The number of values in a node. One that holds itself has more than any other."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        # Until it is known: what is met inside of it is itself.
        known[id(node)] = MAX_NODES + 1
        is_mapping = isinstance(node, yaml.MappingNode)
        parts = [part for pair in node.value for part in pair] if is_mapping else node.value
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]
