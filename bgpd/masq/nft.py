"""Keeps the masquerade table in the kernel: reads it, changes it, sees to it that nobody else does.

Where the kernel has it (6.9), the table is owned by this process: nobody else can flush, delete or edit it, and it
stays when the process ends. Elsewhere it is read again when somebody else has committed something, and put right.

What the table says, and why, is `masq.table`'s.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from bgpd.masq.table import NAME, Table, found_in, update
from bgpd.model.outcome import DONE, Blocked, Outcome, Retry
from bgpd.netlink import nftmessage as nft
from bgpd.netlink.nftables import Connection, NftablesError
from bgpd.netlink.nftmessage import OWNER, PERSIST, Kind, Message, attribute, number_in
from bgpd.netlink.owntables import NO_MATCH, PROGRAM_MATCH, read
from bgpd.runtime.diff import Change
from bgpd.runtime.reconcile import TargetError

KEY = f"table inet {NAME}"


class MasqueradeTable:
    """The actuator; its one object is `KEY`.

    With `owned` the table belongs to `connection`, for as long as that is open; see `owntables`.
    """

    def __init__(self, connection: Connection, *, owned: bool) -> None:
        self._connection, self._owned = connection, owned

    async def observe(self) -> Mapping[str, Table]:
        return await asyncio.to_thread(self._observe)

    async def apply(self, changes: Sequence[Change[str, Table]]) -> Sequence[Outcome]:
        return [await asyncio.to_thread(self._apply, change.want) for change in changes]

    def _observe(self) -> Mapping[str, Table]:
        try:
            shown = self._connection.get(Kind.GETTABLE, attribute(1, NAME))
            if shown is None:
                return {}
            found = found_in(read(self._connection, NAME, nft.NFPROTO_INET))
        except NftablesError as error:
            raise TargetError(str(error)) from None
        owner = number_in(shown, 7)
        if self._owned and owner != self._connection.port and not found.damage:
            found = replace(found, damage=f"the table belongs to {f'process {owner}' if owner else 'nobody'}")
        return {KEY: found}

    def _apply(self, want: Table | None) -> Outcome:
        """Puts the table there, or takes it away, at one stroke."""
        try:
            if want is not None and not self._connection.has_match(*PROGRAM_MATCH):
                return Blocked(NO_MATCH)
            messages = [*self._steps(want)]
            if messages:
                self._connection.commit(messages)
        except NftablesError as error:
            return Retry(_with_remedy(error, want))
        return DONE

    def _steps(self, want: Table | None) -> Iterator[Message]:
        """From what is there, whoever made it, to `want`."""
        shown = self._connection.get(Kind.GETTABLE, attribute(1, NAME))
        flags = OWNER | PERSIST if self._owned else 0
        if shown is not None:
            there = number_in(shown, 2)
            left_behind = there & (OWNER | PERSIST) == PERSIST
            found = found_in(read(self._connection, NAME, nft.NFPROTO_INET))
            if want is not None and not found.damage and (there == flags or left_behind):
                if self._owned and number_in(shown, 7) != self._connection.port:
                    yield nft.adopted(NAME, flags)  # refused if it has an owner
                yield from update(found, want)
                return
            yield nft.no_table(NAME)
        if want is not None:
            yield nft.table(NAME, flags)
            yield from update(replace(want, ipv4=None, ipv6=None), want)


def remove(connection: Connection) -> bool:
    """Takes the table away, whoever left it; whether there was one. NftablesError: it belongs to a running daemon."""
    if connection.get(Kind.GETTABLE, attribute(1, NAME)) is None:
        return False
    connection.commit([nft.no_table(NAME)])
    return True


def _with_remedy(error: NftablesError, want: Table | None) -> str:
    if error.errno == errno.EPERM:
        return f"{error}; CAP_NET_ADMIN is missing, or another bgpd runs in this network namespace and owns the table"
    if error.errno in (errno.ENOENT, errno.EINVAL, errno.EACCES) and want is not None:
        return f"{error}; is {want.program} a pinned eBPF program, and does it lie where bgpd may open it?"
    return str(error)
