"""Rules written straight into the maps of `policy`, as no daemon does it, for whatever kind of pods a node has.

What should become of packets is for the tests to say.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from typing import ClassVar

from bgpd.datapath import layout, loader
from bgpd.datapath.layout import Action, PolicyVerdict, Port, Rule, RuleFlag
from bgpd.datapath.maps import Map


class RulesByHand:
    """`classes` has the class of each end by its name."""

    policy: loader.Installed
    classes: ClassVar[Mapping[str, int]]

    def addresses(self, name: str) -> Iterable[str]:
        """Those by which an end is known."""
        raise NotImplementedError

    def isolate(self, name: str, *, egress: int = 0, ingress: int = 0, flags: int = 0) -> None:
        """Sets of rules, 0: not isolated; see `allow`."""
        value = layout.PEER.pack(self.classes[name], egress, ingress, flags)
        keys = [layout.policy_address(ip_address(each)) for each in self.addresses(name)]
        self.policy.maps["policy_peers"].update(dict.fromkeys(keys, value))

    def open(self) -> None:
        """Nobody is isolated (any more)."""
        for name in self.classes:
            self.isolate(name)

    def allow(self, number: int, *names: str, ports: Iterable[tuple[int, int]] = ()) -> None:
        """The set `number` allows these ends: everything, or only (protocol, port)."""
        pairs = list(ports)
        rule = Rule(number, Action.DENY if pairs else Action.ALLOW, RuleFlag.HAS_PORTS if pairs else 0, 0, number)
        one = layout.PORT.pack(*Port(Action.ALLOW, 0, 0, number))
        self.policy.maps["policy_ports"].update({layout.port_key(number, *pair): one for pair in pairs})
        keys = [layout.rule_key(number, self.classes[name]) for name in names]
        self.policy.maps["policy_rules"].update(dict.fromkeys(keys, layout.RULE.pack(*rule)))

    def forbid(self, number: int, *names: str) -> None:
        """The set no longer says anything of these."""
        self.policy.maps["policy_rules"].delete([layout.rule_key(number, self.classes[name]) for name in names])

    def verdicts(self) -> dict[PolicyVerdict, int]:
        """How many packets each verdict has met."""
        return verdicts(self.policy.maps["policy_verdicts"])


def verdicts(target: Map) -> dict[PolicyVerdict, int]:
    """What `policy_verdicts` has, summed over all CPUs; none that is zero."""
    found = {}
    for verdict in PolicyVerdict:
        value = target.lookup_each_cpu(struct.pack("=I", verdict))
        total = sum(layout.COUNTER.unpack(each)[0] for each in value)
        if total:
            found[verdict] = total
    return found
