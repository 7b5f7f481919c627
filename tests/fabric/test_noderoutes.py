"""Node routes: namespaces on one switch and behind a router, the real daemon on each, pods that ping."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from bgpd.model.noderoute import DEVICE
from tests.fabric.netns import Lab
from tests.fabric.node import BgpdNode
from tests.fabric.noderoutes_site import CABLE, Member, NodeRoutesSite
from tests.fabric.process import poll

pytestmark = pytest.mark.needs("ping")


@pytest.fixture
def seed(lab: Lab) -> NodeRoutesSite:
    """The three nodes of the article, not started: 192.168.1.200 to .202, a /24 each."""
    site = NodeRoutesSite(lab, "host-gw")
    site.add("master", 1, 200, "10.244.0.0/24")
    site.add("node1", 1, 201, "10.244.3.0/24")
    site.add("node2", 1, 202, "10.244.1.0/24")
    return site


def _dual(lab: Lab, mode: str) -> NodeRoutesSite:
    """Two nodes on the switch, one behind the router; a CIDR of each family, the second has two of IPv4."""
    site = NodeRoutesSite(lab, mode)
    site.add("a", 1, 1, "10.244.1.0/24", "fd10:1::/64")
    site.add("b", 1, 2, "10.244.2.0/24", "fd10:2::/64")
    site.add("c", 3, 3, "10.244.3.0/24", "fd10:3::/64")
    return site


@pytest.fixture
def dual(lab: Lab) -> Iterator[NodeRoutesSite]:
    yield _dual(lab, "auto").start()


def _all_reach(site: NodeRoutesSite, members: list[Member] | None = None) -> None:
    members = members or list(site.members.values())
    for source in members:
        for target in members:
            for pod in target.pods if target is not source else ():
                source.wait_reaches(pod)


def test_flannels_host_gw_result(seed: NodeRoutesSite) -> None:
    """Route by route what flannel's host-gw has on 192.168.1.202, but for the mark that says that they are ours."""
    seed.start()
    to_master, to_node1 = "10.244.0.0/24 via 192.168.1.200 dev eth0", "10.244.3.0/24 via 192.168.1.201 dev eth0"
    seed.members["node2"].wait_routes(to_master, to_node1)
    seed.members["master"].wait_routes("10.244.1.0/24 via 192.168.1.202 dev eth0", to_node1)
    _all_reach(seed)
    assert seed.device(seed.members["node2"]) == ""


def test_auto_takes_the_subnet_or_vxlan(dual: NodeRoutesSite) -> None:
    """On the switch by the nodes' addresses, past the router in VXLAN, in both families; a full MTU passes."""
    a, c = dual.members["a"], dual.members["c"]
    a.wait_routes("10.244.2.0/24 via 192.168.1.2 dev eth0", f"10.244.3.0/24 via 10.244.3.0 dev {DEVICE} onlink")
    a.wait_routes("fd10:2::/64 via fd00:1::2 dev eth0", f"fd10:3::/64 via fd10:3:: dev {DEVICE} onlink", version=6)
    c.wait_routes(
        f"10.244.1.0/24 via 10.244.1.0 dev {DEVICE} onlink", f"10.244.2.0/24 via 10.244.2.0 dev {DEVICE} onlink"
    )
    _all_reach(dual)
    assert "mtu 1450" in dual.device(a)
    assert "nolearning" in dual.device(a)
    assert a.reaches("10.244.3.2", size=1450 - 28)
    assert not a.reaches("10.244.3.2", size=1450 - 27)
    answers = a.namespace.run(["ping", "-n", "-c", "1", "-W", "2", "10.244.3.2"], check=False)
    assert answers.returncode == 0, "the node itself reaches a pod behind the router"


