"""From an F5 virtual-server ConfigMap to a `VirtualServer`, with everything in it that is wrong or surprising. Pure.

The format is that of k8s-bigip-ctlr (schemas/bigip-virtual-server_v0.1.7.json): the key `schema` names it, the key
`data` holds a JSON document. What that schema refuses is refused; so is what a node cannot do in an F5's place (TLS
at the virtual server, iApps), because traffic would not be what was asked for. What only differs (a `balance` that
there is no equal of, address translation) is taken with a warning, and so is a monitor that will not do what it looks
like: `lint` finds those.

`mode: http` is served as TCP: nothing here looks into HTTP. `partition` means something to the F5 alone.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from bgpd.config.field import did_you_mean
from bgpd.config.scalar import shown
from bgpd.model.configmap import ConfigMap
from bgpd.model.fault import Fault, FieldPath, dotted
from bgpd.model.policy import Protocol
from bgpd.model.prefix import PrefixError, parse_address
from bgpd.model.virtualserver import Balance, Frontend, Monitor, MonitorProtocol, VirtualServer
from bgpd.virtualservers.lint import findings
from bgpd.virtualservers.pattern import PatternError, pattern

T = TypeVar("T")

VERSION = "v0.1.7"
LONGEST = 32768  # characters of a document: all daemons read it between two things that cannot wait
MOST_MONITORS = 16  # of one virtual server; each is a task and a connection for every pod
LONGEST_S = 86400  # of interval and timeout, in the schema
INTERVAL_S, TIMEOUT_S = 5, 16  # of BIG-IP's own monitors
DEFAULT_REQUEST = "GET /\r\n"  # the same
_ROOT: FieldPath = ("data", "data")
_SCHEMA = re.compile(r"f5schemadb://bigip-virtual-server_(v[0-9.]+)\.json")
_MODES = {"http": Protocol.TCP, "tcp": Protocol.TCP, "udp": Protocol.UDP}
_BALANCES = {"round-robin": Balance.ROUND_ROBIN} | dict.fromkeys(
    ("least-connections-member", "least-connections-node"), Balance.LEAST_CONNECTIONS
)
_OTHER_BALANCES = (
    "dynamic-ratio-member", "dynamic-ratio-node", "fastest-app-response", "fastest-node", "least-sessions",
    "observed-member", "observed-node", "predictive-member", "predictive-node", "ratio-least-connections-member",
    "ratio-least-connections-node", "ratio-member", "ratio-node", "ratio-session",
    "weighted-least-connections-member", "weighted-least-connections-node",
)  # fmt: skip
_IAPP = ("iapp", "iappOptions", "iappPoolMemberTable", "iappTables", "iappVariables")
_FRONTEND = ("balance", "partition", "mode", "sslProfile", "virtualAddress", "sourceAddressTranslation", *_IAPP)
_ESCAPES = {"a": "\a", "b": "\b", "e": "\x1b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}  # F5 K4186
_LINE_ESCAPE = re.compile(r"(?<!\\)\\([nrt])")  # of those that a regular expression does not know
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|[0-3][0-7]{2}|[abefnrtv\\'])")


@dataclass(frozen=True, slots=True)
class Reading:
    """`server` None: it cannot be served, and `faults` say why. `warnings` are about one that can."""

    server: VirtualServer | None
    faults: tuple[Fault, ...] = ()
    warnings: tuple[Fault, ...] = ()


def parse(source: ConfigMap) -> Reading:
    """All that is wrong with it at once."""
    reader = _Reader(source)
    reader.schema(source.data.get("schema"))
    document = reader.document(source.data.get("data"))
    server = reader.server(document) if document is not None else None
    faults = tuple(sorted(reader.faults))
    return Reading(None if faults else server, faults, tuple(sorted(reader.warnings)))


@dataclass(slots=True)
class _Reader:
    """Each method notes what is wrong and goes on, with None or a default in its place."""

    source: ConfigMap
    faults: list[Fault] = field(default_factory=list)
    warnings: list[Fault] = field(default_factory=list)

    def schema(self, text: str | None) -> None:
        match = _SCHEMA.fullmatch((text or "").strip())
        wanted = f"f5schemadb://bigip-virtual-server_{VERSION}.json"
        if match is None:
            found = "is missing" if text is None else f"found {shown(text)}"
            self._fault(("data", "schema"), f"{found}; only virtual servers are read: write {wanted}")
        elif match[1] != VERSION:
            self._warn(("data", "schema"), f"{match[1]} is read as {VERSION}")

    def document(self, text: str | None) -> dict[str, Any] | None:
        if text is None:
            self._fault(_ROOT, 'is missing; put the JSON document {"virtualServer": ...} there')
            return None
        if len(text) > LONGEST:
            self._fault(_ROOT, f"it has {len(text)} characters; a virtual server may have {LONGEST}")
            return None
        try:
            found = json.loads(text, object_pairs_hook=self._pairs, parse_constant=_no_number)
            json.dumps(found, ensure_ascii=False).encode()  # half a surrogate pair can neither be looked for nor told
        except json.JSONDecodeError as error:
            place = f"line {error.lineno}, column {error.colno}"
            self._fault(_ROOT, f"{place}: it is not JSON: {error.msg[:1].lower()}{error.msg[1:]}")
        except (ValueError, RecursionError) as error:
            self._fault(_ROOT, f"it is not JSON that can be read: {error}")
        else:
            if found is None:
                self._fault(_ROOT, "found nothing; give a mapping with virtualServer")
            return self._mapping(_ROOT, found, ("virtualServer",))
        return None

    def server(self, document: Mapping[str, Any]) -> VirtualServer | None:
        path = (*_ROOT, "virtualServer")
        whole = self._mapping(path, self._required(_ROOT, document, "virtualServer"), ("backend", "frontend"))
        if whole is None:
            return None
        source, namespace = self.source, self.source.name.partition("/")[0]
        backend = self._mapping(
            (*path, "backend"),
            self._required(path, whole, "backend"),
            ("serviceName", "servicePort", "healthMonitors"),
        )
        frontend = self._mapping((*path, "frontend"), self._required(path, whole, "frontend"), _FRONTEND)
        service, port, monitors = self._backend((*path, "backend"), backend) if backend is not None else (None,) * 3
        front, balance = self._frontend((*path, "frontend"), frontend) if frontend is not None else (None, None)
        if service is None or port is None or monitors is None or front is None or balance is None:
            return None
        return VirtualServer(source.name, front, f"{namespace}/{service}", port, monitors, balance, source.created)

    # --- backend ----------------------------------------------------------------------------------------------

    def _backend(
        self, path: FieldPath, given: Mapping[str, Any]
    ) -> tuple[str | None, int | None, tuple[Monitor, ...] | None]:
        service = self._text((*path, "serviceName"), self._required(path, given, "serviceName"))
        port = self._whole((*path, "servicePort"), self._required(path, given, "servicePort"), 65535)
        entries, place = given.get("healthMonitors", []), (*path, "healthMonitors")
        if not isinstance(entries, list):
            self._fault(place, f"found {shown(entries)}; give a list of monitors")
            return service, port, None
        if len(entries) > MOST_MONITORS:
            self._fault(place, f"there are {len(entries)}; a virtual server may have {MOST_MONITORS} monitors")
            return service, port, None
        monitors = [self._monitor((*place, index), entry) for index, entry in enumerate(entries)]
        if not entries:
            self._warn(path, "there is no health monitor: a pod counts as healthy while Kubernetes calls it ready")
        return service, port, tuple(monitor for monitor in monitors if monitor is not None)

    def _monitor(self, path: FieldPath, entry: object) -> Monitor | None:
        if entry is None:
            self._fault(path, "found nothing; give a monitor, or leave it out")
        given = self._mapping(path, entry, ("protocol", "interval", "timeout", "send", "recv"))
        if given is None:
            return None
        names = tuple(each.value for each in MonitorProtocol)
        protocol = self._one_of((*path, "protocol"), self._required(path, given, "protocol"), names)
        interval = self._whole((*path, "interval"), given.get("interval", INTERVAL_S), LONGEST_S)
        timeout = self._whole((*path, "timeout"), given.get("timeout", TIMEOUT_S), LONGEST_S)
        unsaid = DEFAULT_REQUEST if protocol == MonitorProtocol.HTTP else ""
        send = self._text((*path, "send"), given["send"]) if "send" in given else unsaid
        recv = self._text((*path, "recv"), given["recv"]) if "recv" in given else ""
        if recv:
            recv = _LINE_ESCAPE.sub(lambda match: _ESCAPES[match[1]], recv)
            try:
                pattern(recv)
            except PatternError as error:
                self._fault((*path, "recv"), str(error))
                return None
        if protocol is None or interval is None or timeout is None or send is None or recv is None:
            return None
        monitor = Monitor(MonitorProtocol(protocol), interval, timeout, _unescaped(send), recv)
        for key, problem in findings(monitor):
            self._warn((*path, key), problem)
        return monitor

    # --- frontend ---------------------------------------------------------------------------------------------

    def _frontend(self, path: FieldPath, given: Mapping[str, Any]) -> tuple[Frontend | None, Balance | None]:
        for key in sorted(given.keys() & set(_IAPP)):
            self._fault((*path, key), "iApps run on an F5 only; describe the virtual server by virtualAddress")
        if "sslProfile" in given:
            problem = "a node does not end TLS; let the pods do it and leave this out, or leave the server to the F5"
            self._fault((*path, "sslProfile"), problem)
        if "sourceAddressTranslation" in given:
            problem = "is not done: pods see the addresses of clients, and answer by way of this node"
            self._warn((*path, "sourceAddressTranslation"), problem)
        mode = self._one_of((*path, "mode"), given.get("mode", "tcp"), tuple(_MODES))
        balance = self._balance((*path, "balance"), given.get("balance", Balance.ROUND_ROBIN.value))
        if set(_IAPP) & given.keys():
            return None, balance
        place = (*path, "virtualAddress")
        where = self._mapping(place, self._required(path, given, "virtualAddress"), ("bindAddr", "port"))
        if where is None:
            return None, balance
        port = self._whole((*place, "port"), self._required(place, where, "port"), 65535)
        text = self._text((*place, "bindAddr"), self._required(place, where, "bindAddr"))
        if text is None or port is None or mode is None:
            return None, balance
        try:
            address = parse_address(text)
        except PrefixError as error:
            domain = "; route domains are the F5's, leave '%' and what follows off" if "%" in text else ""
            self._fault((*place, "bindAddr"), f"{error}{domain}")
            return None, balance
        if address.is_multicast or address.is_unspecified or address.is_loopback or address.is_link_local:
            self._fault(
                (*place, "bindAddr"), f"found {address}, which no ToR can route; give the address of a service"
            )
            return None, balance
        return Frontend(address, _MODES[mode], port), balance

    def _balance(self, path: FieldPath, value: object) -> Balance | None:
        name = self._one_of(path, value, (*_BALANCES, *_OTHER_BALANCES))
        if name is None or name in _BALANCES:
            return _BALANCES[name] if name else None
        able = ", ".join(_BALANCES)
        self._warn(path, f"{name} is not supported here: connections go round-robin; supported are {able}")
        return Balance.ROUND_ROBIN

    # --- single values ----------------------------------------------------------------------------------------

    def _required(self, path: FieldPath, given: Mapping[str, Any], key: str) -> Any:
        if key not in given:
            self._fault((*path, key), "is missing")
        return given.get(key)

    def _mapping(self, path: FieldPath, value: object, known: tuple[str, ...]) -> dict[str, Any] | None:
        if not isinstance(value, dict):
            if value is not None:
                self._fault(path, f"found {shown(value)}; give a mapping with {', '.join(known[:5])}")
            return None
        for key in value.keys() - set(known):
            hint = did_you_mean(key, known) or f"; known here are {', '.join(known)}"
            self._fault((*path, key), f"is not known{hint}")
        for key in known:
            if key in value and value[key] is None:  # its reader would take it for one that is not there
                self._fault((*path, key), "found nothing; give a value, or leave it out")
        return value

    def _text(self, path: FieldPath, value: object) -> str | None:
        if isinstance(value, str) and value:
            return value
        if value is not None:
            self._fault(path, f"found {shown(value)}; give a text")
        return None

    def _whole(self, path: FieldPath, value: object, high: int) -> int | None:
        if type(value) is int and 1 <= value <= high:
            return value
        if value is not None:
            self._fault(path, f"found {shown(value)}; give a whole number from 1 to {high}")
        return None

    def _one_of(self, path: FieldPath, value: object, names: tuple[str, ...]) -> str | None:
        if isinstance(value, str) and value in names:
            return value
        if value is not None:
            hint = did_you_mean(value, names)
            self._fault(path, f"found {shown(value)}; give one of {', '.join(names)}{hint}")
        return None

    def _pairs(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        counted = Counter(key for key, _ in pairs)
        for key in sorted(key for key, count in counted.items() if count > 1):
            self._fault(_ROOT, f"{shown(key)} is there twice in one mapping; remove one")
        return dict(pairs)

    def _fault(self, path: FieldPath, problem: str) -> None:
        self.faults.append(self._placed(path, problem))

    def _warn(self, path: FieldPath, problem: str) -> None:
        self.warnings.append(self._placed(path, problem))

    def _placed(self, path: FieldPath, problem: str) -> Fault:
        """In a file where the key of `data` stands: what is in that is the document's own, and `path` leads there."""
        name, origin = f"ConfigMap {self.source.name}", self.source.origin
        if origin is None:
            return Fault(name, 0, 0, dotted(path), problem)
        return Fault(origin.file, *origin.place(str(path[1])), dotted(path), f"{name}: {problem}")


def _unescaped(text: str) -> bytes:
    """What is sent: a document that escapes its backslashes, too, has the two characters `\\r` in it."""

    def plain(match: re.Match[str]) -> str:
        code = match[1]
        if code[0] == "x":
            return chr(int(code[1:], 16))
        return chr(int(code, 8)) if code.isdigit() else _ESCAPES.get(code, code)

    return _ESCAPE.sub(plain, text).encode(errors="replace")


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")
