"""Reads the interfaces of pods and of the node, tells when one changes or a pod's namespace ends. A shell.

Looking only. What an interface of some kind means for a pod is for the caller to decide.

A pod's network namespace is never entered, which would take CAP_SYS_ADMIN: the kernel gives it a number in the node's
(RTM_NEWNSID), answers questions about the namespace of a number, and tells when that one is no more. By these numbers
it also says where the other end of a veth is: a pod with CAP_NET_ADMIN can lay cables of its own, with interfaces
numbered as it likes, but not into the node.

`Links` is synchronous; a call takes well below a millisecond, or as long as somebody else holds the kernel's lock
for interfaces (RTNL): the daemon calls it in threads.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from bgpd.model.prefix import Address
from bgpd.netlink import link as rtnetlink
from bgpd.netlink import route
from bgpd.netlink.link import Link, PodLink
from bgpd.netlink.message import Received
from bgpd.netlink.rtsocket import GROUP_LINK, GROUP_NSID, NEWS_ROOM, RtSocket, RtWatch

_OWN = Path("/proc/thread-self/ns/net")
_NS_GET_ID = 0x8008B70D  # linux/nsfs.h, Linux 6.18
_SO_NETNS_COOKIE = 71  # asm-generic/socket.h, Linux 5.14


class LinkError(Exception):
    """There is no such interface, or no such namespace; the text names it."""


class NoNamespaceError(LinkError):
    """There is nothing at the path of the namespace, or no namespace any more."""


def own_cookie() -> int:
    """Of the network namespace of this thread; 0: the kernel does not tell, before Linux 5.14."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as here:
        try:
            (cookie,) = struct.unpack("Q", here.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8))
        except OSError:
            return 0
    return int(cookie)


def _identifier(opened: int) -> int:
    """Of the namespace that a file stands for; 0: the kernel does not tell."""
    found = bytearray(8)
    try:
        fcntl.ioctl(opened, _NS_GET_ID, found)
    except OSError:
        return 0
    (number,) = struct.unpack("Q", found)
    return int(number)


@functools.cache
def _tells_cookies() -> bool:
    """Whether a namespace is known by the same number to its file and to its sockets: nobody has promised it."""
    opened = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return 0 != _identifier(opened) == own_cookie()
    finally:
        os.close(opened)


class Links:
    """A socket to the kernel, in the network namespace of the thread that opens it: "here" below.

    OSError from any method: the kernel refuses.
    """

    def __init__(self) -> None:
        self._socket = RtSocket()
        self._cookies: dict[int, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def here(self, which: int | str) -> Link | None:
        """The interface of this index or name; None: there is none."""
        return self._link(which)

    def all_here(self) -> list[Link]:
        """Every interface here."""
        return self._links(None)

    def bridges_here(self) -> list[Link]:
        """Every bridge here. The kernel leaves the others out."""
        return self._links(None, "bridge")

    def addresses_here(self) -> list[tuple[int, Address]]:
        """Every address here, with the index of its interface."""
        answers = self._socket.dump(route.GETADDR, route.addresses_request())
        return [found for each in answers if (found := route.any_address(each)) is not None]

    def pod(self, netns: Path, name: str) -> PodLink:
        """The interface `name` of the network namespace at `netns`. LinkError: there is no such, of either."""
        number = self.number(netns)
        inside = self._link(name, number)
        if inside is None:
            raise LinkError(f"{netns}: there is no interface {name}")
        return self._pod_link(number, inside, self.number(_OWN))

    def pods(self, number: int) -> list[PodLink]:
        """All interfaces of the namespace of this number, by index."""
        own = self.number(_OWN)
        found = [self._pod_link(number, each, own) for each in self._links(number)]
        return sorted(found, key=lambda each: each.inside.index)

    def is_alive(self, number: int) -> bool:
        """Whether there is a namespace of this number."""
        try:
            return bool(self._socket.ask(rtnetlink.GETNSID, rtnetlink.netns_request(number=number)))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINVAL):
                return False
            raise

    def number(self, netns: Path) -> int:
        """The number, here, of the network namespace at `netns`; it is given one if it has none."""
        try:
            opened = os.open(netns, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError):
            raise NoNamespaceError(f"there is no network namespace {netns}") from None
        except PermissionError:  # "/proc/PID/ns/net" takes the right to trace that process
            remedy = "let the container runtime keep its namespaces in a directory, such as /run/netns"
            raise LinkError(f"bgpd may not open the network namespace {netns}; {remedy}") from None
        except OSError as error:
            raise LinkError(f"the network namespace {netns} cannot be opened: {error.strerror}") from None
        try:
            number = self._number(opened)
            self._cookies[number] = _identifier(opened) if _tells_cookies() else 0
            return number
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            remedy = "does bgpd run in a mount namespace that the container runtime's mounts do not reach?"
            raise LinkError(f"{netns} is no network namespace; {remedy}") from None
        finally:
            os.close(opened)

    # --- what is asked ------------------------------------------------------------------------------------

    def _number(self, opened: int) -> int:
        for _ in range(2):
            (answer,) = self._socket.ask(rtnetlink.GETNSID, rtnetlink.netns_request(fd=opened))
            number = rtnetlink.netns_number(answer)
            if number is not None:
                return number
            with contextlib.suppress(FileExistsError):  # somebody else was faster
                self._socket.ask(rtnetlink.NEWNSID, rtnetlink.new_netns_request(opened))
        raise OSError(errno.EAGAIN, "the network namespace gets no number")

    def _pod_link(self, number: int, inside: Link, own: int) -> PodLink:
        outside = self._link(inside.other) if inside.other is not None and inside.other_netns == own else None
        master = self._link(outside.master) if outside is not None and outside.master is not None else None
        return PodLink(number, inside, outside, master, self._cookies.get(number, 0))

    def _link(self, which: int | str, netns: int | None = None) -> Link | None:
        try:
            (answer,) = self._socket.ask(rtnetlink.GETLINK, rtnetlink.link_request(which, netns))
        except OSError as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        return rtnetlink.link(answer)

    def _links(self, netns: int | None, kind: str = "") -> list[Link]:
        answers = self._socket.dump(rtnetlink.GETLINK, rtnetlink.link_request(None, netns, kind))
        return list(map(rtnetlink.link, answers))


@dataclass(frozen=True, slots=True)
class News:
    """The interfaces here that were made, changed, deleted or moved away, and the namespaces that have ended.

    `lost`: there was more, and nobody can say what.
    """

    links: frozenset[int] = frozenset()
    namespaces: frozenset[int] = frozenset()
    lost: bool = False


class Watch:
    """Hears of every change from when it is made on. `room`: bytes of news that wait, before some are lost."""

    def __init__(self, room: int = NEWS_ROOM) -> None:
        self._watch = RtWatch((GROUP_LINK, GROUP_NSID), room)

    def close(self) -> None:
        self._watch.close()

    async def news(self) -> News:
        """Waits for some, and takes what has come with it."""
        received = await self._watch.news()
        return News(lost=True) if received is None else _news(received)


def _news(received: Sequence[Received]) -> News:
    changed = (each.body for each in received if each.kind in (rtnetlink.NEWLINK, rtnetlink.DELLINK))
    ended = (rtnetlink.netns_number(each.body) for each in received if each.kind == rtnetlink.DELNSID)
    return News(
        frozenset(map(rtnetlink.link_index, changed)), frozenset(number for number in ended if number is not None)
    )
