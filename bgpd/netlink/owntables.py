"""The tables of one subsystem in nf_tables, as its reconciler's target: read, changed, guarded, taken out.

Where the kernel has it (6.9), a table is owned by this process: nobody else can flush, delete or edit it, and it
stays when the process ends. Elsewhere it is read again when somebody else has committed something, and put right.

What a table says, and why, is the subsystem's: it hands in a `TableKind` for each.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Generic

from bgpd.model.outcome import DONE, Blocked, Outcome, Retry
from bgpd.netlink import nftmessage as nft
from bgpd.netlink.nftables import Connection, NftablesError, Watch
from bgpd.netlink.nftfilter import in_family
from bgpd.netlink.nftmessage import OWNER, PERSIST, Attributes, Kind, Message, attribute, number_in, text
from bgpd.netlink.nfttable import C, Parts, TableKind
from bgpd.runtime.diff import Change
from bgpd.runtime.reconcile import TargetError

PROGRAM_MATCH = ("bpf", 1)  # xt_bpf with pinned programs
NO_MATCH = (
    "this kernel cannot ask an eBPF program from a rule of nf_tables; it takes the modules xt_bpf and nft_compat "
    "(CONFIG_NETFILTER_XT_MATCH_BPF, CONFIG_NFT_COMPAT)"
)
_PROBE = "bgpd-probe"


def can_own(connection: Connection) -> bool:
    """Whether this kernel lets a table belong to one process and outlive it. Leaves nothing behind."""
    try:
        connection.commit([nft.table(_PROBE, OWNER | PERSIST), nft.no_table(_PROBE)])
    except NftablesError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
            return False
        raise
    return True


def read(connection: Connection, name: str, family: int) -> Parts:
    """All that there is of a table. NftablesError: nf_tables does not answer."""
    ours = attribute(1, name)
    sets = [text(each, 2) for each in connection.dump(Kind.GETSET, ours, family)]
    chains = connection.dump(Kind.GETCHAIN, family=family)
    rules: dict[str, list[Attributes]] = {}
    for each in connection.dump(Kind.GETRULE, ours, family):
        rules.setdefault(text(each, 2), []).append(each)
    return Parts(
        {each: connection.dump(Kind.GETSETELEM, ours + attribute(2, each), family) for each in sets},
        {text(each, 3): each for each in chains if text(each, 1) == name},
        rules,
    )


@contextlib.contextmanager
def taking_out(what: str) -> Iterator[Connection]:
    """A connection to take tables of an earlier life away by. TargetError: it cannot be done, and what to do."""
    try:
        with contextlib.closing(Connection()) as connection:
            yield connection
    except (OSError, NftablesError) as error:
        remedy = ""
        if error.errno == errno.EPERM:
            remedy = "; run as root, and if a bgpd is running that owns it, stop that first"
        raise TargetError(f"{what} cannot be taken out of the kernel: {error}{remedy}") from None


def remove(connection: Connection, kinds: Mapping[str, TableKind[Any]]) -> list[str]:
    """Takes the tables out, whoever left them; the keys of those there were.

    NftablesError: one belongs to a running daemon.
    """
    there = [key for key, kind in kinds.items() if _shown(connection, kind) is not None]
    for key in there:
        connection.commit([*in_family([nft.no_table(kinds[key].name)], kinds[key].family)])
    return there


def _shown(connection: Connection, kind: TableKind[Any]) -> Attributes | None:
    return connection.get(Kind.GETTABLE, attribute(1, kind.name), kind.family)


class TableActuator(Generic[C]):
    """Its objects are the tables of `kinds`, by their keys.

    With `owned` they belong to `connection`, for as long as that is open.
    """

    def __init__(self, connection: Connection, kinds: Mapping[str, TableKind[C]], *, owned: bool) -> None:
        self._connection, self._kinds, self._owned = connection, kinds, owned

    async def observe(self) -> Mapping[str, C]:
        return await asyncio.to_thread(self._observe)

    async def apply(self, changes: Sequence[Change[str, C]]) -> Sequence[Outcome]:
        return [await asyncio.to_thread(self._apply, change) for change in changes]

    def _observe(self) -> Mapping[str, C]:
        try:
            return {key: found for key, kind in self._kinds.items() if (found := self._found(kind)) is not None}
        except NftablesError as error:
            raise TargetError(str(error)) from None

    def _found(self, kind: TableKind[C]) -> C | None:
        shown = _shown(self._connection, kind)
        if shown is None:
            return None
        found = kind.found_in(read(self._connection, kind.name, kind.family))
        owner = number_in(shown, 7)
        if self._owned and owner != self._connection.port and not found.damage:
            found = replace(found, damage=f"the table belongs to {f'process {owner}' if owner else 'nobody'}")
        return found

    def _apply(self, change: Change[str, C]) -> Outcome:
        """Puts the table there, or takes it away, at one stroke."""
        kind, want, have = self._kinds[change.key], change.want, change.have
        try:
            if self._owned and want is not None and have is not None and not have.damage:
                messages = [*kind.update(have, want)]  # nobody else can have changed it: to read it takes 8 ms
            elif want is not None and kind.pins(want) and not self._connection.has_match(*PROGRAM_MATCH):
                return Blocked(NO_MATCH)
            else:
                messages = [*self._steps(kind, want)]
            if messages:
                self._connection.commit(messages)
        except NftablesError as error:
            return Retry(_with_remedy(error, "" if want is None else kind.pins(want)))
        return DONE

    def _steps(self, kind: TableKind[C], want: C | None) -> Iterator[Message]:
        """From what is there, whoever made it, to `want`."""
        shown = _shown(self._connection, kind)
        flags = OWNER | PERSIST if self._owned else 0
        if shown is not None:
            there = number_in(shown, 2)
            left_behind = there & (OWNER | PERSIST) == PERSIST
            found = kind.found_in(read(self._connection, kind.name, kind.family))
            if want is not None and not found.damage and (there == flags or left_behind):
                if self._owned and number_in(shown, 7) != self._connection.port:
                    yield from in_family([nft.adopted(kind.name, flags)], kind.family)  # refused if it has an owner
                yield from kind.update(found, want)
                return
            yield from in_family([nft.no_table(kind.name)], kind.family)
        if want is not None:
            yield from in_family([nft.table(kind.name, flags)], kind.family)
            yield from kind.update(kind.empty(want), want)


def _with_remedy(error: NftablesError, pins: str) -> str:
    """`pins`: where the programs are pinned; empty for a table that is taken away."""
    if error.errno == errno.EPERM:
        return f"{error}; CAP_NET_ADMIN is missing, or another bgpd runs in this network namespace and owns the table"
    if error.errno in (errno.ENOENT, errno.EINVAL, errno.EACCES) and pins:
        return f"{error}; are its eBPF programs pinned at {pins}, and may bgpd open them there?"
    return str(error)


class OwnTables(Generic[C]):
    """The actuator as a reconciler takes it: a connection is had when first asked for, and others are watched."""

    def __init__(self, kinds: Mapping[str, TableKind[C]]) -> None:
        self._kinds = kinds
        self._connection: Connection | None = None
        self._actuator: TableActuator[C] | None = None
        self._opened = asyncio.Event()

    async def observe(self) -> Mapping[str, C]:
        """TargetError: a node without nf_tables says so, and goes on."""
        if self._actuator is None:
            self._actuator = await asyncio.to_thread(self._open)
            self._opened.set()
        return await self._actuator.observe()

    async def apply(self, changes: Sequence[Change[str, C]]) -> Sequence[Outcome]:
        assert self._actuator is not None, "the loop observes first"
        return await self._actuator.apply(changes)

    async def watch(self, changed: Callable[[], None]) -> None:
        """Calls `changed` whenever somebody else has committed something to nf_tables. Never returns."""
        await self._opened.wait()
        assert self._connection is not None
        loop, port = asyncio.get_running_loop(), self._connection.port
        watch = Watch()
        news = asyncio.Event()
        loop.add_reader(watch.fileno(), news.set)
        with contextlib.closing(watch):
            try:
                changed()  # since the first look, somebody may have
                while True:
                    await news.wait()
                    news.clear()
                    if watch.others(port):
                        changed()
            finally:
                loop.remove_reader(watch.fileno())

    def _open(self) -> TableActuator[C]:
        try:
            self._connection = self._connection or Connection()
            return TableActuator(self._connection, self._kinds, owned=can_own(self._connection))
        except (OSError, NftablesError) as error:
            raise TargetError(f"nf_tables cannot be used: {error}; is CAP_NET_ADMIN there?") from None
