"""Decides which addresses of pods are announced one by one, and which are not, though they could be. Pure.

Meant is each pod of this node that an annotation says so of, and each that has an address outside the node's pod
CIDRs, which no other route leads to. One address may be a pod's on two nodes: two objects of which one is old, an
address given twice. Every node sees the same objects and ranks them alike, so that one of them announces it and the
others do not, without a word between them. To whom, and as what, is up to `bgp.plan`; whether the node has a route
to the pod is the CNI plugin's business.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator

from bgpd.model.bgp import AdvertisementType
from bgpd.model.candidate import Candidate
from bgpd.model.hostroute import Unfit, Withheld
from bgpd.model.node import Node
from bgpd.model.pod import HOST_ROUTE, Pod
from bgpd.model.prefix import Address, host_prefix


def plan(
    node: Node, pods: Iterable[Pod], claims: Callable[[Address], Collection[Pod]]
) -> tuple[tuple[Candidate, ...], tuple[Withheld, ...]]:
    """What may be announced, in the order of the pods' names, and what of it not now.

    `pods` are those of `node`; `claims` is which pods of the cluster have an address, each of `pods` among them.
    """
    candidates, withheld = [], []
    for pod in sorted(pods, key=lambda pod: pod.key):
        for address in _meant(node, pod):
            unfit = _unfit(pod, address, claims)
            if unfit is not None:
                withheld.append(unfit)
            candidates.append(
                Candidate(
                    AdvertisementType.POD_IP,
                    host_prefix(address),
                    f"Pod {pod.key}",
                    pod.labels,
                    withheld=unfit.why if unfit else "",
                )
            )
    return tuple(candidates), tuple(withheld)


def claims_an_address(pod: Pod) -> bool:
    """Whether its addresses are its own now: not the node's, and not another pod's by now."""
    return bool(pod.node) and not (pod.host_network or pod.finished)


def rank(pod: Pod) -> tuple[bool, str, str, str]:
    """Of those that have one address the highest announces it.

    That is the newest by the API server's clock, for where an address is given anew the old object is the one to go;
    nodes' clocks (`status.startTime`) differ. One that was told to end comes after all that were not: of a node that
    is dead the object stays. The rest only breaks ties.
    """
    return not pod.terminating, pod.created, pod.uid, pod.key


def _meant(node: Node, pod: Pod) -> Iterator[Address]:
    if pod.finished or pod.host_route is False:
        return
    for address in pod.ips:
        outside = not any(address in prefix for prefix in node.pod_cidrs)
        if pod.host_route or (outside and not pod.host_network):
            yield address


def _unfit(pod: Pod, address: Address, claims: Callable[[Address], Collection[Pod]]) -> Withheld | None:
    if pod.host_network:
        why = f"Pod {pod.key} has hostNetwork, so {address} is the node's own; take {HOST_ROUTE} off the pod"
        return Withheld(address, pod.key, Unfit.HOST_NETWORK, why)
    holder = max(claims(address), key=rank)
    if holder.key == pod.key:
        return None
    if pod.terminating:
        why = f"Pod {pod.key} is ending, and Pod {holder.key} on {holder.node} has {address} now"
        return Withheld(address, pod.key, Unfit.MOVED, why)
    told = "which is newer" if holder.created > pod.created else "which has the higher uid"
    why = f"Pod {holder.key} on {holder.node}, {told}, has {address} too; delete one of the two"
    return Withheld(address, pod.key, Unfit.CONFLICT, why)
