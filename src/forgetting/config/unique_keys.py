"""A YAML loader that refuses a key written twice, of which YAML would keep only the last value."""

from __future__ import annotations

from typing import Any

import yaml


class UniqueKeyLoader(yaml.SafeLoader):
    """Plain types only, and each key once in a mapping.

    Raises:
        yaml.constructor.ConstructorError: a key is there twice; the message has the line.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The dictionary of a mapping."""
        keys = set()
        for key, _ in node.value:
            # `<<` merges another mapping, and may be there more than once.
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            name = (key.tag, str(key.value))
            if name in keys:
                raise yaml.constructor.ConstructorError(
                    None, None, f"`{key.value}` is there twice. Merge the two", key.start_mark
                )
            keys.add(name)
        return super().construct_mapping(node, deep)
