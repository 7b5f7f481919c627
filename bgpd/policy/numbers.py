"""Gives numbers to whatever the kernel knows by number only: sets, classes, portsets, rules. Pure.

A number is drawn from what it stands for, so that a daemon that starts again comes to the same ones and finds in the
kernel what it would have written. Of two things that draw the same number, once in four thousand million, the second
draws again.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable
from hashlib import blake2b
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Numbers(Generic[T]):
    """One to one between contents and numbers from 1 to 2**32 - 1, for as long as the content is not dropped.

    `repr` of a content must be the same in every process and differ where contents do.
    """

    def __init__(self) -> None:
        self._numbers: dict[T, int] = {}
        self._contents: dict[int, T] = {}

    def __contains__(self, content: T) -> bool:
        return content in self._numbers

    def __getitem__(self, number: int) -> T:
        return self._contents[number]

    def of(self, content: T) -> int:
        number = self._numbers.get(content)
        if number is None:
            number = _draw(repr(content))
            while number in self._contents or number == 0:
                number = _draw(f"{number} {content!r}")
            self._numbers[content] = number
            self._contents[number] = content
        return number

    def drop(self, number: int) -> None:
        del self._numbers[self._contents.pop(number)]

    def keep(self, numbers: Collection[int]) -> None:
        """Drops all but these."""
        for number in self._contents.keys() - numbers:
            self.drop(number)

    def items(self) -> Iterable[tuple[int, T]]:
        """Each number and what it stands for."""
        return self._contents.items()


def _draw(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=4).digest(), "big")
