"""Garbage for the document parser: whatever comes in, a document or faults come out.

A few thousand documents here, from a seed that the test prints; `BGPD_FUZZ_DOCUMENTS=1000000` makes it a million, and
`BGPD_FUZZ_SEED` repeats a run.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable

from bgpd.masq.parse import parse
from bgpd.model.fault import FaultsError
from bgpd.model.masq import Compat, MasqDocument, Rules

DOCUMENTS = int(os.environ.get("BGPD_FUZZ_DOCUMENTS", "4000"))
SEED = int(os.environ.get("BGPD_FUZZ_SEED", "3"))
RULES = [Rules(compat, ipv6, reserved) for compat in Compat for ipv6 in (False, True) for reserved in (False, True)]

GOOD = [
    b"nonMasqueradeCIDRs:\n- 172.16.0.0/12\n- 10.0.0.0/8\ncidrLimit: 64\nmasqLinkLocal: true\nresyncInterval: 5s\n",
    b'{"nonMasqueradeCIDRs": ["172.16.0.0/12", "fd00::/8"], "masqLinkLocalIPv6": true, "resyncInterval": "1m30s"}',
    b"# F5\nnonMasqueradeCIDRs: [11.8.37.4/32, &a 2.2.2.2/16, *a]\n<<: {masqLinkLocal: no}\n",
]
TOKENS = [
    b"nonMasqueradeCIDRs", b"masqLinkLocal", b"masqLinkLocalIPv6", b"resyncInterval", b"cidrLimit",
    b"NONMASQUERADECIDRS", b": ", b":\n", b"\n- ", b"\n  ", b"- ", b"[", b"]", b"{", b"}", b",", b"&a ", b"*a",
    b"<<: ", b"---\n", b"...\n", b"!!int ", b"!!binary ", b"!x ", b"|\n ", b">-\n ", b"'", b'"', b"\\", b"#", b"?",
    b"%YAML 1.1\n", b"\t", b"\0", b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", "\u00b5s".encode(), "\u2028".encode(),
    "\U0001f600".encode(), b"10.0.0.0/8", b"fd00::/8", b"::ffff:10.0.0.0/104", b"1.2.3.4/33", b"fe80::1%eth0/64",
    b"0.0.0.0/0", b"::/0", b"010.0.0.0/8", b"10.0.0.0/08", b"10/8", b"/", b"1e999", b"-1", b"0x10", b"0o7", b"1_0",
    b".nan", b".inf", b"9" * 200, b"null", b"~", b"yes", b"true", b"1h1m1s", b"-0s", b"2024-01-01", b"1:30",
]  # fmt: skip


def noise(rand: random.Random) -> bytes:
    return rand.randbytes(rand.randrange(60))


def soup(rand: random.Random) -> bytes:
    return b"".join(rand.choices(TOKENS, k=rand.randrange(30)))


def damaged(rand: random.Random) -> bytes:
    """Cut, stitched, and with bits turned."""
    data = bytearray(rand.choice(GOOD))
    for _ in range(rand.randrange(1, 6)):
        at = rand.randrange(len(data) + 1)
        match rand.randrange(4):
            case 0:
                del data[at : at + rand.randrange(20)]
            case 1:
                data[at:at] = rand.choice(TOKENS)
            case 2 if at < len(data):
                data[at] ^= 1 << rand.randrange(8)
            case _:
                other = rand.choice(GOOD)
                data[at:] = other[rand.randrange(len(other)) :]
    return bytes(data)


def listed(rand: random.Random) -> bytes:
    """A well-formed list of anything."""
    return b"nonMasqueradeCIDRs: [" + b", ".join(rand.choices(TOKENS, k=rand.randrange(8))) + b"]"


MAKERS: list[Callable[[random.Random], bytes]] = [noise, soup, damaged, damaged, listed]


def check(data: bytes, rules: Rules) -> MasqDocument | None:
    """What must hold for any input; the document, if it is one."""
    try:
        found = parse(data, "f", rules)
    except FaultsError as error:
        assert error.faults
        assert list(error.faults) == sorted(error.faults)
        assert all(str(fault).isprintable() and len(str(fault)) < 500 for fault in error.faults)
        return None
    assert found.resync_interval_s >= 1
    assert all(str(finding).isprintable() for finding in found.findings)
    if rules.compat is Compat.AGENT:
        assert rules.ipv6 or all(entry.version == 4 for entry in found.entries)
    return found


def test_garbage_comes_out_as_a_document_or_as_faults() -> None:
    """Never as another exception; and what is a document is found again when it is written out."""
    rand = random.Random(SEED)
    documents = 0
    for number in range(DOCUMENTS):
        data, rules = rand.choice(MAKERS)(rand), rand.choice(RULES)
        try:
            found = check(data, rules)
            if found is not None and not found.is_default:
                documents += 1
                written = "\n- ".join(["nonMasqueradeCIDRs:", *(str(entry) for entry in found.entries)])
                again = check(written.encode(), Rules(Compat.CILIUM, ipv6=True))
                assert again is not None
                assert again.entries == found.entries
        except Exception as error:
            raise AssertionError(f"seed {SEED}, document {number}: {data!r} with {rules}") from error
    assert documents > DOCUMENTS / 100, "too few of them get past the YAML reader"
