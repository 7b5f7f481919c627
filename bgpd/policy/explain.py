"""Says what becomes of a flow and why: from the kernel's maps, beside what the policies say. Pure but for `Lookup`.

The kernel's answer is the one that counts (`walk`). The reference (`evaluate`) gives the reasons, and is what the
kernel is held to: where the two differ, the kernel has not been brought up to date, or bgpd has a defect.

Services are not known here: they are translated before anybody judges, so the server is the pod behind one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from bgpd.model.policy import Direction, Protocol, RuleRef, Snapshot
from bgpd.model.prefix import Address, PrefixError, parse_address
from bgpd.policy import wording
from bgpd.policy.evaluate import Decision, Flow, Near, Reason, evaluate, near, owner
from bgpd.policy.walk import Lookup, Side, walk

LAST_PORT = 65535
_PORT = re.compile(r"(?P<end>.+):(?P<port>\d{1,5})(?:/(?P<protocol>\w+))?", re.ASCII)
_NOT_ASKED = {Reason.OWN_NODE: "what the node itself sends and receives is not forwarded, so nobody is asked"}


class QuestionError(Exception):
    """What was asked cannot be understood, or is of nobody; the text says what would be right."""


@dataclass(frozen=True, slots=True)
class End:
    """One end of a flow. `pod` empty: an address that no pod has. `elsewhere`: the node of a pod of another one."""

    addresses: tuple[Address, ...]
    pod: str = ""
    elsewhere: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """`port` None: a ping. Client and server have addresses of one family at least."""

    client: End
    server: End
    protocol: Protocol
    port: int | None

    def flows(self) -> Iterator[Flow]:
        """One for each family, of the first address that each end has of it."""
        for version in (4, 6):
            one, other = (
                next((each for each in end.addresses if each.version == version), None)
                for end in (self.client, self.server)
            )
            if one is not None and other is not None:
                protocol = wording.ICMP[version] if self.port is None else self.protocol
                yield Flow(one, other, protocol, self.port)


def question(snapshot: Snapshot, client: str, server: str) -> Question:
    """From `SRC` and `DST[:PORT/PROTO]`, each a pod as namespace/name or an address. QuestionError."""
    server, protocol, port = _with_port(server)
    asked = Question(_end(snapshot, client), _end(snapshot, server), protocol, port)
    if not any(asked.flows()):
        raise QuestionError(f"{client} and {server} have no addresses of one family")
    return asked


def _with_port(text: str) -> tuple[str, Protocol, int | None]:
    """An IPv6 address is in brackets if a port follows."""
    found = None if _is_address(text) else _PORT.fullmatch(text)
    if found is None:
        return text, Protocol.TCP, None
    name = (found["protocol"] or "tcp").upper()
    if name not in Protocol.__members__ or not 1 <= int(found["port"]) <= LAST_PORT:
        raise QuestionError(f"{text!r}: a port is like :80/tcp, :53/udp or :3868/sctp, from 1 to {LAST_PORT}")
    return found["end"], Protocol[name], int(found["port"])


def _is_address(text: str) -> bool:
    try:
        parse_address(text)
    except PrefixError:
        return False
    return True


def _end(snapshot: Snapshot, text: str) -> End:
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if _is_address(bare):
        address = parse_address(bare)
        return _of_pod(snapshot, owner(snapshot, address) or "", (address,))
    if not re.fullmatch(r"[a-z0-9.-]+/[a-z0-9.-]+", text):
        raise QuestionError(f"{text!r} is neither namespace/name of a pod nor an address; write IPv6 as [fd00::1]:80")
    pod = snapshot.pods.get(text)
    if pod is None and text not in snapshot.local:
        raise QuestionError(f"there is no pod {text} in Kubernetes")
    addresses = pod.ips if pod is not None and pod.host_network else snapshot.addresses(text)
    if not addresses:
        raise QuestionError(f"pod {text} has no address" + (", it has ended" if pod and pod.finished else " yet"))
    return _of_pod(snapshot, text, addresses)


def _of_pod(snapshot: Snapshot, key: str, addresses: tuple[Address, ...]) -> End:
    pod = snapshot.pods.get(key)
    node = pod.node or "no node yet" if pod is not None and key not in snapshot.local else ""
    return End(addresses, key, "" if pod is not None and pod.host_network else node)


# --- answers ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Verdict:
    """One direction of one flow, by the kernel and by the policies. `disagreement` empty: they say the same."""

    direction: Direction
    kernel: Side
    decision: Decision
    near: Near
    audited: bool
    disagreement: str

    @property
    def passes(self) -> bool:
        return self.decision.reason in _NOT_ASKED or self.kernel.allowed or self.kernel.audited


@dataclass(frozen=True, slots=True)
class Answer:
    flow: Flow
    verdicts: tuple[Verdict, ...]


def answers(lookup: Lookup, snapshot: Snapshot, cookies: Mapping[int, RuleRef], asked: Question) -> list[Answer]:
    """`cookies`: the rules that the kernel knows by number."""
    found = []
    for flow in asked.flows():
        around = _around(snapshot, flow)
        judged = evaluate(around, flow)
        verdicts = tuple(
            _verdict(lookup, around, cookies, flow, direction, decision)
            for direction, decision in ((Direction.EGRESS, judged.egress), (Direction.INGRESS, judged.ingress))
        )
        found.append(Answer(flow, verdicts))
    return found


def _around(snapshot: Snapshot, flow: Flow) -> Snapshot:
    """Without the pods that have neither address: the reference looks through all of them for every peer."""
    keys = {
        key
        for key in snapshot.pods.keys() | snapshot.local.keys()
        if not {flow.client, flow.server}.isdisjoint(snapshot.addresses(key))
    }
    pods = {key: pod for key in keys if (pod := snapshot.pods.get(key)) is not None}
    return replace(snapshot, pods=pods, local={key: snapshot.local[key] for key in keys & snapshot.local.keys()})


def _verdict(
    lookup: Lookup,
    snapshot: Snapshot,
    cookies: Mapping[int, RuleRef],
    flow: Flow,
    direction: Direction,
    decision: Decision,
) -> Verdict:
    kernel = walk(lookup, flow, direction)
    audited = decision.pod.partition("/")[0] in snapshot.audited
    difference = _difference(kernel, decision, cookies, audited)
    return Verdict(direction, kernel, decision, near(snapshot, flow, direction), audited, difference)


def _difference(kernel: Side, decision: Decision, cookies: Mapping[int, RuleRef], audited: bool) -> str:
    if decision.reason in _NOT_ASKED:
        return ""
    if kernel.allowed != decision.allowed:
        words = {True: "lets it pass", False: "denies it"}
        return f"the kernel {words[kernel.allowed]}, and {decision.reason}"
    if kernel.cookie and kernel.allowed and cookies.get(kernel.cookie) not in decision.rules:
        return (
            f"the kernel lets it pass by {cookies.get(kernel.cookie, 'a rule that is gone')}, which does not allow it"
        )
    if not kernel.allowed and kernel.audited != audited:
        return f"audit mode is {'on' if audited else 'off'}, and in the kernel it is not"
    return ""


# --- as JSON ----------------------------------------------------------------------------------------------


def shown(answer: Answer, asked: Question, cookies: Mapping[int, RuleRef], snapshot: Snapshot) -> dict[str, Any]:
    """What `bgpd policy explain -o json` prints of one flow."""
    flow = answer.flow
    elsewhere = {Direction.EGRESS: asked.client.elsewhere, Direction.INGRESS: asked.server.elsewhere}
    verdicts = {
        verdict.direction.value: _shown(verdict, cookies, snapshot, elsewhere[verdict.direction])
        for verdict in answer.verdicts
    }
    return {
        "client": {"address": str(flow.client), "pod": asked.client.pod or None},
        "server": {"address": str(flow.server), "pod": asked.server.pod or None},
        "protocol": wording.protocol_name(flow.protocol),
        "port": flow.port,
        "passes": all(verdict.passes for verdict in answer.verdicts),
        **verdicts,
    }


def _shown(verdict: Verdict, cookies: Mapping[int, RuleRef], snapshot: Snapshot, elsewhere: str) -> dict[str, Any]:
    """`elsewhere`: the node that judges this direction instead of this one; empty: none does."""
    kernel, decision = verdict.kernel, verdict.decision
    fate = "passes" if verdict.passes else "dropped"
    asked = kernel.set and decision.reason not in _NOT_ASKED
    rule = cookies.get(kernel.cookie) if asked and kernel.cookie else None
    return {
        "verdict": "audited" if verdict.passes and asked and not kernel.allowed else fate,
        "judgedHere": not elsewhere,
        "why": f"judged on {elsewhere}" if elsewhere else _NOT_ASKED.get(decision.reason, decision.reason.value),
        "rule": str(rule) if rule is not None and kernel.allowed else None,
        "policies": list(decision.policies),
        "wouldChange": list(_changes(verdict, snapshot)),
        "kernel": {"verdict": kernel.verdict.name.lower(), "set": kernel.set, "class": kernel.of_class},
        "disagreement": verdict.disagreement or None,
    }


def _changes(verdict: Verdict, snapshot: Snapshot) -> Iterator[str]:
    """What would turn the verdict, the nearest first."""
    decision, direction = verdict.decision, verdict.direction
    match decision.reason:
        case Reason.NOT_ISOLATED:
            yield f"any policy that selects {decision.pod} for {direction} isolates it"
        case Reason.UNKNOWN_POD:
            yield "it is closed until Kubernetes shows its labels"
        case Reason.RULE:
            yield f"it would be denied without {' and '.join(map(str, decision.rules))}"
        case Reason.NO_RULE:
            for ref in verdict.near.of_peer:
                yield f"{ref} speaks of this peer, but of other ports: {wording.ports(_rule(snapshot, ref))}"
            for ref in verdict.near.of_port:
                yield f"{ref} speaks of this port, but of other peers: {wording.peers(_rule(snapshot, ref))}"
            names = ", ".join(decision.policies)
            yield f"a rule in any policy that selects {decision.pod} for {direction} would do; now: {names}"


def _rule(snapshot: Snapshot, ref: RuleRef) -> Any:
    rules = snapshot.policies[ref.policy].rules(ref.direction)
    assert rules is not None, "the reference names rules that are there"
    return rules[ref.index]


def notes(asked: Question) -> Iterator[str]:
    """What this node cannot say."""
    for end, direction in ((asked.client, Direction.EGRESS), (asked.server, Direction.INGRESS)):
        if end.elsewhere:
            yield f"{end.pod} is on {end.elsewhere}: its {direction} is judged there, ask bgpd there too"
        elif not end.pod:
            text = f"{end.addresses[0]} is no pod's address"
            yield text if direction is Direction.EGRESS else f"{text}; of a Service, name the pod behind it"
    if asked.port is None:
        yield "no port is given: this is about a ping"