def test_what_the_commands_say(dual: NodeRoutesSite) -> None:
    """`check` shows the plan, `noderoutes list` what there is, `doctor` what it takes."""
    a = dual.members["a"]
    _all_reach(dual)
    shown = a.bgpd.bgpd("check")
    assert "would reach pods of other nodes" in shown
    assert "192.168.1.2" in shown
    rows = {row["prefix"]: row for row in a.bgpd.ask("noderoutes", "list")}
    assert (rows["10.244.3.0/24"]["node"], rows["10.244.3.0/24"]["interface"]) == ("c", DEVICE)
    assert {row["why"] for row in rows.values()} == {None}
    assert a.bgpd.status()["nodeRoutes"] == {
        "mode": "auto",
        "routes": {"host-gw": 2, "vxlan": 2},
        "held": 0,
        "unreachable": 0,
        "device": {"name": DEVICE, "mtu": 1450},
    }
    assert "node rts  auto: 2 host-gw, 2 vxlan" in a.bgpd.bgpd("status", check=False)
    found = {row["what"]: row["state"] for row in a.bgpd.ask("doctor")}
    assert (found["nodeRoutes: forwarding"], found["nodeRoutes: flannel"]) == ("ok", "ok")
    a.bgpd.wait_metric('bgpd_node_routes_wanted{family="ipv6",way="vxlan"}', 1)
    a.bgpd.wait_metric("bgpd_node_routes_in_force", 1)


def test_a_node_leaves_comes_back_and_moves(dual: NodeRoutesSite) -> None:
    """Its routes and all that VXLAN has of it go with it; a new address is followed."""
    a, b, c = (dual.members[name] for name in "abc")
    _all_reach(dual)
    dual.publish(to=["a"], without=["c"])
    a.wait_routes("10.244.2.0/24 via 192.168.1.2 dev eth0")
    poll(lambda: dual.device(a) == "", 10, lambda: dual.device(a))
    dual.publish(to=["a"])
    _all_reach(dual, [a, c])
    b.number = 22
    dual.connect(b)
    dual.publish()
    a.wait_routes("10.244.2.0/24 via 192.168.1.22 dev eth0", f"10.244.3.0/24 via 10.244.3.0 dev {DEVICE} onlink")
    _all_reach(dual)


def test_what_others_take_away_comes_back(dual: NodeRoutesSite) -> None:
    """A route deleted, changed or added under our mark, the device, a forwarding entry: put right, and counted."""
    a = dual.members["a"]
    _all_reach(dual)
    wanted, wanted6 = a.routes(), a.routes(6)
    device = dual.device(a)
    drift = 'bgpd_reconcile_drift_total{subsystem="node_routes"}'
    for command in (
        "route del 10.244.2.0/24",
        "route replace 10.244.2.0/24 via 192.168.1.254 proto 179",
        "route add 10.99.0.0/16 via 192.168.1.254 proto 179",
        "route del fd10:3::/64",
        f"neigh del 10.244.3.0 dev {DEVICE}",
        f"link del {DEVICE}",
        f"link set {DEVICE} mtu 1300",
    ):
        before = a.bgpd.metric(drift)
        a.namespace.ip(command)
        poll(partial(_above, a, drift, before), 10, lambda: f"not counted: {a.bgpd.bgpd('status', check=False)}")
        a.wait_routes(*wanted)
        a.wait_routes(*wanted6, version=6)
        _all_reach(dual, [a, dual.members["c"]])
    assert _words(dual.device(a)) == _words(device)


def test_a_foreign_route_stays(dual: NodeRoutesSite) -> None:
    """A route of somebody else to the same prefix, whatever its metric: ours is not made, and status names it."""
    a = dual.members["a"]
    _all_reach(dual)
    a.namespace.ip("route add 10.244.9.0/24 via 192.168.1.254 proto bird metric 32")
    dual.members["a"].bgpd.wait_status("well", lambda status: status["nodeRoutes"]["held"] == 0)
    b = dual.members["b"]
    b.cidrs.append("10.244.9.0/24")
    dual.publish()
    problem = a.bgpd.wait_problem("10.244.9.0/24 has a route that is not ours")
    assert "via 192.168.1.254 dev eth0 proto bird metric 32" in problem
    assert not [route for route in a.routes() if "10.244.9.0" in route]
    a.namespace.ip("route del 10.244.9.0/24")
    poll(lambda: "10.244.9.0/24 via 192.168.1.2 dev eth0" in a.routes(), 10, lambda: str(a.routes()))
    a.namespace.ip("route add 10.244.9.0/24 via 192.168.1.254 proto bird metric 32")
    a.bgpd.wait_problem("10.244.9.0/24 has a route that is not ours")
    assert "10.244.9.0/24 via 192.168.1.2 dev eth0" in a.routes(), "what stood before goes on"


