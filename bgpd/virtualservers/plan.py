"""Decides which pods serve which virtual server on this node, and what is announced of it. Pure.

Who is a member on this node is decided in `members`. In service are those that pass all monitors. When none does,
`whenDown` says whether the address is withdrawn, or announced as a last resort and served by those that have failed:
then a ToR takes this way only if no other node has a better one. A pod of which nothing is known yet, or that has not
risen yet and never failed, is neither: it gets nothing, and no address is announced for it.

An address is announced while any of its virtual servers is in service here (BIG-IP's route advertisement "any"), and
only once the kernel leads its traffic to pods.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from bgpd.config.virtualservers import VirtualServers, WhenDown
from bgpd.model.bgp import AdvertisementType
from bgpd.model.candidate import Candidate
from bgpd.model.prefix import Address, host_prefix
from bgpd.model.virtualserver import Balance, Frontend, Member, Monitor, VirtualServer
from bgpd.virtualservers.claim import Claims
from bgpd.virtualservers.deal import by_connections, in_turn
from bgpd.virtualservers.members import Endpoints, members
from bgpd.virtualservers.monitor import Check
from bgpd.virtualservers.table import Slots

NOT_CHECKED = "the monitors of the local pods have not decided yet"


@dataclass(frozen=True, slots=True)
class Pool:
    """A virtual server and its members here. `lacks` is why there are none; empty when there are.

    `refused` names endpoints that a slice has here and that are no pods of this node.
    """

    server: VirtualServer
    members: tuple[Member, ...] = ()
    lacks: str = ""
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Served:
    """`in_service` get connections: the healthy ones or, with `last_resort`, those that have failed.

    `why` says why it is not served as it should be; empty when it is.
    """

    pool: Pool
    in_service: tuple[Member, ...] = ()
    last_resort: bool = False
    why: str = ""


Checks = Callable[[VirtualServer, Member], Mapping[Monitor, Check]]


def pools(servers: Iterable[VirtualServer], endpoints: Endpoints, claims: Claims) -> dict[str, Pool]:
    """By the name of the virtual server. Of two with one frontend the older one counts, as with Ingresses: whoever
    comes later takes nobody's address. Of the same age, or where nobody knows it, the first by name.
    """
    found: dict[str, Pool] = {}
    taken: dict[Frontend, VirtualServer] = {}
    for server in sorted(servers, key=lambda server: server.age):
        why = claims.refused(server)
        if why:
            found[server.name] = Pool(server, lacks=why)
            continue
        first = taken.setdefault(server.frontend, server)
        if first is not server:
            why = "the first by name" if first.created == server.created else "which is older"
            lacks = f"{server.frontend} is ConfigMap {first.name}'s, {why}; give one of them another port or address"
            found[server.name] = Pool(server, lacks=lacks)
        else:
            here = members(server, endpoints, claims)
            found[server.name] = Pool(server, here.members, here.lacks, here.refused)
    return found


def served(pool: Pool, checks: Checks, settings: VirtualServers) -> Served:
    """Who gets connections, as the monitors have it now."""
    found = _served(pool, checks, settings)
    return replace(found, why="; ".join(filter(None, (found.why, pool.refused)))) if pool.refused else found


def _served(pool: Pool, checks: Checks, settings: VirtualServers) -> Served:
    if not pool.members:
        return Served(pool, why=pool.lacks)
    states = {member: state(checks(pool.server, member), pool.server.monitors) for member in pool.members}
    healthy = tuple(member for member in pool.members if states[member])
    if healthy:
        down = len(pool.members) - len(healthy)
        return Served(pool, healthy, why=f"{down} of {len(pool.members)} local pods are down" if down else "")
    failed = tuple(member for member in pool.members if states[member] is False)
    if not failed:
        return Served(pool, why=NOT_CHECKED)
    why = _down(len(failed), len(pool.members))
    if settings.when_down is WhenDown.WITHDRAW:
        return Served(pool, why=why)
    return Served(pool, failed, last_resort=True, why=f"{why}: served as a last resort")


def _down(failed: int, members: int) -> str:
    if failed < members:
        return f"{failed} of {members} local pods are down, and of the others nothing is known yet"
    return "the only local pod is down" if members == 1 else f"all {members} local pods are down"


def state(found: Mapping[Monitor, Check], monitors: Sequence[Monitor]) -> bool | None:
    """Of a pod: up for all of its monitors, down for one of them, or None: that is not known yet."""
    results = [found[monitor].up if monitor in found else None for monitor in monitors]
    return False if False in results else None if None in results else True


def slots(each: Served, connections: Mapping[Member, int]) -> Slots:
    """Who gets the next connections, as `balance` has it. `connections` are those that each member has open."""
    if each.pool.server.balance is Balance.ROUND_ROBIN:
        return in_turn(each.in_service)
    return by_connections(each.in_service, connections)


def candidates(found: Iterable[Served], in_kernel: Callable[[Frontend], str], settings: VirtualServers) -> tuple[
    Candidate, ...
]:  # fmt: skip
    """What may be announced, one for each address. `in_kernel` says why traffic to a frontend is not led to pods yet;
    empty when it is."""
    by_address: dict[Address, list[Served]] = {}
    for each in found:
        by_address.setdefault(each.pool.server.frontend.address, []).append(each)
    return tuple(_candidate(address, group, in_kernel, settings) for address, group in by_address.items())


def _candidate(
    address: Address, group: Sequence[Served], in_kernel: Callable[[Frontend], str], settings: VirtualServers
) -> Candidate:
    owner = ", ".join(f"ConfigMap {each.pool.server.name}" for each in group)
    waits = {each.pool.server.name: in_kernel(each.pool.server.frontend) for each in group if each.in_service}
    leading = [each for each in group if each.in_service and not waits[each.pool.server.name]]
    kind = AdvertisementType.VIRTUAL_SERVER
    if not leading:
        reasons = dict.fromkeys(waits.get(each.pool.server.name) or each.why for each in group)
        return Candidate(kind, host_prefix(address), owner, withheld="; ".join(reasons))
    remark = "; ".join(dict.fromkeys(each.why for each in group if each.why))
    if any(not each.last_resort for each in leading):
        return Candidate(kind, host_prefix(address), owner, remark=remark)
    by_med = settings.when_down is WhenDown.MED
    return Candidate(
        kind,
        host_prefix(address),
        owner,
        remark=remark,
        med=settings.med if by_med else None,
        communities=() if by_med else settings.communities,
    )
