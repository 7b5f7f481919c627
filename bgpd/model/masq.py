"""The ip-masq-agent document: what one holds, how it is to be read, what in it deserves another look.

Values only. How bytes become one: `masq.parse`. What it comes to on a node: `masq.plan`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network

from bgpd.model.fault import Fault
from bgpd.model.lpm import LpmKey
from bgpd.model.prefix import Prefix

LINK_LOCAL_V4 = IPv4Network("169.254.0.0/16")  # RFC 3927
LINK_LOCAL_V6 = IPv6Network("fe80::/10")  # RFC 4291 section 2.4
LINK_LOCAL: tuple[Prefix, Prefix] = (LINK_LOCAL_V4, LINK_LOCAL_V6)


class Compat(StrEnum):
    """Whose reading of a document counts where the two references differ."""

    AGENT = "agent"  # kubernetes-sigs/ip-masq-agent
    CILIUM = "cilium"  # Cilium's pkg/ipmasq


@dataclass(frozen=True, slots=True)
class Rules:
    """How a document is read. `ipv6`: entries of that family count, as with the agent's `--enable-ipv6`.

    `all_reserved`: the agent's `--nomasq-all-reserved-ranges`, a longer default list. Cilium always has that one.
    """

    compat: Compat
    ipv6: bool
    all_reserved: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that works and is probably not meant. `place` is file and line, or empty."""

    entry: str
    cause: str
    remedy: str
    place: str = ""

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.place, self.entry, f"{self.cause}; {self.remedy}")))


@dataclass(frozen=True, slots=True)
class MasqDocument:
    """A document without faults. `keys` are its entries in its order and may repeat one; each stands on its `lines`.

    `origin` is the file or object it came from. `is_default`: the list is the reference's, for nobody gave one;
    its entries stand nowhere, and `lines` is empty. `findings` are about the text alone; what depends on the node
    and the cluster is found by `masq.lint`.

    No more is kept of an entry, because a list may have 16,000. What does not depend on the node is worked out when a
    document is made, which is outside the event loop: `kept`, all prefixes that keep pod addresses, by IP version.
    """

    origin: str
    keys: tuple[LpmKey, ...]
    lines: Sequence[int] = ()
    masq_link_local: bool = False
    masq_link_local_v6: bool = False
    resync_interval_s: float = 60.0
    is_default: bool = False
    findings: tuple[Finding, ...] = ()
    kept: Mapping[int, frozenset[LpmKey]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        every = (*self.keys, *map(LpmKey.of, self.link_local))
        kept = {version: frozenset(key for key in every if key.version == version) for version in (4, 6)}
        object.__setattr__(self, "kept", kept)

    @property
    def entries(self) -> list[Prefix]:
        """Made when asked for: 16,000 take 30 ms."""
        return [key.prefix for key in self.keys]

    @property
    def link_local(self) -> tuple[Prefix, ...]:
        """The link-local ranges that keep pod addresses without being listed."""
        masqueraded = (self.masq_link_local, self.masq_link_local_v6)
        return tuple(prefix for prefix, masq in zip(LINK_LOCAL, masqueraded, strict=True) if not masq)

    def place(self, index: int) -> str:
        """File and line of an entry; empty for one of a default list."""
        return f"{self.origin}:{self.lines[index]}" if self.lines else ""


@dataclass(frozen=True, slots=True)
class Reading:
    """What is known of the document. `document` None: there never was a good one.

    `faults` is everything wrong with what is there now; `document` is then the last good one.
    """

    document: MasqDocument | None = None
    faults: tuple[Fault, ...] = ()
