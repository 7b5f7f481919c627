"""Interfaces, a pod's and the node's: of which kind, where the other end is, which addresses are on it.

Looking only. What an interface of some kind means for a pod is for the caller to decide. Synchronous, a few
milliseconds each: the daemon calls them in threads. `gone` is for its event loop.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import threading
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pyroute2 import AsyncIPRoute, IPRoute
from pyroute2.netlink import rtnl
from pyroute2.netlink.exceptions import NetlinkError

from bgpd.model.prefix import Address, parse_address

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000  # linux/sched.h; `os.setns` comes with Python 3.12


class LinkError(Exception):
    """There is no such interface, or no such namespace; the text names it."""


@dataclass(frozen=True, slots=True)
class Link:
    """An interface. `kind` as the kernel names it ("veth", "macvlan", "bridge"), "" for hardware.

    `other`: the index of a veth's other end, or of the parent of a macvlan or ipvlan; `elsewhere`: that one is in
    another network namespace, so that the index counts there. `master`: the index of the bridge it is a port of.
    `addresses`: without link-local ones, which are never a pod's.
    """

    index: int
    name: str
    kind: str
    mac: str
    other: int | None
    elsewhere: bool
    master: int | None
    addresses: tuple[Address, ...]


def look(which: int | str) -> Link:
    """The interface of this index or name. LinkError: there is none."""
    wanted = {"index": which} if isinstance(which, int) else {"ifname": which}
    with IPRoute() as netlink:
        try:
            (message,) = netlink.link("get", **wanted)
        except NetlinkError as error:
            if error.code in (errno.ENODEV, errno.EINVAL):
                raise LinkError(f"there is no interface {which}") from None
            raise
        link, index = dict(message["attrs"]), message["index"]
        addresses = [dict(each["attrs"]) for each in netlink.get_addr(index=index)]
    return Link(
        index,
        link["IFLA_IFNAME"],
        dict((link.get("IFLA_LINKINFO") or {"attrs": ()})["attrs"]).get("IFLA_INFO_KIND", ""),
        link.get("IFLA_ADDRESS", ""),
        link.get("IFLA_LINK") if link.get("IFLA_LINK") != index else None,
        "IFLA_LINK_NETNSID" in link,
        link.get("IFLA_MASTER"),
        _addresses(addresses),
    )


def look_inside(netns: Path, name: str) -> Link:
    """The interface `name` of the network namespace at `netns`. LinkError: there is no such, of either."""
    try:
        return inside(netns, lambda: look(name))
    except FileNotFoundError:
        raise LinkError(f"there is no network namespace {netns}") from None
    except LinkError as error:
        raise LinkError(f"{netns}: {error}") from None


def inside(netns: Path, call: Callable[[], T]) -> T:
    """What `call` returns or raises when the network namespace at `netns` is its own. OSError: it cannot be entered.

    A thread of its own enters and ends there; pyroute2's way, a process for each socket, takes three times as long.
    """
    returned: list[T] = []
    raised: list[BaseException] = []

    def enter() -> None:
        try:
            with netns.open("rb") as namespace:
                if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET):
                    code = ctypes.get_errno()
                    raise OSError(code, os.strerror(code), str(netns))
            returned.append(call())
        except BaseException as error:  # noqa: BLE001 - it is raised again where it is waited for
            raised.append(error)

    thread = threading.Thread(target=enter, name=f"in {netns}")
    thread.start()
    thread.join()
    if raised:
        raise raised[0]
    return returned[0]


async def gone() -> AsyncGenerator[int]:
    """The index of each interface of this namespace that is deleted, or moved away, from now on."""
    async with AsyncIPRoute() as netlink:
        await netlink.bind(groups=rtnl.RTMGRP_LINK)
        while True:
            async for message in netlink.get():
                if message["event"] == "RTM_DELLINK" and message["family"] != socket.AF_BRIDGE:  # no port any more
                    yield message["index"]


def _addresses(rows: list[dict[str, Any]]) -> tuple[Address, ...]:
    texts = (row.get("IFA_LOCAL") or row.get("IFA_ADDRESS") for row in rows)
    return tuple(address for address in map(parse_address, filter(None, texts)) if not address.is_link_local)
