"""`prepare` refuses what the model cannot read."""

from __future__ import annotations

import pytest

from forgetting.config import load_recipe
from forgetting.errors import InputError
from forgetting.stages.prepare import check_length


def test_max_length_beyond_the_positions_is_refused(write_recipe):
    recipe = load_recipe(write_recipe(), ["data.max_length=257"])
    with pytest.raises(InputError, match=r"max_length 257 is more than the 256 positions"):
        check_length(recipe)
