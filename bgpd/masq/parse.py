"""From the bytes of an ip-masq-agent document to a `MasqDocument`, or to every fault with line, column and key. Pure.

One format, two references, which disagree (`Rules.compat`):

|                       | agent                                      | cilium                         |
|-----------------------|--------------------------------------------|--------------------------------|
| no document           | RFC 1918, or all reserved ranges by a flag | all reserved ranges            |
| zero bytes            | the same                                   | the same                       |
| comments only         | the same                                   | nothing but link-local         |
| `nonMasqueradeCIDRs`  |                                            |                                |
| ... left out          | the same                                   | nothing but link-local         |
| ... null or `[]`      | nothing but link-local                     | nothing but link-local         |
| ... with 2.2.2.2/16   | a fault                                    | 2.2.0.0/16, with a finding     |
| ... with IPv6         | a fault, unless `ipv6`                     | not programmed, unless `ipv6`  |
| `cidrLimit`           | 64; more entries are a fault               | ignored, with a finding        |
| `resyncInterval`      | a Go duration, anything else is a fault    | the same as a finding          |

In both a key counts whatever its case, unknown keys count for nothing, and one bad entry spoils the document.
Unlike both, all that is wrong is named; a key that is there twice, a second document and more entries than the map
holds are faults, and an unknown key is a finding. What becomes of a bad document (the last good one stays) is up to
`source`.

References: kubernetes-sigs/ip-masq-agent cmd/ip-masq-agent/ip-masq-agent.go; cilium/cilium pkg/ipmasq/ipmasq.go.
"""

from __future__ import annotations

import contextlib
import re
from array import array
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TypeAlias

from bgpd.config import document
from bgpd.config.document import Document, Limits, Path, Value, spell
from bgpd.config.field import did_you_mean
from bgpd.config.scalar import shown
from bgpd.datapath.layout import IPMASQ_ENTRIES
from bgpd.model.fault import Fault, FaultsError
from bgpd.model.lpm import LpmKey
from bgpd.model.masq import Compat, Finding, MasqDocument, Rules
from bgpd.model.prefix import Prefix, PrefixError, parse_masked, parse_prefix

# Two full maps of IPv6 entries, 16,384 each, written at their longest; etcd takes 1.5 MB for an object.
LIMITS = Limits(bytes=2 * 1024 * 1024, depth=16, nodes=100_000)

_Given: TypeAlias = dict[str, tuple[Path, Value]]

_CIDRS, _LIMIT, _RESYNC = "nonMasqueradeCIDRs", "cidrLimit", "resyncInterval"
_LINK_LOCAL, _LINK_LOCAL_V6 = "masqLinkLocal", "masqLinkLocalIPv6"
_KEYS = (_CIDRS, _LIMIT, _LINK_LOCAL, _LINK_LOCAL_V6, _RESYNC)
_BY_CASE = {key.lower(): key for key in _KEYS}

_PRIVATE = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")  # RFC 1918
_RESERVED = (
    *_PRIVATE,
    "100.64.0.0/10",  # RFC 6598
    "192.0.0.0/24",  # RFC 6890
    "192.0.2.0/24",  # RFC 5737
    "192.88.99.0/24",  # RFC 7526
    "198.18.0.0/15",  # RFC 2544
    "198.51.100.0/24",  # RFC 5737
    "203.0.113.0/24",  # RFC 5737
    "240.0.0.0/4",  # RFC 1112 section 4
)
_DEFAULT_LIMIT = 64  # the agent's, "to protect against really bad mistakes"
_DEFAULT_RESYNC_S = 60.0  # the agent's
_SHORTEST_RESYNC_S = 1.0  # the agent reads without a pause when told 0s; reading a map back has its cost
_MOST = 10_000  # of faults, and of findings; nobody reads on, and a file of commas holds a hundred thousand
_UNIT_S = {"ns": "1e-9", "us": "1e-6", "µs": "1e-6", "μs": "1e-6", "ms": "1e-3", "s": "1", "m": "60", "h": "3600"}
_NUMBER = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)"
_PART = re.compile(rf"({_NUMBER})(ns|us|µs|μs|ms|s|m|h)")
_DURATION = re.compile(rf"[-+]?(?:0|(?:{_PART.pattern})+)")
_LONGEST_DURATION = Decimal(2**63 - 1).scaleb(-9)  # of Go: nanoseconds in an int64
_LONGEST_TEXT = 100  # of an entry, to be quoted, and of a duration: a million digits are too much for Decimal
_FILE_NAMES = ("config", "ip-masq-agent")


