"""How policy stands with the pods of a node, in each of the states that one can be in."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from ipaddress import ip_address

from bgpd.model.attachment import AttachmentKey, PodName
from bgpd.model.endpoint import Endpoint, MacvlanLink, MacvlanMode, VethLink
from bgpd.model.fault import FieldFault
from bgpd.model.notice import Notice, Reason, Reference
from bgpd.model.policy import Direction, Snapshot
from bgpd.policy.compile import Compiler
from bgpd.policy.fit import Fate, Misfit
from bgpd.policy.report import NOTICES, Row, State, notices, policies, rows, states
from tests.unit.test_policy_evaluate import CLIENT, WEB, allow, cluster, into, label, out

KEY = AttachmentKey("cluster", "c1", "eth0")
LINK = VethLink(7, "veth7", None)


def endpoint(pod: str | None, address: str, key: AttachmentKey = KEY) -> Endpoint:
    name = PodName(*pod.split("/")) if pod else None
    return Endpoint(key, name, "02:00:00:00:00:01", (ip_address(address),), LINK)


def found(snapshot: Snapshot, *endpoints: Endpoint, blocked: str = "", unready: str = "") -> dict[str, Row]:
    contents = Compiler().advance(snapshot)[-1]
    by_key = {each.key: each for each in endpoints}
    return {row.pod: row for row in rows(snapshot, contents, by_key, dict.fromkeys(by_key, blocked), unready)}


def test_what_came_through_the_plugin_is_enforced_and_what_did_not_is_not_held_to_its_addresses() -> None:
    shown = found(cluster(local=("x/web", "x/client")), endpoint("x/web", WEB))
    assert (shown["x/web"].state, shown["x/web"].why) == (State.ENFORCED, "")
    assert shown["x/client"].state is State.UNATTACHED
    assert shown["x/client"].addresses == (ip_address(CLIENT), ip_address("fd00::2"))
    assert shown["x/web"].shown() | {"why": ""} == {
        "pod": "x/web",
        "attachment": "cluster,c1,eth0",
        "interface": "eth0",
        "kind": "veth",
        "link": "veth7",
        "addresses": [WEB],
        "ingress": None,
        "egress": None,
        "state": "enforced",
        "why": "",
    }


def test_a_macvlan_in_bridge_mode_says_what_is_not_judged_of_it() -> None:
    for mode in (MacvlanMode.BRIDGE, MacvlanMode.VEPA):
        macvlan = replace(endpoint("x/web", WEB), link=MacvlanLink(2, "eth0", mode))
        row = found(cluster(local=("x/web",)), macvlan)["x/web"]
        assert row.state is State.ENFORCED
        assert ("in mode bridge" in row.why) is (mode is MacvlanMode.BRIDGE)


def test_each_direction_names_the_policies_that_isolate() -> None:
    snapshot = cluster(into(allow()), into(name="q"), out(pods=label("app", "client")), local=("x/web", "x/client"))
    shown = found(snapshot)
    assert shown["x/web"].isolated == {Direction.INGRESS: ("x/p", "x/q"), Direction.EGRESS: None}
    assert shown["x/client"].isolated == {Direction.INGRESS: ("x/p", "x/q"), Direction.EGRESS: ("x/out",)}


def test_a_pod_that_kubernetes_has_not_shown_is_closed() -> None:
    """By no policy: nobody knows which select it."""
    snapshot = replace(cluster(local=()), local={"x/new": (ip_address("10.0.0.77"),)})
    shown = found(snapshot, endpoint("x/new", "10.0.0.77"))
    assert shown["x/new"].state is State.CLOSED
    assert shown["x/new"].isolated == {Direction.INGRESS: (), Direction.EGRESS: ()}


def test_audit_comes_before_unattached_and_blocked_before_all() -> None:
    snapshot = replace(cluster(into(), local=("x/web",)), audited=frozenset({"x"}))
    assert found(snapshot)["x/web"].state is State.AUDIT
    blocked = found(snapshot, endpoint("x/web", WEB), blocked="its link is a bond now")
    assert (blocked["x/web"].state, blocked["x/web"].why) == (State.BLOCKED, "its link is a bond now")
    assert found(snapshot, unready="no bpffs")["x/web"].why == "no bpffs"


def test_every_interface_of_a_pod_counts_in_their_order() -> None:
    """Counted alone as in the rows."""
    second = AttachmentKey("cluster", "c1", "net1")
    snapshot = cluster(local=("x/web", "x/client"))
    both = {each: endpoint("x/web", WEB, each) for each in (second, KEY)}
    blocked = {second: "its link is a bond now"}
    shown = list(rows(snapshot, Compiler().advance(snapshot)[-1], both, blocked, ""))
    assert [(row.pod, row.endpoint and row.endpoint.key) for row in shown] == [
        ("x/client", None), ("x/web", KEY), ("x/web", second)
    ]  # fmt: skip
    assert states(snapshot, both, blocked, "") == Counter(row.state for row in shown)


def test_what_no_kubelet_attached_is_shown_without_a_pod() -> None:
    (row,) = found(cluster(local=()), endpoint(None, "10.0.0.50")).values()
    assert (row.pod, row.state) == ("", State.ENFORCED)
    assert row.shown()["attachment"] == "cluster,c1,eth0"


def test_policies_count_where_they_select_a_pod() -> None:
    """With what in them cannot be read, and the entries that their rules come to."""
    flaw = FieldFault(("spec", "ingress", 1, "from"), "must be a list, not 3")
    faulty = replace(into(allow(), name="faulty", pods=label("app", "web")), faults=(flaw,))
    elsewhere = replace(into(), namespace="y")
    snapshot = cluster(faulty, elsewhere, local=("x/web", "x/client"))
    (row,) = policies(snapshot, Compiler().advance(snapshot)[-1])
    assert (row["policy"], row["pods"]) == ("x/faulty", ["x/web"])
    assert row["entries"] > 0
    assert row["problems"] == ["spec.ingress[1].from: must be a list, not 3"]


def misfit(name: str, uid: str = "1-2-3") -> Misfit:
    return Misfit(f"x/{name}", uid, "policy_ranges", 10, 9, 8, f"x/{name} (8)", {"x/web": Fate.CLOSED})


def test_a_notice_for_each_policy_that_does_not_fit() -> None:
    """Of the policy itself, with all that `policy list` says; not of one that is gone, and not of any number."""
    big = misfit("big")
    reference = Reference("networking.k8s.io/v1", "NetworkPolicy", "x", "big", "1-2-3")
    wanted = {"x/big": Notice(reference, Reason.POLICY_BLOCKED, "Enforce", big.notice)}
    assert notices([big, misfit("gone", uid="")]) == wanted
    assert notices([]) == {}
    names = [f"p{each}" for each in range(NOTICES + 1)]
    assert list(notices([misfit(name) for name in names])) == [f"x/{name}" for name in names[:NOTICES]]