def test_the_daemon_dies_and_the_link_goes(dual: NodeRoutesSite) -> None:
    """Routes outlive the daemon and are adopted by the next; those that a link took with it come back."""
    a = dual.members["a"]
    _all_reach(dual)
    wanted, wanted6 = a.routes(), a.routes(6)
    assert a.bgpd.daemon is not None
    a.bgpd.daemon.kill()
    assert (a.routes(), a.routes(6)) == (wanted, wanted6)
    assert a.reaches("10.244.3.2")
    a.bgpd.start_daemon()
    a.bgpd.wait_status("routes", lambda status: sum(status["nodeRoutes"]["routes"].values()) == 4)
    assert a.bgpd.metric('bgpd_reconcile_rounds_total{result="done",subsystem="node_routes"}') == 0
    a.namespace.link_down(CABLE)
    a.bgpd.wait_problem("no interface that is up has")
    a.namespace.link_up(CABLE)
    a.namespace.add_address(CABLE, f"{a.address6}/64")
    a.namespace.add_route("default", via="192.168.1.254")
    a.wait_routes(*wanted)
    a.wait_routes(*wanted6, version=6)
    _all_reach(dual)


def test_none_and_clear_take_everything_out(dual: NodeRoutesSite) -> None:
    """`noderoutes clear` after the daemon, or the next start with none; nothing of the others' is touched."""
    a, c = dual.members["a"], dual.members["c"]
    _all_reach(dual)
    assert "would put it back" in a.bgpd.try_bgpd("noderoutes", "clear").stderr
    for member in (a, c):
        assert member.bgpd.daemon is not None
        member.bgpd.daemon.stop()
    others = a.namespace.routes()
    assert f"removed {DEVICE}" in a.bgpd.bgpd("noderoutes", "clear")
    assert [route for route in others if "proto 179" not in route] == a.namespace.routes()
    assert (a.routes(6), dual.device(a)) == ([], "")
    assert a.bgpd.bgpd("noderoutes", "clear") == "nothing was there\n"
    c.bgpd.config["nodeRoutes"] = "none"
    c.bgpd.write_config()
    c.bgpd.start_daemon()
    c.wait_routes()
    assert (c.routes(6), dual.device(c)) == ([], "")


def test_flannel_is_left_alone(lab: Lab) -> None:
    """subnet.env, a conflist or flannel's device: nothing is made, and what was found is named."""
    site = NodeRoutesSite(lab, "host-gw")
    a, b = site.add("a", 1, 1, "10.244.1.0/24"), site.add("b", 1, 2, "10.244.2.0/24")
    subnet_env = a.bgpd.directory / "flannel" / "subnet.env"
    subnet_env.parent.mkdir()
    subnet_env.write_text("FLANNEL_NETWORK=10.244.0.0/16\n")
    site.start()
    assert str(subnet_env) in a.bgpd.wait_problem("flannel sees to routes here")
    b.wait_routes("10.244.1.0/24 via 192.168.1.1 dev eth0")
    assert a.routes() == []
    b.namespace.ip("link add flannel.1 type vxlan id 1 dstport 8472 local 192.168.1.2 nolearning")
    assert "flannel.1" in b.bgpd.wait_problem("flannel sees to routes here")
    b.wait_routes("10.244.1.0/24 via 192.168.1.1 dev eth0")
    b.namespace.ip("link del flannel.1")
    b.bgpd.wait_status("well again", lambda status: not any("flannel" in it for it in status["problems"]))


def _above(member: Member, metric: str, value: float) -> bool:
    return member.bgpd.metric(metric) > value


def _words(shown: str) -> set[str]:
    """Without what an interface made anew has another of."""
    return {word for word in shown.split() if not word.rstrip(":").isdigit()} - {"numtxqueues"}


