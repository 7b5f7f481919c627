"""Takes NetworkPolicy out of the kernel, for a node where no daemon enforces it any more."""

from __future__ import annotations

import contextlib
import errno
from pathlib import Path

from bgpd.netlink.nftables import Connection, NftablesError
from bgpd.policy import nft
from bgpd.policy.table import NAME
from bgpd.runtime.reconcile import TargetError

PINS = ("policy*", "macvlan*")  # maps, programs and links, whatever release has pinned them


def clear(directory: Path) -> list[str]:
    """What there was, taken away, the tables first: nothing is judged by half. TargetError: it cannot be done.

    Pods can then be reached by everybody.
    """
    removed = []
    try:
        with contextlib.closing(Connection()) as connection:
            if nft.remove(connection):
                removed.append(f"nftables {NAME}")
        for pin in sorted(pin for pattern in PINS for pin in directory.glob(pattern)):
            pin.unlink()
            removed.append(str(pin))
        with contextlib.suppress(OSError):  # masquerade's pins stay
            directory.rmdir()
    except (OSError, NftablesError) as error:
        remedy = ""
        if error.errno == errno.EPERM:
            remedy = "; run as root, and if a bgpd is running that owns it, stop that first"
        raise TargetError(f"policy cannot be taken out of the kernel: {error}{remedy}") from None
    return removed
