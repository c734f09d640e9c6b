"""Messages of errors of others as parts of one line."""

import pytest

from resnet_jax.utils.messages import first_line


@pytest.mark.parametrize(
    ("message", "expected"),
    [("one\ntwo", "one"), ("\n  one \ntwo", "one "), ("", "ValueError"), (" \n", "ValueError")],
)
def test_a_message_is_its_first_line_or_the_type(message, expected):
    assert first_line(ValueError(message)) == expected


def test_a_long_line_is_cut():
    assert first_line(ValueError("abcdef"), limit=6) == "abcdef"
    assert first_line(ValueError("abcdef"), limit=5) == "abcde …"
    assert len(first_line(ValueError("x" * 10_000))) < 500
