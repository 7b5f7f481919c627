"""What an operator reads about a document, and what is read differently from both references."""

from __future__ import annotations

import json

import pytest

from bgpd.datapath.layout import IPMASQ_ENTRIES
from bgpd.masq.parse import LIMITS, document_key, key_problem, parse
from bgpd.model.fault import FaultsError
from bgpd.model.masq import Compat, Rules
from tests.unit.test_masq_references import AGENT, AGENT_V4, CILIUM, FILE, faults, kept, read

CILIUM_V4 = Rules(Compat.CILIUM, ipv6=False)

SEED = """
nonMasqueradeCIDRs:
#LinkLocal
- 169.254.0.0/16
#F5 SNAT pool
- 11.8.37.4/32
- 11.8.37.5/32
# F5 health checks
- 11.11.248.0/21
masqLinkLocal: false
"""


def test_every_fault_is_named_at_once() -> None:
    """YAML, keys, values and entries of one document, by line."""
    listed = "nonMasqueradeCIDRs:\n- 10.0.0.1/8\n- 11.0.0.0/8\n- fd00::1/8\n-\n"
    text = f"masqLinkLocal: 1\n{listed}cidrLimit: 3\ncidrLimit: 4\n"
    assert faults(text, AGENT_V4) == [
        f"{FILE}:1:1: masqLinkLocal: found 1; give true or false",
        f"{FILE}:2:1: nonMasqueradeCIDRs: there are 4 CIDRs and cidrLimit is 3; remove some, or raise cidrLimit",
        f"{FILE}:3:3: nonMasqueradeCIDRs[0]: '10.0.0.1/8' has host bits set; did you mean 10.0.0.0/8?",
        f"{FILE}:5:3: nonMasqueradeCIDRs[2]: 'fd00::1/8' has host bits set; did you mean fd00::/8?",
        f"{FILE}:6:2: nonMasqueradeCIDRs[3]: found nothing; give a CIDR like 192.0.2.0/24",
        f"{FILE}:8:1: cidrLimit: the key is given twice; it is already on line 7, column 1",
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("nonMasqueradeCIDRs: ['fd00::/8']", "nonMasqueradeCIDRs[0]: fd00::/8 is IPv6, which the agent takes with "
         "--enable-ipv6 only: set masquerade.ipv6"),
        ("resyncInterval: 5", "resyncInterval: found 5; give a duration like '60s' or '1m30s'"),
        ("cidrLimit: many", "cidrLimit: found 'many'; give a whole number"),
        ("cidrLimit: 2", "cidrLimit: there are 3 CIDRs and cidrLimit is 2; remove some, or raise cidrLimit"),
        ("- 10.0.0.0/8", "found a list; give a mapping with 'nonMasqueradeCIDRs'"),
        ("masqLinkLocal: no\nMasqLinkLocal: no", "MasqLinkLocal: it is the same key as masqLinkLocal; remove one"),
        ("a: 1\n---\nb: 1", "a second document; one file holds one list"),
        ("nonMasqueradeCIDRs: [", "not YAML: did not find expected node content (while parsing a flow node)"),
    ],
)  # fmt: skip
def test_one_fault(text: str, fault: str) -> None:
    """The key, what was found, what would be right."""
    (found,) = faults(text, AGENT_V4)
    assert found.split(": ", 1)[1] == fault


def test_a_document_between_empty_ones_is_the_document() -> None:
    """A file that begins with a comment and `---`, or ends with one."""
    assert kept(read("# by hand\n---\nnonMasqueradeCIDRs: [10.0.0.0/8]\n---\n", CILIUM))[0] == "10.0.0.0/8"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("60s", 60),
        ("1m30s", 90),
        ("1.5h", 5400),
        (".5m", 30),
        ("1.m", 60),
        ("+5s", 5),
        ("1h1m1s1ms1us1ns", 3661.001001001),
        ("2000000\u00b5s", 2),
        ("2000000\u03bcs", 2),
        ("2562047h", 9223369200),
    ],
)
def test_durations_are_those_of_go(text: str, seconds: float) -> None:
    """time.ParseDuration."""
    found = read(f"resyncInterval: '{text}'", AGENT)
    assert found.resync_interval_s == pytest.approx(seconds)
    assert found.findings == ()


