"""Writes the configuration of BIRD as a daemon for BFD and nothing else, and reads what it answers. Pure.

There is no routing protocol in it and no access to the kernel's routes: BIRD looks at interfaces and speaks BFD.
While no peer wants BFD there is no `protocol bfd` either, so nothing listens.

A file can be read back into what it asks for, and carries a digest of that as the protocol's description. BIRD shows
the description of what it has loaded, so that can be compared with what is wanted.

BIRD 2 has one set of timers for single-hop sessions (per interface pattern) and one for multihop sessions, none per
neighbor. It gets the shortest intervals that any peer of that kind is to have. A peer that is to have longer ones
asks for them itself, for the slower of both ends counts (RFC 5880 section 6.8.2); `config.check` says which.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping

from bgpd.model.bfd import Session, State, Timers, Wanted, fastest
from bgpd.model.prefix import Address, parse_address

PROTOCOL = "bgpd"
LOG_BYTES = 65536  # then BIRD starts a new one and keeps the one before
_NEIGHBOR = re.compile(
    r'^  neighbor (?P<peer>\S+)(?: dev "(?P<interface>\S+)")? local (?P<local>\S+)(?P<multihop> multihop)?;'
    r"  # (?P<name>\S+) (?P<transmit>\d+) (?P<receive>\d+) (?P<multiplier>\d+)$",
    re.MULTILINE,
)
_DESCRIPTION = re.compile(r"^\s*Description:\s+([0-9a-f]{12})$", re.MULTILINE)
_SESSION = re.compile(
    r"^(?P<peer>[0-9a-fA-F.:]+)\s+\S+\s+(?P<state>AdminDown|Down|Init|Up)\s+(?P<since>\d+\.\d+)"
    r"\s+(?P<interval>[\d.]+)\s+(?P<timeout>[\d.]+)$"
)
_EVENT = re.compile(r"Session to (?P<peer>\S+) (?:(?P<expired>expired)|changed state from (?P<change>.*))$", re.M)
_STATES = {"AdminDown": State.ADMIN_DOWN, "Down": State.DOWN, "Init": State.INIT, "Up": State.UP}


def document(wanted: Mapping[str, Wanted], log: str) -> str:
    """The whole file. `log` is where BIRD notes each change of a session's state, among other things.

    All of one kind (single hop or multihop) have one multiplier, which `config.check` sees to.
    """
    head = (
        "# written by bgpd; changes are overwritten\n"
        f'log "{log}" {LOG_BYTES} "{log}.before" all;\n'
        "log stderr { warning, error, auth, fatal, bug };\n"
        "router id 0.0.0.1;  # BIRD wants one; nobody gets to see it\n"
        'timeformat protocol "%s.%6f";\n'
        "protocol device { }\n"
    )
    if not wanted:
        return head
    in_order = dict(sorted(wanted.items()))
    body = "".join(f"  {line}\n" for line in (*_timers(in_order.values()), *_neighbors(in_order)))
    digest = hashlib.sha256((head + body).encode()).hexdigest()[:12]
    return head + f'protocol bfd {PROTOCOL} {{\n  description "{digest}";\n  debug {{ events }};\n{body}}}\n'


def wanted_of(text: str) -> dict[str, Wanted]:
    """What a file that `document` wrote asks for, by peer name; of anything else, nothing."""
    return {
        found["name"]: Wanted(
            parse_address(found["peer"]),
            parse_address(found["local"]),
            found["multihop"] is not None,
            Timers(int(found["transmit"]), int(found["receive"]), int(found["multiplier"])),
            found["interface"] or "",
        )
        for found in _NEIGHBOR.finditer(text)
    }


def digest_of(text: str) -> str:
    """The digest that a file carries; empty where it asks for no session."""
    found = re.search(r'^  description "([0-9a-f]{12})";$', text, re.MULTILINE)
    return found[1] if found else ""


def loaded_digest(shown: Iterable[str]) -> str:
    """`show protocols all` as the digest of what BIRD has loaded; empty where that is no session."""
    found = _DESCRIPTION.search("\n".join(shown))
    return found[1] if found else ""


def sessions(shown: Iterable[str], ahead_s: float) -> dict[Address, Session]:
    """`show bfd sessions`, by the peer's address. `ahead_s`: of the monotonic clock the wall clock is now.

    BIRD itself counts by the monotonic one, and shows what the wall clock would have said then if it had never been
    set: a step of it moves all times at once, which means nothing.
    """
    found = (_SESSION.match(line) for line in shown)
    return {
        parse_address(it["peer"]): Session(
            _STATES[it["state"]], float(it["since"]) - ahead_s, _ms(it["interval"]), _ms(it["timeout"])
        )
        for it in found
        if it
    }


def said_down(log: str) -> set[Address]:
    """The peers whose session, when it last fell, had not expired: they said themselves that it is down.

    BIRD does not tell whether that was Down or AdminDown.
    """
    expired: set[str] = set()
    said: set[Address] = set()
    for event in _EVENT.finditer(log):
        peer = event["peer"]
        if event["expired"]:
            expired.add(peer)  # next it falls, unless it had fallen before
            continue
        if event["change"] == "Up to Down":
            (said.discard if peer in expired else said.add)(parse_address(peer))
        expired.discard(peer)
    return said


def _timers(wanted: Iterable[Wanted]) -> Iterator[str]:
    kinds: dict[bool, list[Timers]] = {}
    for entry in wanted:
        kinds.setdefault(entry.multihop, []).append(entry.timers)
    for multihop, each in sorted(kinds.items()):
        timers = fastest(each)
        place = "multihop" if multihop else 'interface "*"'
        yield (
            f"{place} {{ min tx interval {timers.transmit_ms} ms; min rx interval {timers.receive_ms} ms; "
            f"multiplier {timers.multiplier}; }};"
        )


def _neighbors(wanted: Mapping[str, Wanted]) -> Iterator[str]:
    for name, entry in wanted.items():
        kind = " multihop" if entry.multihop else ""
        timers = f"{entry.timers.transmit_ms} {entry.timers.receive_ms} {entry.timers.multiplier}"
        device = f' dev "{entry.interface}"' if entry.interface else ""
        yield f"neighbor {entry.peer_address}{device} local {entry.local_address}{kind};  # {name} {timers}"


def _ms(seconds: str) -> int:
    return round(float(seconds) * 1000)
