"""Decides which destinations see a pod's own address, and which address of the node the others see. Pure.

Input: the section `masquerade`, the document, the node as Kubernetes describes it. Output, per family: the list as
the map is to hold it, and the rule for all traffic of this node's pods. The list is exactly the document's, masked
and without repetitions, with the link-local ranges, so that it equals what Cilium has in its map for the same
document. What keeps its address for other reasons stands apart, in the rule: pods of the cluster, the node itself.

Where pods of other nodes live is told by `masquerade.clusterCIDRs`, not learnt from their Nodes. Every node would
have to watch all Nodes for that, and in a cluster of 5,000 the API server then sends each status update (some 10 KB,
every five minutes at least) 5,000 times: 0.8 GB/s to learn what one line says, which seldom changes and which the
controller manager is given in the same words (`--cluster-cidr`).
"""

from __future__ import annotations

from dataclasses import dataclass

from bgpd.config.field import SnatSource
from bgpd.config.masquerade import Masquerade
from bgpd.masq.match import PrefixTable
from bgpd.model.lpm import LpmKey
from bgpd.model.masq import LINK_LOCAL, MasqDocument, Rules
from bgpd.model.node import Node
from bgpd.model.outcome import Blocked
from bgpd.model.prefix import Address, Prefix, family_of, sort_key


@dataclass(frozen=True, slots=True)
class Rule:
    """What is translated: traffic from `sources` to anywhere but the list, `pod_cidrs` and `node_addresses`.

    `snat_to` None: the address of the interface it leaves by, which the kernel knows when it comes to it.
    """

    sources: tuple[Prefix, ...]
    pod_cidrs: tuple[Prefix, ...]
    node_addresses: tuple[Address, ...]
    snat_to: Address | None


@dataclass(frozen=True, slots=True)
class FamilyPlan:
    """`rule` None: this node has no such pod CIDR."""

    entries: frozenset[LpmKey]
    rule: Rule | Blocked | None


@dataclass(frozen=True, slots=True)
class MasqPlan:
    """`v6` None: that family is none of our business. `complete`: what is not in the list may leave the kernel.

    `translates`: we do what the rules say. With `map: cilium` its datapath does, by rules of its own.
    """

    v4: FamilyPlan
    v6: FamilyPlan | None
    complete: bool
    translates: bool

    def of(self, version: int) -> FamilyPlan | None:
        return self.v4 if version == 4 else self.v6


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a flow from a pod of this node to `address`. `entry` is what decided, when a prefix did.

    `kept` None: nobody can say, for the reason given.
    """

    address: Address
    kept: bool | None
    reason: str
    entry: Prefix | None = None
    snat_to: str = ""


def rules_of(masquerade: Masquerade) -> Rules:
    """How to read the document under this configuration."""
    return Rules(masquerade.compat, masquerade.ipv6_wanted, masquerade.nomasq_all_reserved_ranges)


def plan(masquerade: Masquerade, document: MasqDocument | None, node: Node | None) -> MasqPlan:
    """The whole wanted state. `document` None: there was never a good one, so the kernel keeps what it has.

    `node` None: Kubernetes has not shown it. The list does not depend on it.
    """
    return MasqPlan(
        _family(masquerade, document, node, 4),
        _family(masquerade, document, node, 6) if masquerade.ipv6_wanted else None,
        complete=document is not None,
        translates=masquerade.translates,
    )


def explain(wanted: MasqPlan, address: Address) -> Verdict:
    """Why a flow from a pod of this node to `address` keeps the pod's address or does not."""
    family = wanted.of(address.version)
    if family is None:
        return Verdict(address, True, "masquerade.ipv6 is off, so IPv6 is left alone")
    entry = PrefixTable(key.prefix for key in family.entries).match(address)
    if entry is not None:
        return Verdict(address, True, "in the list", entry)
    if not wanted.translates:
        return Verdict(address, None, "not in the list; what else keeps its address is for Cilium to say")
    if isinstance(family.rule, Blocked):
        return Verdict(address, None, family.rule.reason)
    if family.rule is None:
        return Verdict(address, True, f"this node has no {family_of(address)} pod CIDR to masquerade")
    if address.is_multicast:
        return Verdict(address, True, "multicast, which nobody translates")
    if address in family.rule.node_addresses:
        return Verdict(address, True, "the node itself")
    pods = PrefixTable(family.rule.pod_cidrs).match(address)
    if pods is not None:
        return Verdict(address, True, "pods of the cluster", pods)
    snat_to = str(family.rule.snat_to or "the address of the interface it leaves by")
    return Verdict(address, False, "not in the list", snat_to=snat_to)


def _family(masquerade: Masquerade, document: MasqDocument | None, node: Node | None, version: int) -> FamilyPlan:
    return FamilyPlan(_entries(document, version), _rule(masquerade, node, version))


def _entries(document: MasqDocument | None, version: int) -> frozenset[LpmKey]:
    if document is None:
        return frozenset(LpmKey.of(prefix) for prefix in LINK_LOCAL if prefix.version == version)
    return document.kept[version]


def _rule(masquerade: Masquerade, node: Node | None, version: int) -> Rule | Blocked | None:
    if node is None:
        return Blocked("Kubernetes has not shown this node yet, so its pod CIDRs are not known")
    sources = tuple(prefix for prefix in node.pod_cidrs if prefix.version == version)
    if not sources:
        return None
    cluster = {prefix for prefix in masquerade.cluster_cidrs if prefix.version == version}
    addresses = tuple(address for address in node.internal_ips if address.version == version)
    snat_to = masquerade.snat_address.ipv4 if version == 4 else masquerade.snat_address.ipv6
    if snat_to is SnatSource.INTERNAL_IP and not addresses:
        return Blocked(
            f"masquerade.snatAddress.ipv{version} is InternalIP and the node shows no IPv{version} InternalIP; "
            "give an address, or uplink"
        )
    return Rule(
        sources=tuple(sorted(sources, key=sort_key)),
        pod_cidrs=tuple(sorted({*cluster, *sources}, key=sort_key)),
        node_addresses=addresses,
        snat_to=_resolved(snat_to, addresses),
    )


def _resolved(snat_to: Address | SnatSource, internal_ips: tuple[Address, ...]) -> Address | None:
    if isinstance(snat_to, SnatSource):
        return internal_ips[0] if snat_to is SnatSource.INTERNAL_IP else None
    return snat_to
