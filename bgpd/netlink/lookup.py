"""Reads what the kernel knows of this node: its addresses, the way to a peer, who listens on a port.

Looking only: nothing is changed. Synchronous, for short-lived commands (`bgpd doctor`); the daemon does not
need it.
"""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from bgpd.model.prefix import Address, parse_address

TCP_MD5SIG = 14  # linux/tcp.h


@dataclass(frozen=True, slots=True)
class Way:
    """How the kernel would send to an address. `gateway` None: it is on the link itself."""

    interface: str
    gateway: Address | None
    source: Address | None


def addresses() -> frozenset[Address]:
    """Every address of this network namespace, link-local ones left out."""
    with IPRoute() as netlink:
        texts = [message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS") for message in netlink.get_addr()]
    found = (parse_address(text) for text in texts if text)
    return frozenset(address for address in found if not address.is_link_local)


def way_to(address: Address, source: Address | None = None) -> Way | None:
    """The route the kernel would take, or None when it has none."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    query = {"dst": str(address), "family": family} | ({"src": str(source)} if source else {})
    with IPRoute() as netlink:
        try:
            (route,) = netlink.route("get", **query)
        except NetlinkError as error:
            if error.code in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL):
                return None
            raise
        (link,) = netlink.get_links(route.get_attr("RTA_OIF"))
    gateway, preferred = route.get_attr("RTA_GATEWAY"), route.get_attr("RTA_PREFSRC")
    return Way(
        link.get_attr("IFLA_IFNAME"),
        parse_address(gateway) if gateway else None,
        parse_address(preferred) if preferred else None,
    )


def listener_on(port: int) -> str:
    """The program or script that listens on this TCP port here, "?" if it cannot be told, "" if none does."""
    inodes = {inode for table in ("tcp", "tcp6") for inode in _listening(table, port)}
    if not inodes:
        return ""
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            links = {str(entry.readlink()) for entry in (process / "fd").iterdir()}
            if any(f"socket:[{inode}]" in links for inode in inodes):
                return _program(process)
        except OSError:
            continue  # it ended, or is not ours to look at
    return "?"


def _program(process: Path) -> str:
    """What an operator would call it: for Python the script, else the program."""
    words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
    scripts = [Path(word).name for word in words if word.endswith(".py")]
    return scripts[0] if scripts else (process / "comm").read_text().strip()


def md5_works() -> bool:
    """Whether this kernel signs TCP segments (RFC 2385): CONFIG_TCP_MD5SIG, not forbidden by FIPS mode."""
    key = b"bgpd"
    family_and_address = struct.pack("=H2x4s120x", socket.AF_INET, socket.inet_aton("127.0.0.1"))
    option = family_and_address + struct.pack("=BBHi80s", 0, 0, len(key), 0, key)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.setsockopt(socket.IPPROTO_TCP, TCP_MD5SIG, option)
        except OSError:
            return False
    return True


def _listening(table: str, port: int) -> set[str]:
    """The inodes of sockets in state LISTEN (0A) on `port`, from /proc/net."""
    try:
        lines = Path(f"/proc/net/{table}").read_text().splitlines()[1:]
    except FileNotFoundError:
        return set()  # a kernel without IPv6
    rows = (line.split() for line in lines)
    return {row[9] for row in rows if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port}