def parse(data: bytes | None, origin: str, rules: Rules) -> MasqDocument:
    """The document, or FaultsError with everything wrong in it. `data` None: there is no document.

    `origin` is how faults name it.
    """
    if data is None or (rules.compat is Compat.CILIUM and not data):
        return MasqDocument(origin, _default_list(rules), is_default=True)
    documents = document.parse(data, origin, LIMITS)
    given = [each for each in documents.values if each.value is not None]
    reader = _Reader(origin, rules, given[0] if given else None, list(documents.faults))
    if len(given) > 1:
        line, column = given[1].place(())
        reader.faults.append(Fault(origin, line, column, "", "a second document; one file holds one list"))
    return reader.read()


def document_key(names: Collection[str]) -> str | None:
    """Which key of a ConfigMap, or file of one that is mounted, holds the document; None: nobody can tell.

    `config` is what both references mount, `ip-masq-agent` the name they give the mounted file. Otherwise there
    must be just one.
    """
    known = [name for name in _FILE_NAMES if name in names]
    if known:
        return known[0]
    return next(iter(names)) if len(names) == 1 else None


def key_problem(names: Collection[str]) -> str:
    """What to tell an operator when `document_key` is None."""
    found = ", ".join(shown(name) for name in sorted(names)[:10]) or "nothing"
    return f"it holds {found}; put the document under the key '{_FILE_NAMES[0]}'"


def _default_list(rules: Rules) -> tuple[LpmKey, ...]:
    """What both references keep when nobody gives a list."""
    reserved = rules.all_reserved or rules.compat is Compat.CILIUM
    return tuple(LpmKey.of(parse_prefix(text)) for text in (_RESERVED if reserved else _PRIVATE))