@pytest.mark.parametrize(
    "text", ["", "5", "s", ".s", "5 s", "5S", "1d", "1e3s", "--1s", "5s ", "\u0665s", "2562048h", "9" * 99 + "s"]
)
def test_what_is_no_duration_in_go(text: str) -> None:
    """Refused with an example; the last two are more nanoseconds than 63 bits hold."""
    (fault,) = faults(f"resyncInterval: '{text}'", AGENT)
    assert "resyncInterval: found " in fault
    assert "give a duration like '60s'" in fault


def test_an_entry_is_quoted_briefly() -> None:
    """However long it is."""
    (fault,) = faults(f"nonMasqueradeCIDRs: [10.0.0.{'0' * 1_000_000}/8]", AGENT)
    assert len(fault) < 200


def test_a_duration_of_a_million_digits_is_none() -> None:
    """It would be beyond every exponent."""
    (fault,) = faults(f"resyncInterval: '{'9' * 1_500_000}s'", AGENT)
    assert len(fault) < 200


def test_a_list_may_be_as_long_as_the_limit() -> None:
    """The agent's 64, link-local not counted."""
    listed = ", ".join(f"10.0.{i}.0/24" for i in range(64))
    assert len(read(f"nonMasqueradeCIDRs: [{listed}]", AGENT).entries) == 64


@pytest.mark.parametrize("text", ["0", "0s", "-1m", "999ms"])
def test_an_interval_without_a_pause_is_a_second(text: str) -> None:
    """The agent takes it and never sleeps; reading maps back has its cost."""
    found = read(f"resyncInterval: '{text}'", AGENT)
    assert found.resync_interval_s == 1
    assert [str(finding) for finding in found.findings] == [
        f"{FILE}:1: resyncInterval: {text} would be reading without a pause, so 1s counts; "
        "changes are seen at once in any case"
    ]


@pytest.mark.parametrize(
    ("text", "rules", "finding"),
    [
        ("nonMasqueradeCIDRs:\n- 2.2.2.2/16", CILIUM,
         "2: 2.2.2.2/16: it has host bits and counts as 2.2.0.0/16; write 2.2.0.0/16"),
        ("nonMasqueradeCIDR: []", AGENT, "1: nonMasqueradeCIDR: nobody knows this key, so it counts for nothing; "
         "did you mean 'nonMasqueradeCIDRs'?"),
        ("snatTarget: 192.0.2.1", AGENT,
         "1: snatTarget: nobody knows this key, so it counts for nothing; remove it"),
        ("masqlinklocal: true", CILIUM, "1: masqlinklocal: it counts as masqLinkLocal; write it so"),
        ("cidrLimit: 5", CILIUM, "1: cidrLimit: Cilium knows no limit, so it counts for nothing; remove it"),
        ("resyncInterval: 5", CILIUM,
         "1: resyncInterval: found 5; give a duration like '60s' or '1m30s'; until then it is 60s"),
        ("nonMasqueradeCIDRs: ['fd00::/8', 10.0.0.0/8, 'fc00::/8']", CILIUM_V4,
         "1: fd00::/8: IPv6 is left alone, so it does not count (nor do 1 more); set masquerade.ipv6"),
    ],
)  # fmt: skip
def test_one_finding(text: str, rules: Rules, finding: str) -> None:
    """What works and is probably not meant: the entry, the cause, the remedy."""
    assert [str(found) for found in read(text, rules).findings] == [f"{FILE}:{finding}"]


