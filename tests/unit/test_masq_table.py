"""The masquerade table: what an update touches, and what is wrong with a table that was found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from bgpd.masq.table import Table, found_in, side, update
from bgpd.netlink.nftmessage import Attributes, Kind, Message, attribute, attributes, text
from bgpd.netlink.nfttable import Parts

WANTED = Table(
    "/sys/fs/bpf/bgpd/masquerade",
    7,
    side([ip_network("10.244.1.0/24")], [ip_network("10.244.0.0/16")], None),
    side([ip_network("fd44:1::/64")], [ip_network("fd44::/48")], ip_address("fd99::1")),
)
NOTHING = replace(WANTED, ipv4=None, ipv6=None)
ONE_FAMILY = replace(WANTED, ipv6=None)
OTHER_PROGRAM = replace(WANTED, program_id=8)
MORE_PODS = replace(WANTED, ipv4=side([ip_network("10.244.1.0/24")], [ip_network("10.240.0.0/12")], None))


class Kernel:
    """Takes messages as nf_tables does, and shows what it has."""

    def __init__(self, messages: Iterable[Message] = ()) -> None:
        self.sets: dict[str, set[bytes]] = {}
        self.chains: dict[str, Attributes] = {}
        self.rules: dict[str, list[Attributes]] = {}
        for message in messages:
            self.take(message)

    def take(self, message: Message) -> None:
        body = attributes(message.body)
        match message.kind:
            case Kind.NEWSET:
                self.sets[text(body, 2)] = set()
            case Kind.DELSET:
                del self.sets[text(body, 2)]
            case Kind.NEWSETELEM:
                self.sets[text(body, 2)] |= set(attributes(body[3][0])[1])
            case Kind.DELSETELEM:
                self.sets[text(body, 2)] -= set(attributes(body[3][0])[1])
            case Kind.NEWCHAIN:
                self.chains.setdefault(text(body, 3), body)
            case Kind.DELCHAIN:
                assert not self.rules.get(text(body, 3))
                del self.chains[text(body, 3)]
            case Kind.NEWRULE:
                self.rules.setdefault(text(body, 2), []).append(body)
            case Kind.DELRULE:
                self.rules.clear()
            case _:
                raise AssertionError(message)

    def found(self) -> Table:
        parts = {name: attribute(3, b"".join(attribute(1, each) for each in it)) for name, it in self.sets.items()}
        return found_in(Parts({name: [attributes(part)] for name, part in parts.items()}, self.chains, self.rules))


TABLES = [NOTHING, ONE_FAMILY, WANTED, OTHER_PROGRAM, MORE_PODS]


@pytest.mark.parametrize("have", TABLES)
@pytest.mark.parametrize("want", TABLES[1:])
def test_every_table_becomes_every_other_and_then_nothing_is_left_to_do(have: Table, want: Table) -> None:
    kernel = Kernel(update(NOTHING, have))
    for message in update(have, want):
        kernel.take(message)
    assert kernel.found() == want
    assert list(update(want, want)) == []


def test_other_prefixes_leave_the_rules_alone_and_another_program_the_sets() -> None:
    """What is exchanged may be found empty by a packet that comes just then."""
    assert {each.kind for each in update(WANTED, MORE_PODS)} == {Kind.DELSETELEM, Kind.NEWSETELEM}
    kinds = {each.kind for each in update(WANTED, OTHER_PROGRAM)}
    assert kinds == {Kind.DELRULE, Kind.NEWCHAIN, Kind.NEWRULE}


def test_multicast_keeps_its_source_in_either_family() -> None:
    assert ip_network("224.0.0.0/4") in side([ip_network("10.0.0.0/8")], [], None).kept
    assert ip_network("ff00::/8") in side([ip_network("fd00::/8")], [], None).kept


def test_damage_is_named() -> None:
    def damaged(edit: object) -> str:
        kernel = Kernel(update(NOTHING, WANTED))
        edit(kernel)  # type: ignore[operator]
        return kernel.found().damage

    assert damaged(lambda kernel: None) == ""
    assert damaged(lambda kernel: kernel.rules["keep4"].pop()) == "chain keep4 has 1 rules, not 2"
    assert damaged(lambda kernel: kernel.rules["decide6"].reverse()) == "rule 1 of chain decide6 is another"
    assert "postrouting" not in damaged(lambda kernel: kernel.chains.pop("postrouting"))
    assert damaged(lambda kernel: kernel.chains["postrouting"].pop(7)) == "chain postrouting is another"
    assert "pods4" not in damaged(lambda kernel: kernel.sets.pop("pods4"))
    assert damaged(lambda kernel: kernel.rules.clear()).startswith("chain ")
