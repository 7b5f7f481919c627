"""A table of ours: what a subsystem tells of it, and what the kernel shows held against what made it. Pure.

What the table should say is the subsystem's; nf_tables itself shows what is there piece by piece. `netlink.owntables`
reads and writes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

from bgpd.netlink import nftmessage as nft
from bgpd.netlink.nftmessage import Attributes, Kind, Message, attributes, covers, text

Shown: TypeAlias = Mapping[str, Sequence[Attributes]]
"""What the kernel shows, by the name of the set or chain that it belongs to."""


class Parts(NamedTuple):
    """All that is shown of a table: elements by set, chains by name, rules by chain."""

    sets: Shown
    chains: Mapping[str, Attributes]
    rules: Shown


class Content(Protocol):
    """What a table says, as a dataclass. `damage`: what is wrong with one that was found; a wanted one has none."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def damage(self) -> str: ...


C = TypeVar("C", bound=Content)


@dataclass(frozen=True, slots=True)
class TableKind(Generic[C]):
    """A table of ours, and how its content becomes messages and is found again.

    `empty` is the content of a table that is only just there, before it says what is wanted. `pins`: where the
    programs that its rules ask are pinned; empty when they ask none.
    """

    name: str
    family: int
    found_in: Callable[[Parts], C]
    empty: Callable[[C], C]
    update: Callable[[C, C], Iterable[Message]]
    pins: Callable[[C], str]


def differences(sets: Collection[str], messages: Iterable[Message], shown: Parts) -> str:
    """How `shown` differs from a table of these sets that `messages` would have made; empty: not at all.

    `messages` are chains and rules; they are not asked for while the sets differ.
    """
    if set(sets) != shown.sets.keys():
        return f"its sets are {', '.join(sorted(shown.sets)) or 'gone'}"
    chains: dict[str, bytes] = {}
    rules: dict[str, list[bytes]] = {}
    for message in messages:
        if message.kind is Kind.NEWRULE:
            rules[text(attributes(message.body), 2)].append(message.body)
        else:
            name = text(attributes(message.body), 3)
            chains[name], rules[name] = message.body, []
    if chains.keys() != shown.chains.keys():
        return f"its chains are {', '.join(sorted(shown.chains)) or 'gone'}"
    for name, body in chains.items():
        if not covers(shown.chains[name], body):
            return f"chain {name} is another"
    for name, ours in rules.items():
        theirs = shown.rules.get(name, ())
        if len(ours) != len(theirs):
            return f"chain {name} has {len(theirs)} rules, not {len(ours)}"
        for number, (have, want) in enumerate(zip(theirs, ours, strict=True), 1):
            if not covers(have, want):
                return f"rule {number} of chain {name} is another"
    return ""


def programs_asked(rules: Iterable[Attributes], comment: str) -> Iterator[tuple[str, int]]:
    """Path and number of the programs that the rules ask; `comment` is the rules', with {} for the number."""
    for rule in rules:
        number = re.fullmatch(comment.format(r"(\d+)"), nft.comment_of(rule))
        for expression in nft.expressions_of(rule):
            path = nft.program_asked(expression)
            if path is not None:
                yield path, int(number[1]) if number else 0
