"""Reads the configuration file and the password files that it names. A shell; what they mean `parse` decides.

The faults of all these files come in one FaultsError, so that an operator sees them at once. Passwords are
kept apart from the configuration, as `Secret`, and no fault ever quotes one.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bgpd.config.files import UnreadableError, read_limited
from bgpd.config.parse import LIMITS, Examined, examine
from bgpd.config.schema import Config
from bgpd.model.bgp import Secret
from bgpd.model.fault import Fault, FaultsError

_LONGEST_PASSWORD = 80  # TCP_MD5SIG_MAXKEYLEN in linux/tcp.h


@dataclass(frozen=True, slots=True)
class Loaded:
    """`passwords` has an entry for each peer that names a file, by the peer's name."""

    config: Config
    passwords: Mapping[str, Secret]
    warnings: tuple[Fault, ...]


def load(path: Path) -> Loaded:
    """Everything the daemon takes from files. Raises nothing but FaultsError, and changes nothing.

    The password files of all peers must be there, also of peers whose nodeSelector turns this node down:
    labels may change at any time, and files are only read here.
    """
    name = str(path)
    try:
        contents = read_limited(path, LIMITS.bytes)
    except UnreadableError as error:
        raise FaultsError((Fault(name, 0, 0, "", str(error)),)) from None
    examined = examine(contents.data, name, socket.gethostname().lower())
    faults = list(examined.faults)
    if contents.mode & 0o002:
        faults.append(Fault(name, 0, 0, "", f"anyone may write it (mode {contents.mode:04o}); chmod o-w"))
    passwords, password_faults = _passwords(examined)
    faults += password_faults
    if examined.config is None or faults:
        raise FaultsError(tuple(sorted(faults)))
    return Loaded(examined.config, passwords, examined.warnings)


def _passwords(examined: Examined) -> tuple[dict[str, Secret], list[Fault]]:
    passwords: dict[str, Secret] = {}
    faults: list[Fault] = []
    for index, peer in examined.peers.items():
        if peer.auth_password_file is None:
            continue
        try:
            passwords[peer.name] = read_password(peer.auth_password_file)
        except UnreadableError as error:
            problem = f"{peer.auth_password_file}: {error}"
            faults.append(examined.fault(("bgp", "peers", index, "authPasswordFile"), problem))
    return passwords, faults


def read_password(path: Path) -> Secret:
    """One line of printable ASCII for TCP MD5 (RFC 2385), or UnreadableError."""
    contents = read_limited(path, max_bytes=4096)
    # The group may read: 0640 root:bgpd is how a speaker without root is given its password.
    if contents.mode & 0o027:
        raise UnreadableError(f"others have access to it (mode {contents.mode:04o}); chmod 0600, or 0640 for a group")
    line = contents.data.removesuffix(b"\n")
    if not line:
        raise UnreadableError("it is empty; give the password on one line")
    if b"\n" in line:
        raise UnreadableError("it has several lines; give the password on one line")
    if not re.fullmatch(rb"[ -~]+", line):
        raise UnreadableError("it has characters other than printable ASCII (a Windows line end counts as one)")
    if len(line) > _LONGEST_PASSWORD:
        raise UnreadableError(f"the password has {len(line)} bytes; Linux takes at most {_LONGEST_PASSWORD}")
    return Secret(line.decode("ascii"))
