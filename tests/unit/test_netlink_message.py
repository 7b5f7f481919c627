"""Netlink's dumps: one that changes overtake is asked for again, and not for ever."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bgpd.netlink.message import LOOKS, of_one_moment


def overtaken(times: int) -> tuple[Callable[[], str], Callable[[], int]]:
    """A dump that so many changes overtake, and how often it was asked for."""
    asked = 0

    def dump() -> str:
        nonlocal asked
        asked += 1
        if asked <= times:
            raise InterruptedError
        return "all of it"

    return dump, lambda: asked


@pytest.mark.parametrize("times", [0, 1, LOOKS - 1])
def test_a_dump_is_asked_for_until_it_is_of_one_moment(times: int) -> None:
    dump, asked = overtaken(times)
    assert (of_one_moment(dump), asked()) == ("all of it", times + 1)


def test_a_list_that_never_stands_still_is_given_up() -> None:
    """As an OSError with words, which callers tell and try again later."""
    dump, asked = overtaken(LOOKS)
    with pytest.raises(OSError, match=f"changed during each of {LOOKS} looks"):
        of_one_moment(dump)
    assert asked() == LOOKS
