"""Keeps the policy tables in the kernel: reads them, changes them, sees to it that nobody else does.

Where the kernel has it (6.9), the tables are owned by this process: nobody else can flush, delete or edit them, and
they stay when the process ends. Elsewhere they are read again when somebody else has committed something, and put
right.

What the tables say, and why, is `policy.table`'s.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from bgpd.model.outcome import DONE, Blocked, Outcome, Retry
from bgpd.netlink import nftmessage as nft
from bgpd.netlink.nftables import Connection, NftablesError
from bgpd.netlink.nftfilter import in_family
from bgpd.netlink.nftmessage import OWNER, PERSIST, Kind, Message, attribute, number_in
from bgpd.netlink.owntables import NO_MATCH, PROGRAM_MATCH, read
from bgpd.policy.table import NAME, Family, Table, empty, found_in, update
from bgpd.runtime.diff import Change
from bgpd.runtime.reconcile import TargetError

_OURS = attribute(1, NAME)


def key(family: Family) -> str:
    return f"table {family.name.lower()} {NAME}"


class PolicyTables:
    """The actuator; its objects are `key(family)` for each family.

    With `owned` the tables belong to `connection`, for as long as that is open; see `owntables`.
    """

    def __init__(self, connection: Connection, *, owned: bool) -> None:
        self._connection, self._owned = connection, owned

    async def observe(self) -> Mapping[str, Table]:
        return await asyncio.to_thread(self._observe)

    async def apply(self, changes: Sequence[Change[str, Table]]) -> Sequence[Outcome]:
        return [await asyncio.to_thread(self._apply, change) for change in changes]

    def _observe(self) -> Mapping[str, Table]:
        try:
            return {key(family): found for family in Family if (found := self._table(family)) is not None}
        except NftablesError as error:
            raise TargetError(str(error)) from None

    def _table(self, family: Family) -> Table | None:
        shown = self._connection.get(Kind.GETTABLE, _OURS, family)
        if shown is None:
            return None
        found = found_in(family, read(self._connection, NAME, family))
        owner = number_in(shown, 7)
        if self._owned and owner != self._connection.port and not found.damage:
            found = replace(found, damage=f"the table belongs to {f'process {owner}' if owner else 'nobody'}")
        return found

    def _apply(self, change: Change[str, Table]) -> Outcome:
        """Puts the table there, or takes it away, at one stroke."""
        want = change.want
        (family,) = (each for each in Family if key(each) == change.key)
        try:
            if self._owned and want is not None and change.have is not None and not change.have.damage:
                messages = [*update(change.have, want)]  # nobody else can have changed it: to read it takes 8 ms
            elif want is not None and not self._connection.has_match(*PROGRAM_MATCH):
                return Blocked(NO_MATCH)
            else:
                messages = [*self._steps(family, want)]
            if messages:
                self._connection.commit(messages)
        except NftablesError as error:
            return Retry(_with_remedy(error, want))
        return DONE

    def _steps(self, family: Family, want: Table | None) -> Iterator[Message]:
        """From what is there, whoever made it, to `want`."""
        shown = self._connection.get(Kind.GETTABLE, _OURS, family)
        flags = OWNER | PERSIST if self._owned else 0
        if shown is not None:
            there = number_in(shown, 2)
            left_behind = there & (OWNER | PERSIST) == PERSIST
            found = found_in(family, read(self._connection, NAME, family))
            if want is not None and not found.damage and (there == flags or left_behind):
                if self._owned and number_in(shown, 7) != self._connection.port:
                    yield from in_family([nft.adopted(NAME, flags)], family)  # refused if it has an owner
                yield from update(found, want)
                return
            yield from in_family([nft.no_table(NAME)], family)
        if want is not None:
            yield from in_family([nft.table(NAME, flags)], family)
            yield from update(empty(family), want)


def remove(connection: Connection) -> bool:
    """Takes the tables away, whoever left them; whether there was one. NftablesError: they belong to a daemon."""
    there = [family for family in Family if connection.get(Kind.GETTABLE, _OURS, family) is not None]
    for family in there:
        connection.commit([*in_family([nft.no_table(NAME)], family)])
    return bool(there)


def _with_remedy(error: NftablesError, want: Table | None) -> str:
    if error.errno == errno.EPERM:
        return f"{error}; CAP_NET_ADMIN is missing, or another bgpd runs in this network namespace and owns the table"
    if error.errno in (errno.ENOENT, errno.EINVAL, errno.EACCES) and want is not None:
        return f"{error}; are pinned eBPF programs in {want.directory or 'use'}, and may bgpd open them there?"
    return str(error)