@dataclass(slots=True)
class _Reader:
    """Reads the one document of a file; `document` None: it has none but comments."""

    origin: str
    rules: Rules
    document: Document | None
    faults: list[Fault]
    findings: list[Finding] = field(default_factory=list)

    @property
    def _is_agent(self) -> bool:
        return self.rules.compat is Compat.AGENT

    def read(self) -> MasqDocument:
        given = self._given()
        is_default = self._is_agent and _CIDRS not in given
        path, listed = self._listed(given)
        entries, lines = (_default_list(self.rules), ()) if is_default else self._entries(path, listed)
        self._check_limit(given, path, len(entries) if is_default else len(listed))
        found = MasqDocument(
            self.origin,
            entries,
            lines,
            masq_link_local=self._flag(given, _LINK_LOCAL),
            masq_link_local_v6=self._flag(given, _LINK_LOCAL_V6),
            resync_interval_s=self._resync_s(given),
            is_default=is_default,
            findings=tuple(self.findings),
        )
        self._check_room(found, path)
        if self.faults:
            raise FaultsError(tuple(sorted(self.faults)))
        return found

    def _given(self) -> _Given:
        """The path and value of each known key, by its proper spelling: Go's JSON takes any other case as well."""
        value = self.document.value if self.document else None
        if not isinstance(value, dict):
            if value is not None:
                self._fault((), f"found {shown(value)}; give a mapping with '{_CIDRS}'")
            return {}
        given: _Given = {}
        for key, inner in value.items():
            name = _BY_CASE.get(key.lower())
            if name is None:
                remedy = did_you_mean(key, _KEYS).removeprefix("; ") or "remove it"
                self._note((key,), spell((key,)), "nobody knows this key, so it counts for nothing", remedy)
            elif name in given:
                self._fault((key,), f"it is the same key as {spell(given[name][0])}; remove one")
            else:
                given[name] = (key,), inner
                if key != name:
                    self._note((key,), key, f"it counts as {name}", "write it so")
        return given

    def _listed(self, given: _Given) -> tuple[Path, list[Value]]:
        path, value = given.get(_CIDRS, ((_CIDRS,), None))
        if not isinstance(value, list | None):
            self._fault(path, f"found {shown(value)}; give a list of CIDRs")
            return path, []
        return path, value or []

    def _entries(self, path: Path, listed: list[Value]) -> tuple[tuple[LpmKey, ...], Sequence[int]]:
        """The prefixes and the lines they stand on; without the bad ones, which are faults."""
        entries: list[LpmKey] = []
        lines = array("L")
        for index, text in enumerate(listed):
            entry = self._entry((*path, index), text)
            if entry is not None:
                entries.append(LpmKey.of(entry))
                lines.append(self._place((*path, index))[0])
        ignored = [index for index, entry in enumerate(entries) if entry.version == 6 and not self.rules.ipv6]
        if ignored and not self._is_agent:
            others = f" (nor do {len(ignored) - 1} more)" if len(ignored) > 1 else ""
            place = f"{self.origin}:{lines[ignored[0]]}"
            cause = f"IPv6 is left alone, so it does not count{others}"
            self._add(Finding(str(entries[ignored[0]]), cause, "set masquerade.ipv6", place))
        return tuple(entries), lines

    def _entry(self, path: Path, text: Value) -> Prefix | None:
        if not isinstance(text, str) or len(text) > _LONGEST_TEXT:
            self._fault(path, f"found {shown(text)}; give a CIDR like 192.0.2.0/24")
            return None
        prefix = self._prefix(path, text)
        if prefix is not None and prefix.version == 6 and self._is_agent and not self.rules.ipv6:
            self._fault(path, f"{text} is IPv6, which the agent takes with --enable-ipv6 only: set masquerade.ipv6")
        return prefix

    def _prefix(self, path: Path, text: str) -> Prefix | None:
        try:
            return parse_prefix(text)
        except PrefixError as error:
            problem = str(error)
        if not self._is_agent:
            with contextlib.suppress(PrefixError):
                masked = parse_masked(text)
                self._note(path, text, f"it has host bits and counts as {masked}", f"write {masked}")
                return masked
        self._fault(path, problem)
        return None

    def _check_limit(self, given: _Given, list_path: Path, count: int) -> None:
        """`count`: of entries, also of a default list, as the agent has it."""
        path, limit = given.get(_LIMIT, ((_LIMIT,), None))
        if not self._is_agent:
            if _LIMIT in given:
                self._note(path, spell(path), "Cilium knows no limit, so it counts for nothing", "remove it")
            return
        limit = _DEFAULT_LIMIT if limit is None else limit
        if type(limit) is not int:
            self._fault(path, f"found {shown(limit)}; give a whole number")
        elif count > limit:
            where = list_path if _CIDRS in given else path
            self._fault(where, f"there are {count} CIDRs and {_LIMIT} is {limit}; remove some, or raise {_LIMIT}")

    def _check_room(self, found: MasqDocument, path: Path) -> None:
        """A list that is longer than its map would never come into force, and half of a document is none."""
        for version in (4, 6) if self.rules.ipv6 else (4,):
            count = len(found.kept[version])
            if count > IPMASQ_ENTRIES:
                text = f"it comes to {count:,} IPv{version} CIDRs and the map holds {IPMASQ_ENTRIES:,}; remove some"
                self._fault(path, text)

    def _flag(self, given: _Given, name: str) -> bool:
        path, value = given.get(name, ((name,), None))
        if not isinstance(value, bool | None):
            self._fault(path, f"found {shown(value)}; give true or false")
        return value is True

    def _resync_s(self, given: _Given) -> float:
        if _RESYNC not in given:
            return _DEFAULT_RESYNC_S
        path, value = given[_RESYNC]
        try:
            seconds = _go_duration_s(value)
        except ValueError as error:
            if self._is_agent:
                self._fault(path, str(error))
            else:  # Cilium does not look at it
                self._note(path, spell(path), str(error), f"until then it is {_DEFAULT_RESYNC_S:g}s")
            return _DEFAULT_RESYNC_S
        if seconds < _SHORTEST_RESYNC_S:
            cause = f"{value} would be reading without a pause, so {_SHORTEST_RESYNC_S:g}s counts"
            self._note(path, spell(path), cause, "changes are seen at once in any case")
        return max(seconds, _SHORTEST_RESYNC_S)

    def _fault(self, path: Path, problem: str) -> None:
        if len(self.faults) < _MOST:
            self.faults.append(Fault(self.origin, *self._place(path), spell(path), problem))

    def _note(self, path: Path, entry: str, cause: str, remedy: str) -> None:
        self._add(Finding(entry, cause, remedy, f"{self.origin}:{self._place(path)[0]}"))

    def _add(self, finding: Finding) -> None:
        if len(self.findings) < _MOST:
            self.findings.append(finding)

    def _place(self, path: Path) -> tuple[int, int]:
        return self.document.place(path) if self.document else (0, 0)


def _go_duration_s(value: Value) -> float:
    """What Go's time.ParseDuration makes of a text, in seconds. ValueError says what would be right."""
    if not isinstance(value, str) or len(value) > _LONGEST_TEXT or not _DURATION.fullmatch(value):
        raise ValueError(f"found {shown(value)}; give a duration like '60s' or '1m30s'")
    seconds = sum((Decimal(number) * Decimal(_UNIT_S[unit]) for number, unit in _PART.findall(value)), Decimal(0))
    if seconds > _LONGEST_DURATION:
        raise ValueError(f"found {shown(value)}, which is longer than 292 years; give a duration like '60s'")
    return float(-seconds if value.startswith("-") else seconds)
