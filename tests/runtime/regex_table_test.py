"""Tables of regular expressions: the first match counts, the whole name must match, every name needs a pattern."""

import pytest

from crossearth_jax.config import UserError
from crossearth_jax.runtime import regex_table


def test_first_full_match_wins():
    table = ((r"backbone/.*", "frozen"), (r".*/bias", "bias"), (r".*", "rest"))
    names = ["backbone/blocks/bias", "head/bias", "head/bias_like"]
    assert regex_table.resolve(table, names, "test") == {
        "backbone/blocks/bias": "frozen",
        "head/bias": "bias",
        "head/bias_like": "rest",
    }


def test_left_over_name_is_refused_by_name():
    with pytest.raises(UserError, match=r"freezing table has no pattern for parameter 'neck/kernel'"):
        regex_table.resolve(((r"backbone/.*", True),), ["backbone/a", "neck/kernel"], "freezing")
