"""When a route got into a ToR: told by the ToR's kernel, to which BIRD hands it over once it is in BIRD's table.

This decides how arrivals are timed: the kernel pushes every new route to a netlink socket (rtnetlink(7)), so
nothing is polled and nobody is disturbed. BIRD installs a route right after choosing it: the time is later
than that of BIRD's own table by some tens of microseconds, for everybody alike. It does not decide which
routes matter.
"""

from __future__ import annotations

import ipaddress
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Self

from tests.fabric.netns import Namespace

_RTMGRP_IPV4_ROUTE, _RTMGRP_IPV6_ROUTE = 0x40, 0x400
_RTM_NEWROUTE, _RTM_DELROUTE = 24, 25
_RTA_DST = 1
_NLMSG, _RTMSG, _RTATTR = struct.Struct("=IHHII"), struct.Struct("=BBBBBBBBI"), struct.Struct("=HH")


class RouteTap:
    """Watches several ToRs within a `with` block. Times are monotonic seconds, as this process saw them."""

    def __init__(self, tors: Mapping[str, Namespace]) -> None:
        self._tors = tors
        self._arrived: dict[tuple[str, str], float] = {}
        self._gone: dict[tuple[str, str], float] = {}
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="route tap", daemon=True)

    def __enter__(self) -> Self:
        self._sockets = {self._open(namespace): name for name, namespace in self._tors.items()}
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        for channel in self._sockets:
            channel.close()

    def arrival(self, prefix: str, timeout_s: float) -> float:
        """When the last of the ToRs had a route for `prefix`; waits for it. TimeoutError: one has none."""

        def everywhere() -> bool:
            return all((name, prefix) in self._arrived for name in self._tors)

        with self._changed:
            if not self._changed.wait_for(everywhere, timeout_s):
                raise TimeoutError(f"{prefix} did not get into every ToR in {timeout_s:g} s")
            return max(self._arrived[name, prefix] for name in self._tors)

    def departure(self, prefix: str, timeout_s: float) -> float:
        """When the last of the ToRs lost its route for `prefix`; waits for it. TimeoutError: one has it still."""

        def nowhere() -> bool:
            return all((name, prefix) in self._gone for name in self._tors)

        with self._changed:
            if not self._changed.wait_for(nowhere, timeout_s):
                raise TimeoutError(f"{prefix} did not leave every ToR in {timeout_s:g} s")
            return max(self._gone[name, prefix] for name in self._tors)

    @staticmethod
    def _open(namespace: Namespace) -> socket.socket:
        channel = namespace.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
        channel.bind((0, _RTMGRP_IPV4_ROUTE | _RTMGRP_IPV6_ROUTE))
        return channel

    def _run(self) -> None:
        while not self._stop.is_set():
            for channel in select.select(list(self._sockets), [], [], 0.1)[0]:
                data = channel.recv(1 << 16)
                now = time.monotonic()
                with self._changed:
                    for kind, prefix in routes(data):
                        key = self._sockets[channel], prefix
                        if kind == _RTM_NEWROUTE:
                            self._arrived.setdefault(key, now)
                            self._gone.pop(key, None)
                        else:
                            self._gone.setdefault(key, now)
                            self._arrived.pop(key, None)
                    self._changed.notify_all()


def routes(data: bytes) -> Iterator[tuple[int, str]]:
    """(message type, prefix) of every route in a datagram of rtnetlink."""
    at = 0
    while at + _NLMSG.size <= len(data):
        length, kind, _, _, _ = _NLMSG.unpack_from(data, at)
        if length < _NLMSG.size:
            return
        if kind in (_RTM_NEWROUTE, _RTM_DELROUTE):
            family, prefix_length, *_ = _RTMSG.unpack_from(data, at + _NLMSG.size)
            destination = _attribute(data[at + _NLMSG.size + _RTMSG.size : at + length], _RTA_DST)
            if destination is not None and family in (socket.AF_INET, socket.AF_INET6):
                yield kind, f"{ipaddress.ip_address(destination)}/{prefix_length}"
        at += (length + 3) & ~3


def _attribute(data: bytes, wanted: int) -> bytes | None:
    at = 0
    while at + _RTATTR.size <= len(data):
        length, kind = _RTATTR.unpack_from(data, at)
        if length < _RTATTR.size:
            return None
        if kind == wanted:
            return data[at + _RTATTR.size : at + length]
        at += (length + 3) & ~3
    return None
