"""How the two references read a document, as facts: their own test tables, said again, and what their code adds.

`SYNC` and `VALIDATE` state what kubernetes-sigs/ip-masq-agent's tests state (of the sync table those about what is
read and those about which rules come of it), `UPDATES` and `RESTORES` what Cilium's do. `DIFFERENCES` is every input
on which the two part. What both do and we do not (see `masq.parse`) is in `test_masq_parse`.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from bgpd.masq.parse import parse
from bgpd.model.fault import FaultsError
from bgpd.model.masq import Compat, MasqDocument, Rules

FILE = "ip-masq-agent"
PRIVATE = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"]
RESERVED = [
    *PRIVATE,
    "100.64.0.0/10",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "240.0.0.0/4",
]
LINK_LOCAL, LINK_LOCAL_V6 = "169.254.0.0/16", "fe80::/10"
AGENT = Rules(Compat.AGENT, ipv6=True)
AGENT_V4 = Rules(Compat.AGENT, ipv6=False)
AGENT_RESERVED = Rules(Compat.AGENT, ipv6=True, all_reserved=True)
CILIUM = Rules(Compat.CILIUM, ipv6=True)


def read(text: str | None, rules: Rules) -> MasqDocument:
    return parse(None if text is None else text.encode(), FILE, rules)


def kept(found: MasqDocument) -> list[str]:
    """The list as it is programmed, of both families."""
    return [*dict.fromkeys(str(entry) for entry in found.entries), *map(str, found.link_local)]


def faults(text: str, rules: Rules) -> list[str]:
    with pytest.raises(FaultsError) as caught:
        read(text, rules)
    return [str(fault) for fault in caught.value.faults]


@dataclass(frozen=True)
class Read:
    """What a document holds: the list, whether link-local is masqueraded, the interval in seconds."""

    cidrs: list[str]
    masq_link_local: bool = False
    masq_link_local_v6: bool = False
    resync_s: float = 60


SYNC: dict[str, tuple[str | None, Rules, Read | None]] = {
    "YAML with every key": (
        "nonMasqueradeCIDRs:\n  - 172.16.0.0/12\n  - 10.0.0.0/8\n"
        "cidrLimit: 64\nmasqLinkLocal: true\nresyncInterval: 5s\n",
        AGENT,
        Read(["172.16.0.0/12", "10.0.0.0/8"], masq_link_local=True, resync_s=5),
    ),
    "YAML with the list alone": ("nonMasqueradeCIDRs:\n  - 192.168.0.0/16\n", AGENT, Read(["192.168.0.0/16"])),
    "YAML with masqLinkLocal alone": ("masqLinkLocal: true\n", AGENT, Read(PRIVATE, masq_link_local=True)),
    "YAML with resyncInterval alone": ("resyncInterval: 5m\n", AGENT, Read(PRIVATE, resync_s=300)),
    "what is no YAML": ("*", AGENT, None),
    "JSON with every key": (
        '{"nonMasqueradeCIDRs": ["172.16.0.0/12", "10.0.0.0/8"], "masqLinkLocal": true, "resyncInterval": "5s"}',
        AGENT,
        Read(["172.16.0.0/12", "10.0.0.0/8"], masq_link_local=True, resync_s=5),
    ),
    "JSON with the list alone": ('{\n\t"nonMasqueradeCIDRs": ["192.168.0.0/16"]\n}', AGENT, Read(["192.168.0.0/16"])),
    "JSON with masqLinkLocal alone": ('{\n\t"masqLinkLocal": true\n}', AGENT, Read(PRIVATE, masq_link_local=True)),
    "JSON with resyncInterval alone": ('{\n\t"resyncInterval": "5m"\n}', AGENT, Read(PRIVATE, resync_s=300)),
    "what is no JSON": ("{*", AGENT, None),
    "no file": (None, AGENT, Read(PRIVATE)),
    "no file, all reserved ranges": (None, AGENT_RESERVED, Read(RESERVED)),
    "an IPv6 CIDR where IPv6 is on": (
        '{"nonMasqueradeCIDRs": ["172.16.0.0/12", "10.0.0.0/8", "fc00::/7"], "masqLinkLocal": true}',
        AGENT,
        Read(["172.16.0.0/12", "10.0.0.0/8", "fc00::/7"], masq_link_local=True),
    ),
    "masqLinkLocalIPv6": ("masqLinkLocalIPv6: true", AGENT, Read(PRIVATE, masq_link_local_v6=True)),
}


@pytest.mark.parametrize(("text", "rules", "wanted"), SYNC.values(), ids=SYNC.keys())
def test_the_agent_reads(text: str | None, rules: Rules, wanted: Read | None) -> None:
    """A key that is not given has its default, whatever else is given; what cannot be read is refused."""
    if wanted is None:
        assert text is not None
        assert faults(text, rules)
        return
    found = read(text, rules)
    assert wanted == Read(
        [str(entry) for entry in found.entries],
        found.masq_link_local,
        found.masq_link_local_v6,
        found.resync_interval_s,
    )


VALIDATE = {
    "an empty list": ("nonMasqueradeCIDRs: []", []),
    "the default list": (f"nonMasqueradeCIDRs: [{', '.join(PRIVATE)}]", []),
    "no CIDR at all": ("nonMasqueradeCIDRs: [abcdefg]", ["[0]: 'abcdefg' has no length"]),
    "one of two is no CIDR": ("nonMasqueradeCIDRs: [10.0.0.0/8, abcdefg]", ["[1]: 'abcdefg' has no length"]),
    "an octet too big": ("nonMasqueradeCIDRs: [10.256.0.0/16]", ["[0]: '10.256.0.0/16' is not a CIDR"]),
    "host bits": (
        "nonMasqueradeCIDRs: [10.0.0.1/8]",
        ["[0]: '10.0.0.1/8' has host bits set; did you mean 10.0.0.0/8?"],
    ),
}


@pytest.mark.parametrize(("text", "wanted"), VALIDATE.values(), ids=VALIDATE.keys())
def test_the_agent_refuses(text: str, wanted: list[str]) -> None:
    """And says which entry, and what would be right."""
    if not wanted:
        assert read(text, AGENT).findings == ()
        return
    (fault,) = faults(text, AGENT)
    assert wanted[0] in fault


UPDATES: dict[str, tuple[str | None, list[str]]] = {
    "host bits are dropped": (
        "nonMasqueradeCIDRs:\n- 1.1.1.1/32\n- 2.2.2.2/16",
        ["1.1.1.1/32", "2.2.0.0/16", LINK_LOCAL, LINK_LOCAL_V6],
    ),
    "another list replaces the first": (
        "nonMasqueradeCIDRs:\n- 8.8.0.0/16\n- 2.2.2.2/16",
        ["8.8.0.0/16", "2.2.0.0/16", LINK_LOCAL, LINK_LOCAL_V6],
    ),
    "a list without entries leaves link-local": ("nonMasqueradeCIDRs:\n", [LINK_LOCAL, LINK_LOCAL_V6]),
    "JSON, with link-local masqueraded": (
        '{"nonMasqueradeCIDRs": ["8.8.0.0/16", "1.1.2.3/16"], "masqLinkLocal": true}',
        ["8.8.0.0/16", "1.1.0.0/16", LINK_LOCAL_V6],
    ),
    "IPv6": (
        "nonMasqueradeCIDRs:\n- 1:1:1:1::/64\n- 2:2::/32",
        ["1:1:1:1::/64", "2:2::/32", LINK_LOCAL, LINK_LOCAL_V6],
    ),
    "IPv6 in JSON, with its link-local masqueraded": (
        '{"nonMasqueradeCIDRs": ["8:8:8:8::/64", "1:2:3:4::/64"], "masqLinkLocalIPv6": true}',
        ["8:8:8:8::/64", "1:2:3:4::/64", LINK_LOCAL],
    ),
    "both families": (
        "nonMasqueradeCIDRs:\n- 1.1.1.1/32\n- 2:2::/32",
        ["1.1.1.1/32", "2:2::/32", LINK_LOCAL, LINK_LOCAL_V6],
    ),
    "the file is removed": (None, [*RESERVED, LINK_LOCAL, LINK_LOCAL_V6]),
}
RESTORES: dict[str, tuple[str | None, list[str]]] = {
    "one entry of an earlier life stays": (
        "nonMasqueradeCIDRs:\n- 4.4.0.0/16",
        ["4.4.0.0/16", LINK_LOCAL, LINK_LOCAL_V6],
    ),
    "maps that are gone are made from the file": (
        "nonMasqueradeCIDRs:\n- 3.3.0.0/16\n- 3:3:3:3::/96\nmasqLinkLocal: true\nmasqLinkLocalIPv6: true",
        ["3.3.0.0/16", "3:3:3:3::/96"],
    ),
}


@pytest.mark.parametrize(("text", "wanted"), (UPDATES | RESTORES).values(), ids=(UPDATES | RESTORES).keys())
def test_cilium_has_in_its_map(text: str | None, wanted: list[str]) -> None:
    """Whatever the map held before: a document is a whole state."""
    assert kept(read(text, CILIUM)) == wanted


# the input, what the agent keeps besides link-local (None: it refuses), what Cilium keeps
DIFFERENCES: dict[str, tuple[str | None, Rules, list[str] | None, list[str] | None]] = {
    "the file is missing": (None, AGENT, PRIVATE, RESERVED),
    "it has no bytes": ("", AGENT, PRIVATE, RESERVED),
    "it has comments only": ("# none yet\n", AGENT, PRIVATE, []),
    "the list is left out": ("masqLinkLocal: false", AGENT, PRIVATE, []),
    "the list is left out, all reserved ranges": ("masqLinkLocal: false", AGENT_RESERVED, RESERVED, []),
    "an entry has host bits": ("nonMasqueradeCIDRs: [2.2.2.2/16]", AGENT, None, ["2.2.0.0/16"]),
    "more than 64 entries": (
        f"nonMasqueradeCIDRs: [{', '.join(f'10.0.{i}.0/24' for i in range(65))}]",
        AGENT,
        None,
        [f"10.0.{i}.0/24" for i in range(65)],
    ),
    "more than cidrLimit": ("cidrLimit: 1\nnonMasqueradeCIDRs: [10.0.0.0/8, 11.0.0.0/8]", AGENT, None,
                            ["10.0.0.0/8", "11.0.0.0/8"]),
    "cidrLimit below the default list": ("cidrLimit: 2", AGENT, None, []),
    "cidrLimit is a text": ("cidrLimit: '2'\nnonMasqueradeCIDRs: []", AGENT, None, []),
    "IPv6 where nobody asked for it": ("nonMasqueradeCIDRs: ['fc00::/7']", AGENT_V4, None, ["fc00::/7"]),
    "resyncInterval is a number": ("resyncInterval: 60\nnonMasqueradeCIDRs: []", AGENT, None, []),
    "resyncInterval is null": ("resyncInterval:\nnonMasqueradeCIDRs: []", AGENT, None, []),
}  # fmt: skip
AGREEMENTS: dict[str, tuple[str, list[str] | None]] = {
    "the list is empty": ("nonMasqueradeCIDRs: []", []),
    "the list is null": ("nonMasqueradeCIDRs:", []),
    "cidrLimit is null": ("cidrLimit:\nnonMasqueradeCIDRs: [10.0.0.0/8]", ["10.0.0.0/8"]),
    "masqLinkLocal is null": ("masqLinkLocal:\nnonMasqueradeCIDRs: []", []),
    "masqLinkLocal is a word of YAML 1.1": ("masqLinkLocal: no\nnonMasqueradeCIDRs: []", []),
    "a key in another case": ("nonmasqueradecidrs: [10.0.0.0/8]", ["10.0.0.0/8"]),
    "a key that nobody knows": ("snatTarget: 1\nnonMasqueradeCIDRs: [10.0.0.0/8]", ["10.0.0.0/8"]),
    "an entry without a length": ("nonMasqueradeCIDRs: [10.0.0.1]", None),
    "an entry that is a number": ("nonMasqueradeCIDRs: [10]", None),
    "masqLinkLocal is a text": ("masqLinkLocal: 'true'", None),
    "the list is a mapping": ("nonMasqueradeCIDRs: {a: b}", None),
    "the list is one text": ("nonMasqueradeCIDRs: 10.0.0.0/8", None),
    "the document is a list": ("- 10.0.0.0/8", None),
    "the document is a text": ("10.0.0.0/8", None),
}


def outcome(text: str | None, rules: Rules) -> list[str] | None:
    try:
        return [str(entry) for entry in read(text, rules).entries]
    except FaultsError:
        return None


@pytest.mark.parametrize(("text", "rules", "agent", "cilium"), DIFFERENCES.values(), ids=DIFFERENCES.keys())
def test_the_two_part(text: str | None, rules: Rules, agent: list[str] | None, cilium: list[str] | None) -> None:
    """`compat` reproduces either."""
    assert outcome(text, rules) == agent
    assert outcome(text, CILIUM) == cilium


@pytest.mark.parametrize(("text", "wanted"), AGREEMENTS.values(), ids=AGREEMENTS.keys())
def test_the_two_agree(text: str, wanted: list[str] | None) -> None:
    """Whatever `compat` says."""
    assert outcome(text, AGENT) == wanted
    assert outcome(text, CILIUM) == wanted
