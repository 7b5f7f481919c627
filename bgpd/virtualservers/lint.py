"""Monitors that do something else than they look like: what an operator should look at again. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from bgpd.config.scalar import shown
from bgpd.model.virtualserver import Monitor, MonitorProtocol
from bgpd.virtualservers.pattern import pattern

# What nginx says to a request that it cannot take, without the body; other servers differ in the second line.
_REFUSAL = (
    b"HTTP/1.1 400 Bad Request\r\nServer: nginx\r\nDate: Mon, 02 Jan 2006 15:04:05 GMT\r\nContent-Type: text/html\r\n"
    b"Content-Length: 150\r\nConnection: close\r\n\r\n"
)
_REQUEST = re.compile(rb"(?P<method>[A-Z]+) \S+ HTTP/(?P<version>1\.[01])\r?\n(?P<headers>.*)", re.DOTALL)
_HOST = re.compile(rb"(?:^|\n)host:", re.IGNORECASE)
_HEADERS_END = re.compile(rb"\r?\n\r?\n")


def findings(monitor: Monitor) -> Iterator[tuple[str, str]]:
    """The key that each is about, and what is to be known about it."""
    if monitor.timeout_s <= monitor.interval_s:
        advice = 3 * monitor.interval_s + 1
        yield (
            "timeout",
            f"one failed try takes a pod out: {monitor.timeout_s} s are over before the next one, every "
            f"{monitor.interval_s} s; F5 recommends three intervals and a second, {advice}",
        )
    if monitor.protocol is MonitorProtocol.UDP and not monitor.recv:
        yield "recv", "without it a pod is up unless it says that the port is closed; silence counts as up"
    if monitor.protocol is not MonitorProtocol.UDP and monitor.recv and not monitor.send:
        yield "send", "nothing is sent, so a pod must speak first for recv to be found"
    if monitor.protocol is MonitorProtocol.HTTP:
        yield from _http(monitor)


def _http(monitor: Monitor) -> Iterator[tuple[str, str]]:
    request = _REQUEST.fullmatch(monitor.send)
    passes = not monitor.recv or pattern(monitor.recv).found_in(_REFUSAL)
    what = f"recv {shown(monitor.recv)} is" if monitor.recv else "anything is, for there is no recv, even"
    without_host = request is not None and request["version"] == b"1.1" and not _HOST.search(request["headers"])
    if without_host:
        assert request is not None
        outcome = f"it passes on that error, for {what} in such an answer" if passes else "so it fails"
        yield (
            "send",
            f"{request['method'].decode()} in HTTP/1.1 without Host is answered 400 (RFC 9112 section 3.2), and "
            f"{outcome}; add 'Host: NAME\\r\\n'" + (", and look for the status, like ' 200 '" if passes else ""),
        )
    elif passes:
        yield "recv", f"it passes on errors too: {what} in a 400; look for the status, like ' 200 ', or for the page"
    if request is not None and not _HEADERS_END.search(monitor.send):
        yield "send", "the request has no end: a server waits for an empty line; end it with '\\r\\n\\r\\n'"
