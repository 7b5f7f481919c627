"""The tables of one subsystem in nf_tables, as its reconciler's target: opened when first looked at, and watched.

Where the kernel has it (6.9), a table is owned by this process: nobody else can flush, delete or edit it, and it
stays when the process ends. What tables say, and how they are read and written, is the subsystem's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Generic, TypeVar

from bgpd.model.outcome import Outcome
from bgpd.netlink import nftmessage as nft
from bgpd.netlink.nftables import Connection, NftablesError, Watch
from bgpd.netlink.nftmessage import OWNER, PERSIST, Attributes, Kind, attribute, text
from bgpd.netlink.nfttable import Parts
from bgpd.runtime.diff import Change
from bgpd.runtime.reconcile import Actuator, TargetError

V = TypeVar("V")

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


class OwnTables(Generic[V]):
    """`actuator` is made once a connection can be had, and told whether tables can be owned."""

    def __init__(self, actuator: Callable[[Connection, bool], Actuator[str, V]]) -> None:
        self._make = actuator
        self._connection: Connection | None = None
        self._actuator: Actuator[str, V] | None = None
        self._opened = asyncio.Event()

    async def observe(self) -> Mapping[str, V]:
        """TargetError: a node without nf_tables says so, and goes on."""
        if self._actuator is None:
            self._actuator = await asyncio.to_thread(self._open)
            self._opened.set()
        return await self._actuator.observe()

    async def apply(self, changes: Sequence[Change[str, V]]) -> Sequence[Outcome]:
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

    def _open(self) -> Actuator[str, V]:
        try:
            self._connection = self._connection or Connection()
            return self._make(self._connection, can_own(self._connection))
        except (OSError, NftablesError) as error:
            raise TargetError(f"nf_tables cannot be used: {error}; is CAP_NET_ADMIN there?") from None