def test_routes_of_somebody_else_that_change_all_the_time(lab: Lab) -> None:
    """They are neither touched nor worth a wake-up each; ours that goes meanwhile is back."""
    site = NodeRoutesSite(lab, "host-gw")
    a, _ = site.add("a", 1, 11, "10.0.1.0/24"), site.add("b", 1, 12, "10.0.2.0/24")
    site.start("a")
    ours = "10.0.2.0/24 via 192.168.1.12 dev eth0"
    a.wait_routes(ours)
    foreign = "via 192.168.1.12 dev eth0 proto bird metric 32"
    a.namespace.ip(f"route add 10.99.0.0/24 {foreign}")
    before, changes = wakeups(a.bgpd), 500
    argv = ["ip", "-n", a.namespace.netns_name, "-batch", "-"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, text=True, bufsize=1) as ip:
        assert ip.stdin is not None
        for number in range(changes):  # each for itself, as a routing daemon makes them
            ip.stdin.write(f"route {('add', 'del')[number % 2]} 10.77.0.0/24 {foreign}\n")
            time.sleep(0.001)
        ip.stdin.write(f"route del {ours}\n")
    a.wait_routes(ours)
    assert wakeups(a.bgpd) - before < changes / 2
    (left,) = a.namespace.run(["ip", "route", "show", "proto", "bird"]).stdout.splitlines()
    assert left.split() == ["10.99.0.0/24", "via", "192.168.1.12", "dev", "eth0", "metric", "32"]


def wakeups(node: BgpdNode) -> int:
    """How often the daemon has been put to sleep by now, and so how often it was woken."""
    assert node.daemon is not None
    lines = Path(f"/proc/{node.daemon.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("voluntary_ctxt_switches")).split()[1])


@pytest.mark.parametrize("only6", [False, True], ids=["over IPv4", "over IPv6"])
def test_vxlan_over_either_family_and_made_anew(lab: Lab, only6: bool) -> None:
    """Pods of both families through it, at a full MTU; then another VNI, port and MTU by reload, on one node after
    the other."""
    site = NodeRoutesSite(lab, "vxlan", only6=only6)
    for name, number in (("a", 1), ("b", 2)):
        site.add(name, 1, number, f"10.244.{number}.0/24", f"fd10:244:{number}::/64")
    site.start()
    a, b = site.members["a"], site.members["b"]
    mtu = 1500 - (70 if only6 else 50)
    for to in b.pods:
        a.wait_reaches(to)
        assert a.reaches(to, size=mtu - (48 if ":" in to else 28))
    assert ("local fd00:1::1" if only6 else "local 192.168.1.1") in site.device(a)
    for member in (a, b):
        member.bgpd.config["vxlan"] = {"vni": 77, "port": 8472, "mtu": 1400}
        member.bgpd.write_config()
        member.bgpd.bgpd("reload")
    for to in b.pods:
        a.wait_reaches(to)
        assert a.reaches(to, size=1400 - (48 if ":" in to else 28))
    assert "vxlan id 77 " in site.device(a)
    assert "dstport 8472 " in site.device(a)
    for member in (a, b):
        member.bgpd.wait_status("well", lambda it: not [row for row in it["problems"] if "node routes" in row])


def test_another_mtu_takes_nothing_with_it(lab: Lab) -> None:
    """A reload with another MTU changes the device in place: no neighbor goes, and so no packet is lost."""
    site = NodeRoutesSite(lab, "vxlan")
    for name, number in (("a", 1), ("b", 2)):
        site.add(name, 1, number, f"10.244.{number}.0/24", f"fd10:244:{number}::/64")
    site.start()
    a, b = site.members["a"], site.members["b"]
    for to in b.pods:
        a.wait_reaches(to)
    index = site.device(a).partition(":")[0]
    monitor = a.namespace.popen(["ip", "monitor", "neigh"], name="monitor")

    def wait_heard(address: str) -> None:
        def probe() -> bool:
            a.namespace.ip(f"neigh replace {address} lladdr 02:00:00:00:00:99 dev eth0 nud permanent")
            a.namespace.ip(f"neigh del {address} dev eth0")
            return address in monitor.log_path.read_text()

        poll(probe, 10, monitor.log_tail)

    wait_heard("192.168.1.98")
    a.bgpd.config["vxlan"] = {"mtu": 1400}
    a.bgpd.write_config()
    a.bgpd.bgpd("reload")
    poll(lambda: "mtu 1400 " in site.device(a), 10, lambda: site.device(a))
    wait_heard("192.168.1.99")
    gone = [line for line in monitor.log_path.read_text().splitlines() if "Deleted" in line and DEVICE in line]
    assert gone == []
    assert site.device(a).partition(":")[0] == index
