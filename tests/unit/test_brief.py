"""What is cut of a long list of messages, and that what is cut is counted."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bgpd.model.brief import CHARACTERS, LINES, brief


@given(st.integers(0, 5 * LINES))
def test_every_item_is_shown_or_counted(count: int) -> None:
    """The first ones in their order; the last line counts the others, and there are always several of them."""
    lines = brief(range(count))
    shown = [line for line in lines if not line.startswith("and ")]
    assert shown == list(map(str, range(len(shown))))
    rest = count - len(shown)
    assert lines[len(shown) :] == ([f"and {rest} more"] if rest else [])
    assert rest != 1
    assert len(lines) <= LINES + 1


def test_big_numbers_can_be_read() -> None:
    """40,000 pod CIDRs come to eleven lines."""
    assert brief(range(40_000))[-1] == "and 39,990 more"


def test_only_what_is_shown_is_put_into_words() -> None:
    """Thousands of refused routes cost no thousands of texts."""
    asked: list[int] = []

    def say(item: int) -> str:
        asked.append(item)
        return "a line"

    brief(range(40_000), say)
    assert asked == list(range(LINES))


def test_a_line_has_an_end() -> None:
    """A value of a megabyte in a manifest is quoted in part."""
    (line,) = brief(["x" * 1_000_000])
    assert len(line) < CHARACTERS + 40
    assert line.endswith("... (1,000,000 characters)")
