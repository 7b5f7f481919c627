"""A node whose pods have macvlans of its uplink, and an outside on the same wire.

This decides how the pieces are wired, and how rules are written into the maps by hand. What should become of packets
is for the tests to say. Links and maps are those of `bgpd.policy.parents`, the programs the shipped ones in a bpffs
that goes with the lab.

    pod-a, pod-b, pod-c === eth0 of the node --- outside
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path

from bgpd.datapath import loader
from bgpd.datapath.links import Hook
from bgpd.model.attachment import AttachmentKey
from bgpd.model.endpoint import Endpoint, MacvlanLink, MacvlanMode
from bgpd.model.outcome import Outcome
from bgpd.netlink.links import Links
from bgpd.policy.filters import ParentFilters, actuator
from bgpd.policy.parents import ParentLinks, Programs, entries, install, programs, stations
from bgpd.runtime.diff import Change, diff
from tests.fabric import frames
from tests.fabric.netns import Lab, Namespace
from tests.fabric.parent_node import PLANS, ParentPlace
from tests.fabric.policy_node import link
from tests.fabric.rules_by_hand import RulesByHand


def macvlan(node: Namespace, parent: str, owner: Namespace, mode: str, name: str = "eth0") -> None:
    """One of the node's interface `parent`, in another namespace, up."""
    node.ip(
        f"link add link {parent} name new type macvlan mode {mode}",
        f"link set new netns {owner.netns_name} name {name}",
    )
    owner.link_up(name)


class MacvlanPlace(ParentPlace):
    """Namespaces and what joins them. `apart`: the pods that are in another mode than `mode`."""

    def __init__(
        self, lab: Lab, mode: MacvlanMode = MacvlanMode.VEPA, apart: Mapping[str, MacvlanMode] | None = None
    ) -> None:
        self.lab, self.mode, self.apart = lab, mode, apart or {}
        self.node, self.outside = lab.namespace("node"), lab.namespace("outside")
        names = ("a",) if mode is MacvlanMode.PASSTHRU else ("a", "b", "c")
        self.pods = {name: lab.namespace(f"pod-{name}") for name in names}
        lab.link(self.node, "eth0", self.outside, "eth0")
        for name, pod in self.pods.items():
            self.macvlan(pod, self.mode_of(name).name.lower())
            self._address(pod, name)
        if mode is not MacvlanMode.PASSTHRU:
            self._address(self.node, "node")
        self._address(self.outside, "outside")
        self.parent = link(self.node, "eth0")[0]

    def macvlan(self, owner: Namespace, mode: str, name: str = "eth0") -> None:
        """One of the uplink, in another namespace, up."""
        macvlan(self.node, "eth0", owner, mode, name)

    def mode_of(self, name: str) -> MacvlanMode:
        return self.apart.get(name, self.mode)

    def cookie(self, name: str) -> int:
        """Of a pod's namespace, as far as the kernel tells it."""

        def look() -> int:
            with Links() as links:
                return links.pod(self.pods[name].path, "eth0").cookie

        return self.node.call(look)

    @staticmethod
    def _address(namespace: Namespace, name: str) -> None:
        namespace.add_address("eth0", *(f"{plan.of(name)}/{plan.length}" for plan in PLANS))

    def inject(self, name: str, frame: bytes, *, protocol: int = 0, interface: str = "eth0") -> None:
        frames.send(self.namespace(name), interface, frame, protocol)


class MacvlanNode(MacvlanPlace, RulesByHand):
    """Everything open until `isolate`, nothing asked until `enforcing`."""

    def __init__(
        self,
        lab: Lab,
        bpffs: Path,
        mode: MacvlanMode = MacvlanMode.VEPA,
        apart: Mapping[str, MacvlanMode] | None = None,
    ) -> None:
        super().__init__(lab, mode, apart)
        self.directory = bpffs / "bgpd"
        self.policy = loader.install(loader.shipped("policy"), self.directory)
        self.installed = install(self.directory)
        self.endpoints = {name: self._endpoint(name) for name in self.pods}
        self.restarted()
        self.open()

    def _endpoint(self, name: str) -> Endpoint:
        return Endpoint(
            AttachmentKey("net", name, "eth0"),
            None,
            self.mac(name).hex(":"),
            tuple(ip_address(plan.of(name)) for plan in PLANS),
            MacvlanLink(self.parent, "eth0", self.mode_of(name), self.cookie(name)),
        )

    def restarted(self) -> None:
        """What one daemon had open is gone, and another knows what the kernel has."""
        self.links = self.node.call(lambda: actuator(self.installed, self.directory))

    # --- maps and links ---------------------------------------------------------------------------------------------

    def tell(self, others: Iterable[bytes] = ()) -> None:
        """Writes who is behind the parent."""
        behind = stations(self.installed, self.directory)

        async def write() -> None:
            have = await behind.observe()
            want = entries(self.endpoints.values(), behind.own, {self.parent}, others)
            await behind.apply(diff(want, have, str, prune=True))

        self.here(write)

    def wanted(self) -> Programs:
        return {hook: program.id for hook, program in programs(self.installed).items()}

    def apply(self, want: Programs | None, links: ParentLinks | ParentFilters | None = None) -> Sequence[Outcome]:
        return self.here(lambda: (links or self.links).apply([Change(self.parent, want, None)]))

    def observe(self, links: ParentLinks | ParentFilters | None = None) -> Mapping[int, Programs]:
        return self.here((links or self.links).observe)

    def enforcing(self) -> MacvlanNode:
        self.tell()
        self.apply(self.wanted())
        return self

    def pin(self, hook: Hook) -> Path:
        (found,) = self.directory.glob(f"macvlan_{hook.name.lower()}_at_{self.parent}")
        return found
