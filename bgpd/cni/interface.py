"""Decides what a pod's interface is to whoever enforces policy on it, and which interface an attachment means. Pure.

    veth      judged at its end on the node, which is a port of a bridge or routed
    macvlan   judged at its parent
    ipvlan    judged at its parent, and in its pod what others of the parent send

Anything else is refused by the name of its kind. A pod with CAP_NET_ADMIN can rename its interfaces, change their MAC
addresses and make new ones: of a pod that runs, only what the node has of an interface is evidence. While an ADD is
under way there is no such pod, and what the kernel shows is what the plugins made.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TypeAlias

from bgpd.model.attachment import NAMED, Attachment, AttachmentKey
from bgpd.model.endpoint import (
    Endpoint,
    EndpointLink,
    IpvlanLink,
    IpvlanMode,
    MacvlanLink,
    MacvlanMode,
    VethLink,
)
from bgpd.netlink.link import Link, PodLink

_IPVLAN_F_VEPA = 2  # linux/if_link.h


class RefusedError(Exception):
    """Traffic of this interface cannot be judged; the text names interface, kind and remedy."""


def attached(attachment: Attachment, seen: PodLink) -> Endpoint:
    """What an ADD makes. RefusedError: the interface is unfit, or not what the configuration or the result says."""
    name, mode, network = attachment.key.interface, attachment.mode, attachment.key.network
    if mode in NAMED and network != mode.value:
        raise RefusedError(f'the network is named "{network}" and has chaining-mode "{mode}": give both the same')
    link = endpoint_link(attachment, seen)
    if mode.kind is not None and mode.kind is not link.kind:
        raise RefusedError(
            f'chaining-mode "{mode}" is for {mode.kind}, and {name} is a {link.kind}: '
            'set "chaining-mode" to what the main plugin makes, or leave it out and do not name the network so'
        )
    if attachment.mac and attachment.mac != seen.inside.mac:
        raise RefusedError(
            f"{name} has the MAC address {seen.inside.mac}, and prevResult says {attachment.mac}: "
            "a plugin of the chain changed it without saying so"
        )
    return _endpoint(attachment, seen, link)


def adopted(attachment: Attachment, seen: PodLink) -> Endpoint:
    """What is found of a pod that runs: with the MAC address that it was given, if anybody wrote that down.

    What the chaining mode says is not asked: the pod is there.
    """
    return _endpoint(attachment, seen, endpoint_link(attachment, seen))


def _endpoint(attachment: Attachment, seen: PodLink, link: EndpointLink) -> Endpoint:
    mac = attachment.mac or seen.inside.mac
    return Endpoint(attachment.key, attachment.pod, mac, attachment.addresses, link)


def endpoint_link(attachment: Attachment, seen: PodLink) -> EndpointLink:
    """Where traffic of the interface is seen. RefusedError: nowhere that we can judge it."""
    inside, outside = seen.inside, seen.outside
    if inside.kind not in ("veth", "macvlan", "ipvlan"):
        kind = f"of kind {inside.kind}" if inside.kind else "hardware"
        raise RefusedError(f"{inside.name} is {kind}: traffic can be judged of veth, macvlan and ipvlan only")
    if outside is None:
        what = "other end" if inside.kind == "veth" else "parent"
        raise RefusedError(f"{inside.name} is a {inside.kind} whose {what} is not in the node's network namespace")
    if inside.kind == "macvlan":
        return _macvlan_link(inside, outside, seen.cookie)
    if inside.kind == "ipvlan":
        return _ipvlan_link(inside, outside, Path(attachment.netns), seen.cookie)
    return _veth_link(outside, seen.master)


def _macvlan_link(inside: Link, parent: Link, netns: int) -> MacvlanLink:
    try:
        return MacvlanLink(parent.index, parent.name, MacvlanMode(inside.mode), netns)
    except ValueError:
        raise RefusedError(f"{inside.name} is a macvlan of mode {inside.mode}, which is not known here") from None


def _ipvlan_link(inside: Link, parent: Link, place: Path, netns: int) -> IpvlanLink:
    try:
        mode = IpvlanMode(inside.mode)
    except ValueError:
        raise RefusedError(f"{inside.name} is an ipvlan of mode {inside.mode}, which is not known here") from None
    reflecting = bool(inside.flags & _IPVLAN_F_VEPA)
    return IpvlanLink(parent.index, parent.name, mode, place, inside.index, netns, reflecting)


def _veth_link(outside: Link, master: Link | None) -> VethLink:
    if master is not None and master.kind != "bridge":
        raise RefusedError(
            f"{outside.name} is a port of {master.name}, which is of kind {master.kind}: "
            "traffic can be judged on bridges, and of what is routed"
        )
    return VethLink(outside.index, outside.name, master.index if master else None)


# --- what became of it ------------------------------------------------------------------------------------


def differences(endpoint: Endpoint, then: PodLink, now: PodLink | None) -> tuple[str, ...]:
    """What of the interface is not as it was when it was attached.

    `now` None: it is gone, and none has its name. Addresses are not compared: the plugin that gave them does that.
    """
    name = then.inside.name
    if now is None:
        return (f"interface {name} is gone",)
    if (now.netns, now.inside.index) != (then.netns, then.inside.index):
        return (f"interface {name} is another than the one that was attached",)
    texts = (
        ("its name", name, now.inside.name),
        (f"the MAC address of {name}", endpoint.mac, now.inside.mac),
        (f"the mode of {name}", _mode(then.inside), _mode(now.inside)),
    )
    links = (
        (f"what {name} leads to", then.outside, now.outside),
        (f"what {_name(then.outside)} is a port of", then.master, now.master),
    )
    changed = [(what, old, new) for what, old, new in texts if old != new]
    moved = [(what, _name(old), _name(new)) for what, old, new in links if _index(old) != _index(new)]
    return tuple(f"{what}: was {old}, is {new}" for what, old, new in (*changed, *moved))


def is_there(then: PodLink, outside: Link | None) -> bool:
    """Whether what the node has of the interface is still the one that it was.

    A macvlan or ipvlan goes with its parent; what else becomes of it, only its pod's namespace knows.
    """
    if then.inside.kind != "veth" or outside is None:
        return outside is not None
    return (outside.kind, outside.other, outside.other_netns) == ("veth", then.inside.index, then.netns)


def _mode(link: Link) -> str:
    modes = IpvlanMode if link.kind == "ipvlan" else MacvlanMode
    try:
        return modes(link.mode).name.lower()
    except ValueError:
        return str(link.mode)


def _name(link: Link | None) -> str:
    return link.name if link else "nothing on this node"


def _index(link: Link | None) -> int | None:
    return link.index if link else None


# --- which one it is --------------------------------------------------------------------------------------


def assign(claims: Collection[Attachment], links: Collection[PodLink]) -> Mapping[AttachmentKey, PodLink]:
    """Which interface of a network namespace each attachment in it means; one that is missing has none.

    The end that the result names on the node comes first, for no pod can rename that; then what has the name and the
    MAC address, or one of them. Several attachments may mean one interface: runtime and Multus each remember theirs.
    """
    by_name: dict[str, list[Attachment]] = {}
    for claim in claims:
        by_name.setdefault(claim.key.interface, []).append(claim)
    ours = [each for each in links if each.outside is not None]
    found: dict[str, PodLink] = {}
    evidence: tuple[_Fits, ...] = (_named_end, _exact, _same_mac, _same_name, _sibling)
    for among, fits in (*((ours, each) for each in evidence), (links, _same_name)):
        for name in sorted(by_name.keys() - found.keys()):
            free = [each for each in among if each not in found.values()]
            if (link := _first(free, fits, by_name[name])) is not None:
                found[name] = link
    return {claim.key: link for name, link in found.items() for claim in _believed(by_name[name], link)}


def _believed(claims: list[Attachment], link: PodLink) -> list[Attachment]:
    """Where one attachment has the interface's MAC address, another with another one is of a pod that is no more.

    Paths are used again: "/proc/PID/ns/net" is one that runtimes use.
    """
    if any(claim.mac == link.inside.mac for claim in claims):
        return [claim for claim in claims if claim.mac in ("", link.inside.mac)]
    return claims


def _first(links: list[PodLink], fits: _Fits, claims: list[Attachment]) -> PodLink | None:
    return next((link for link in links if any(fits(claim, link) for claim in claims)), None)


_Fits: TypeAlias = Callable[[Attachment, PodLink], bool]


def _named_end(claim: Attachment, link: PodLink) -> bool:
    return link.inside.kind == "veth" and _name(link.outside) in claim.host_interfaces


def _exact(claim: Attachment, link: PodLink) -> bool:
    return _same_name(claim, link) and claim.mac in ("", link.inside.mac)


def _same_mac(claim: Attachment, link: PodLink) -> bool:
    return claim.mac == link.inside.mac


def _same_name(claim: Attachment, link: PodLink) -> bool:
    return claim.key.interface == link.inside.name


def _sibling(claim: Attachment, link: PodLink) -> bool:
    """A pod can make interfaces beside its own, and delete that one; it cannot make a veth that leads to the node."""
    return link.inside.kind in ("macvlan", "ipvlan")
