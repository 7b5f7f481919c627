"""Host routes put together: the node and the pods in, candidates for announcement out, and what operators see of it.

It has nothing in the kernel and nothing to run: whenever a store changes it works out anew what may be announced. A
cluster has ten thousand pods and shows one change after the other, so who has which address is kept, and a look costs
what has changed. Which address is announced, `plan` decides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from bgpd.hostroutes.plan import claims_an_address, plan
from bgpd.model.candidate import Candidate
from bgpd.model.hostroute import Unfit, Withheld
from bgpd.model.node import Node
from bgpd.model.pod import Pod
from bgpd.model.prefix import Address, family_of
from bgpd.observe.samples.hostroutes import HostRoutes
from bgpd.runtime.diff import changed
from bgpd.runtime.store import Store


class HostRouting:
    """Fills `candidates` for the node of this name. `withheld` is what of them is not to be announced now."""

    def __init__(
        self,
        node_name: str,
        nodes: Store[Mapping[str, Node]],
        pods: Store[Mapping[str, Pod]],
        candidates: Store[tuple[Candidate, ...]],
    ) -> None:
        self._node_name, self._nodes, self._pods, self._candidates = node_name, nodes, pods, candidates
        self._taken_in: Mapping[str, Pod] = {}
        self._here: dict[str, Pod] = {}
        self._claims: dict[Address, tuple[Pod, ...]] = {}
        self.withheld: tuple[Withheld, ...] = ()
        self._look()
        nodes.on_change(self._look)
        pods.on_change(self._look)

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        return self._candidates.newest.value

    def problems(self) -> Iterator[str]:
        """What somebody must see to; that an address has moved on, nobody must."""
        for pod in self._here.values():
            yield from pod.problems
        for each in self.withheld:
            if each.unfit is not Unfit.MOVED:
                yield f"{each.address} is not announced: {each.why}"

    def status(self) -> dict[str, Any]:
        """Which addresses are to be announced, and which are not now."""
        return {
            "wanted": [
                {"address": str(it.prefix.network_address), "pod": it.owner.removeprefix("Pod ")}
                for it in self.candidates
                if not it.withheld
            ],
            "withheld": [{"address": str(it.address), "pod": it.pod, "why": it.why} for it in self.withheld],
        }

    def figures(self) -> HostRoutes:
        """What /metrics shows."""
        wanted = Counter(family_of(it.prefix) for it in self.candidates if not it.withheld)
        unfit = Counter(each.unfit.value for each in self.withheld)
        return HostRoutes({family: wanted[family] for family in ("ipv4", "ipv6")}, {it: unfit[it] for it in Unfit})

    def _look(self) -> None:
        nodes, pods = self._nodes.newest, self._pods.newest
        self._take_in(pods.value)
        node = nodes.value.get(self._node_name)
        # without its Node nobody knows which addresses have a route by its pod CIDRs already
        found: tuple[Candidate, ...] = ()
        self.withheld = ()
        if node is not None:
            found, self.withheld = plan(node, self._here.values(), self._claimants)
        self._candidates.publish(found, synced=nodes.synced and pods.synced, at=max(nodes.at, pods.at))

    def _claimants(self, address: Address) -> Collection[Pod]:
        return self._claims.get(address, ())

    def _take_in(self, pods: Mapping[str, Pod]) -> None:
        before, self._taken_in = self._taken_in, pods
        for key in changed(pods, before):
            was, now = before.get(key), pods.get(key)
            if was is not None and claims_an_address(was):
                self._disclaim(was)
            if now is not None and claims_an_address(now):
                for address in now.ips:
                    self._claims[address] = (*self._claims.get(address, ()), now)
            if now is not None and now.node == self._node_name:
                self._here[key] = now
            else:
                self._here.pop(key, None)

    def _disclaim(self, pod: Pod) -> None:
        for address in pod.ips:
            rest = tuple(each for each in self._claims[address] if each.key != pod.key)
            if rest:
                self._claims[address] = rest
            else:
                del self._claims[address]