@pytest.mark.parametrize("rules", [AGENT, AGENT_V4, CILIUM, CILIUM_V4])
def test_the_list_of_the_fabric_this_was_made_for(rules: Rules) -> None:
    """Comments, link-local among the entries, nothing to complain about."""
    found = read(SEED, rules)
    assert [str(entry) for entry in found.entries] == [
        "169.254.0.0/16", "11.8.37.4/32", "11.8.37.5/32", "11.11.248.0/21"
    ]  # fmt: skip
    assert (found.findings, found.is_default, found.origin) == ((), False, FILE)
    assert [found.place(index) for index in range(4)] == [f"{FILE}:{line}" for line in (4, 6, 7, 9)]


def test_a_default_list_says_so() -> None:
    """Its entries stand nowhere."""
    found = read("masqLinkLocal: true", AGENT)
    assert found.is_default
    assert found.place(0) == ""
    assert not read("nonMasqueradeCIDRs: [10.0.0.0/8]", AGENT).is_default
    assert not read("# nothing", CILIUM).is_default


def test_both_maps_full_of_long_entries_are_within_the_limits() -> None:
    """With link-local, and each entry as long as it gets."""
    room = range(IPMASQ_ENTRIES - 1)
    cidrs = [f"2001:0db8:aaaa:bbbb:cccc:dddd:{i >> 8:04x}:{i & 255:04x}/128" for i in room]
    cidrs += [f"200.200.{100 + (i >> 7)}.{100 + (i & 127)}/32" for i in room]
    found = parse(listing(cidrs), FILE, CILIUM)
    assert {version: len(kept) for version, kept in found.kept.items()} == {4: IPMASQ_ENTRIES, 6: IPMASQ_ENTRIES}


def test_more_entries_than_the_map_holds_are_a_fault() -> None:
    """Exactly full is not too full; link-local counts, repetitions do not, nor does a family that is left alone."""
    cidrs = [f"10.{i >> 8}.{i & 255}.0/24" for i in range(IPMASQ_ENTRIES)]
    longer = [*cidrs, *(f"fd00:{i:x}::/32" for i in range(IPMASQ_ENTRIES))]
    assert len(parse(listing(cidrs[1:], cidrs[1:]), FILE, CILIUM).kept[4]) == IPMASQ_ENTRIES
    text = "nonMasqueradeCIDRs: it comes to 16,385 IPv{} CIDRs and the map holds 16,384; remove some"
    for rules, versions in ((CILIUM, (4, 6)), (CILIUM_V4, (4,))):
        with pytest.raises(FaultsError) as caught:
            parse(listing(longer), FILE, rules)
        assert list(map(str, caught.value.faults)) == [f"{FILE}:1:2: {text.format(version)}" for version in versions]


def listing(*lists: list[str]) -> bytes:
    return json.dumps({"nonMasqueradeCIDRs": [cidr for each in lists for cidr in each]}).encode()


def test_a_file_beyond_the_limits_is_refused_briefly() -> None:
    """Nor do 100,000 bad entries cost 100,000 lines."""
    with pytest.raises(FaultsError) as caught:
        parse(b" " * (LIMITS.bytes + 1), FILE, AGENT)
    assert len(caught.value.faults) == 1
    with pytest.raises(FaultsError) as caught:
        parse(b"nonMasqueradeCIDRs: [" + b"a," * 90_000 + b"]", FILE, CILIUM)
    assert len(caught.value.faults) == 10_000


@pytest.mark.parametrize(
    ("names", "key"),
    [
        (["agent-config"], "agent-config"),
        (["config"], "config"),
        (["config", "ip-masq-agent", "z"], "config"),
        (["a", "ip-masq-agent"], "ip-masq-agent"),
        (["a", "b"], None),
        ([], None),
    ],
)
def test_which_key_holds_the_document(names: list[str], key: str | None) -> None:
    """`config`, which both references mount; else `ip-masq-agent`; else the only one."""
    assert document_key(names) == key


def test_a_config_map_nobody_can_choose_from_is_told_what_to_do() -> None:
    """With the keys there are."""
    assert key_problem(["b", "a"]) == "it holds 'a', 'b'; put the document under the key 'config'"
    assert key_problem([]) == "it holds nothing; put the document under the key 'config'"
