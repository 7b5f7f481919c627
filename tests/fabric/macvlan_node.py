"""A node whose pods have macvlans of its uplink, and an outside on the same wire.

This decides how the pieces are wired, and how rules are written into the maps by hand. What should become of packets
is for the tests to say. Links and maps are those of `bgpd.policy.parents`, the programs the shipped ones in a bpffs
that goes with the lab.

    pod-a, pod-b, pod-c === eth0 of the node --- outside
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeVar

from bgpd.datapath import layout, loader
from bgpd.datapath.layout import Action, Peer, PolicyVerdict, Port, Rule, RuleFlag
from bgpd.datapath.links import Hook
from bgpd.model.attachment import AttachmentKey
from bgpd.model.endpoint import Endpoint, MacvlanLink, MacvlanMode
from bgpd.model.outcome import Outcome
from bgpd.netlink.links import Links
from bgpd.policy.filters import ParentFilters, actuator
from bgpd.policy.parents import ParentLinks, Programs, Stations, entries, install, programs
from bgpd.runtime.diff import Change, diff
from tests.fabric import frames
from tests.fabric.netns import Lab, Namespace
from tests.fabric.policy_node import link, verdicts

T = TypeVar("T")
CLASS = {"a": 101, "b": 102, "c": 103, "outside": 105}


@dataclass(frozen=True)
class Plan:
    """The addresses of one family, all on one wire."""

    version: int
    a: str
    b: str
    c: str
    node: str
    outside: str
    length: int

    def of(self, name: str) -> str:
        return str(getattr(self, name))


IPV4 = Plan(4, "198.51.100.10", "198.51.100.11", "198.51.100.12", "198.51.100.1", "198.51.100.2", 24)
IPV6 = Plan(6, "fd50::10", "fd50::11", "fd50::12", "fd50::1", "fd50::2", 64)
PLANS = (IPV4, IPV6)


def macvlan(node: Namespace, parent: str, owner: Namespace, mode: str, name: str = "eth0") -> None:
    """One of the node's interface `parent`, in another namespace, up."""
    node.ip(
        f"link add link {parent} name new type macvlan mode {mode}",
        f"link set new netns {owner.netns_name} name {name}",
    )
    owner.link_up(name)


class MacvlanPlace:
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

    def namespace(self, name: str) -> Namespace:
        return {"outside": self.outside, "node": self.node, **self.pods}[name]

    def mac(self, name: str) -> bytes:
        return link(self.namespace(name), "eth0")[1]

    def cookie(self, name: str) -> int:
        """Of a pod's namespace, as far as the kernel tells it."""

        def look() -> int:
            with Links() as links:
                return links.pod(self.pods[name].path, "eth0").cookie

        return self.node.call(look)

    @staticmethod
    def _address(namespace: Namespace, name: str) -> None:
        namespace.add_address("eth0", *(f"{plan.of(name)}/{plan.length}" for plan in PLANS))

    def here(self, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What it returns, run as the daemon of this node would."""
        return self.node.call(lambda: asyncio.run(function()))

    def inject(self, name: str, frame: bytes, *, protocol: int = 0, interface: str = "eth0") -> None:
        frames.send(self.namespace(name), interface, frame, protocol)


class MacvlanNode(MacvlanPlace):
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
        self._peers = {name: Peer(number) for name, number in CLASS.items()}
        for name in CLASS:
            self._write(name)

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
        stations = Stations(self.installed, self.directory)

        async def write() -> None:
            have = await stations.observe()
            want = entries(self.endpoints.values(), stations.own, {self.parent}, others)
            await stations.apply(diff(want, have, str, prune=True))

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

    # --- rules ----------------------------------------------------------------------------------------------------

    def isolate(self, name: str, *, egress: int = 0, ingress: int = 0, flags: int = 0) -> None:
        """Sets of rules, 0: not isolated; see `allow`."""
        self._peers[name] = Peer(CLASS[name], egress, ingress, flags)
        self._write(name)

    def _write(self, name: str) -> None:
        value = layout.PEER.pack(*self._peers[name])
        keys = [layout.policy_address(ip_address(plan.of(name))) for plan in PLANS]
        self.policy.maps["policy_peers"].update(dict.fromkeys(keys, value))

    def allow(self, number: int, *names: str, ports: Iterable[tuple[int, int]] = ()) -> None:
        """The set `number` allows these ends: everything, or only (protocol, port)."""
        pairs = list(ports)
        rule = Rule(number, Action.DENY if pairs else Action.ALLOW, RuleFlag.HAS_PORTS if pairs else 0, 0, number)
        one = layout.PORT.pack(*Port(Action.ALLOW, 0, 0, number))
        self.policy.maps["policy_ports"].update({layout.port_key(number, *pair): one for pair in pairs})
        keys = [layout.rule_key(number, CLASS[name]) for name in names]
        self.policy.maps["policy_rules"].update(dict.fromkeys(keys, layout.RULE.pack(*rule)))

    def forbid(self, number: int, *names: str) -> None:
        self.policy.maps["policy_rules"].delete([layout.rule_key(number, CLASS[name]) for name in names])

    def verdicts(self) -> dict[PolicyVerdict, int]:
        return verdicts(self.policy.maps["policy_verdicts"])
