"""What there is to say of the pods and policies of this node: who is isolated by what, and in which state. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from bgpd.datapath.layout import policy_address
from bgpd.model.attachment import AttachmentKey
from bgpd.model.brief import brief
from bgpd.model.endpoint import Endpoint, is_bridging
from bgpd.model.fault import FieldFault, dotted
from bgpd.model.notice import Notice, Reason, Reference
from bgpd.model.policy import Direction, Snapshot
from bgpd.model.prefix import Address
from bgpd.policy import wording
from bgpd.policy.entries import Contents, shares
from bgpd.policy.fit import Misfit

NOTICES = 25  # of a node at a time; a map that is too small for more has one cause, and `policy list` shows them all
UNSEEN = (
    "its macvlan is in mode bridge: what pods of this mode and node send to groups is not judged, and one may pose "
    "as another; attached again, it is in mode vepa"
)


class State(StrEnum):
    """How policy stands with an endpoint; of several the one that stands first here."""

    BLOCKED = "blocked"
    """It is not brought up to date, for a reason that does not go by itself."""
    CLOSED = "closed"
    """Nothing reaches or leaves it: Kubernetes has not shown the pod, so nobody knows which policies select it."""
    AUDIT = "audit"
    """What would be dropped is told, and passes: the namespace says so."""
    UNATTACHED = "unattached"
    """Enforced by the addresses that Kubernetes shows. It did not come through the plugin, so what it sends as is
    not checked."""
    ENFORCED = "enforced"


@dataclass(frozen=True, slots=True)
class Row:
    """An interface of a pod of this node, or a pod without one. `pod` empty: no kubelet has attached it.

    `isolated` has, for each direction, the policies that isolate it; None: none does.
    """

    pod: str
    endpoint: Endpoint | None
    addresses: tuple[Address, ...]
    isolated: Mapping[Direction, tuple[str, ...] | None]
    state: State
    why: str

    def shown(self) -> dict[str, Any]:
        """As `bgpd endpoints -o json` prints it."""
        there = self.endpoint
        return {
            "pod": self.pod or None,
            "attachment": str(there.key) if there else None,
            "interface": there.key.interface if there else None,
            "kind": there.link.kind.value if there else None,
            "link": there.link.name if there else None,
            "addresses": [str(address) for address in self.addresses],
            **{name.value: None if by is None else list(by) for name, by in self.isolated.items()},
            "state": self.state.value,
            "why": self.why,
        }


def rows(
    snapshot: Snapshot,
    contents: Contents,
    endpoints: Mapping[AttachmentKey, Endpoint],
    blocked: Mapping[AttachmentKey, str],
    unready: str,
    misfits: Sequence[Misfit] = (),
) -> Iterator[Row]:
    """By pod. `blocked`: why single endpoints cannot be policed; `unready`: why nothing gets into the kernel."""
    each = _standing(snapshot, endpoints, blocked, unready, misfits)
    for pod, endpoint, state, why in sorted(each, key=lambda it: (it[0], it[1] and it[1].key)):
        addresses = endpoint.addresses if endpoint is not None else snapshot.addresses(pod)
        yield Row(pod, endpoint, addresses, _isolated(contents, addresses), state, why)


def states(
    snapshot: Snapshot,
    endpoints: Mapping[AttachmentKey, Endpoint],
    blocked: Mapping[AttachmentKey, str],
    unready: str,
    misfits: Sequence[Misfit] = (),
) -> Mapping[State, int]:
    """How many of the rows are in which state, for a fraction of their price."""
    return Counter(state for _, _, state, _ in _standing(snapshot, endpoints, blocked, unready, misfits))


def _standing(
    snapshot: Snapshot,
    endpoints: Mapping[AttachmentKey, Endpoint],
    blocked: Mapping[AttachmentKey, str],
    unready: str,
    misfits: Sequence[Misfit],
) -> Iterator[tuple[str, Endpoint | None, State, str]]:
    """Every pod with each of its interfaces, or with None, in no order; how policy stands with it, and why."""
    held = {pod: misfit.reason for misfit in misfits for pod in misfit.pods}
    attached = set()
    for endpoint in endpoints.values():
        pod = str(endpoint.pod or "")
        attached.add(pod)
        reason = unready or blocked.get(endpoint.key, "") or held.get(pod, "")
        yield pod, endpoint, *_state(snapshot, pod, endpoint, reason)
    for pod in snapshot.local.keys() - attached:
        yield pod, None, *_state(snapshot, pod, None, unready or held.get(pod, ""))


def _state(snapshot: Snapshot, pod: str, endpoint: Endpoint | None, blocked: str) -> tuple[State, str]:
    if blocked:
        return State.BLOCKED, blocked
    if not pod:
        return State.ENFORCED, "attached by no kubelet: no policy selects it, and it sends as itself only"
    if pod not in snapshot.pods:
        return State.CLOSED, "Kubernetes has not shown the pod yet"
    if pod.partition("/")[0] in snapshot.audited:
        return State.AUDIT, "what would be dropped passes, and `bgpd flows --verdict audited` shows it"
    if endpoint is None:
        address = "by its addresses" if snapshot.addresses(pod) else "once Kubernetes shows an address of it"
        return State.UNATTACHED, f"policed {address}; what it sends as is not checked"
    return State.ENFORCED, UNSEEN if is_bridging(endpoint.link) else ""


def _isolated(contents: Contents, addresses: tuple[Address, ...]) -> dict[Direction, tuple[str, ...] | None]:
    peers = (contents.peers.get(policy_address(address)) for address in addresses)
    peer = next((each for each in peers if each is not None), None)
    sets = {
        Direction.INGRESS: peer.ingress_set if peer is not None else 0,
        Direction.EGRESS: peer.egress_set if peer is not None else 0,
    }
    return {direction: contents.sets[number].policies if number else None for direction, number in sets.items()}


def policies(snapshot: Snapshot, contents: Contents, misfits: Sequence[Misfit] = ()) -> list[dict[str, Any]]:
    """Those that select a pod of this node, as `bgpd policy list -o json` prints them."""
    blocked = {misfit.policy: misfit for misfit in misfits}
    local: dict[str, list[str]] = {}
    for key in sorted(snapshot.local):
        local.setdefault(key.partition("/")[0], []).append(key)
    entries = shares(contents)
    found = []
    for name, policy in sorted(snapshot.policies.items()):
        inside = ((key, snapshot.pods.get(key)) for key in local.get(policy.namespace, ()))
        pods = [key for key, pod in inside if pod is not None and policy.pods.selects(pod.labels)]
        if pods:
            rules, misfit = wording.sentences(policy), blocked.get(name)
            found.append(
                {"policy": name, "pods": pods, **rules, "entries": entries[name],
                 "problems": [*([misfit.reason] if misfit else []), *brief(policy.faults, _fault)],
                 "blocked": _blocked(misfit) if misfit else None}
            )  # fmt: skip
    return found


def notices(misfits: Sequence[Misfit]) -> dict[str, Notice]:
    """What users of the cluster should know, by policy: the first that do not fit, for each of them costs writes.

    Nothing of a policy that is gone while its pods are not yet judged without it.
    """
    there = [misfit for misfit in misfits if misfit.uid]
    return {
        misfit.policy: Notice(_reference(misfit), Reason.POLICY_BLOCKED, "Enforce", misfit.notice)
        for misfit in there[:NOTICES]
    }


def _reference(misfit: Misfit) -> Reference:
    namespace, _, name = misfit.policy.partition("/")
    return Reference("networking.k8s.io/v1", "NetworkPolicy", namespace, name, misfit.uid)


def _blocked(misfit: Misfit) -> dict[str, Any]:
    return {
        "map": misfit.place,
        "entries": misfit.entries,
        "needed": misfit.needed,
        "capacity": misfit.capacity,
        "pods": {pod: fate.name.lower() for pod, fate in sorted(misfit.pods.items())},
    }


def _fault(fault: FieldFault) -> str:
    return f"{dotted(fault.path)}: {fault.problem}"
