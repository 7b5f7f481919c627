"""Virtual servers on a real fabric: the article's ConfigMaps, nginx in pods, a client behind the ToRs."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import time

import pytest

from bgpd.runtime.reconcile import EMPTY_GRACE_S
from tests.fabric.bgp_wire import BgpType
from tests.fabric.observe import BgpCapture
from tests.fabric.process import poll
from tests.fabric.topology import CABLE, TwoTorFabric
from tests.fabric.virtualserver_site import CLIENT, GET, HEAD, VIP, Echo, VirtualServerSite, echoed

pytestmark = pytest.mark.needs("bird", "nft", "nginx")


@pytest.mark.parametrize("version", [4, 6])
def test_clients_reach_healthy_pods(fabric: TwoTorFabric, version: int) -> None:
    """Announced once a pod is healthy; connections go in turn, with the client's address; the sick are left out."""
    site = VirtualServerSite(fabric)
    site.endpoints("a", "b", "c")
    site.serve(version=version)
    site.start().wait_announced(version)
    site.wait_answering("a", "b", "c", version=version)
    assert site.answering(6, version) == ["a", "a", "b", "b", "c", "c"]
    assert site.ask(version)[1] == CLIENT[version]
    site.pods["b"].health("out of order")
    site.wait_answering("a", "c", version=version)
    for name in ("a", "c"):
        site.pods[name].stop()
    site.wait_withdrawn(version)
    site.node.wait_problem("all 3 local pods are down")
    site.pods["a"].start()
    site.wait_announced(version)
    site.wait_answering("a", version=version)


def test_the_articles_head_monitor_passes_on_an_error(fabric: TwoTorFabric) -> None:
    """It is served as asked, and both the ConfigMap and what it gets say what is wrong with it."""
    site = VirtualServerSite(fabric)
    site.endpoints("a")
    site.serve(send=HEAD, recv="Server")
    site.start().wait_announced()
    server = site.servers()["nginx-vs-http"]
    assert "without Host is answered 400" in server["warnings"][0]
    assert re.match(rf"{site.node.manifests}/cm-nginx-vs-http\.yaml:\d+:\d+: data\.data\.", server["warnings"][0])
    (monitor,) = server["members"][0]["monitors"]
    assert (monitor["state"], monitor["note"]) == ("up", "passes on an error: the answer is 400 Bad Request")
    site.serve(send=GET)
    site.wait_announced()
    site.node.wait_status("no warning", lambda status: not status["virtualServers"]["warnings"])


def test_an_open_connection_stays(fabric: TwoTorFabric) -> None:
    """Through the failure of its pod's monitor, a restart of the daemon and the loss of the endpoint."""
    site = VirtualServerSite(fabric)
    site.endpoints("a", "c")
    site.serve()
    site.start().wait_answering("a", "c")
    with site.connection() as opened:
        request = b"GET /who HTTP/1.1\r\nHost: x\r\n\r\n"
        opened.sendall(request)
        answer = opened.recv(4096)
        (pod,) = [name for name in "ac" if f"{name} {CLIENT[4]}".encode() in answer]
        other = "c" if pod == "a" else "a"
        site.pods[pod].health("out of order")
        site.wait_answering(other)
        site.node.restart_daemon()
        site.endpoints(other)
        site.node.wait_status("one pod", lambda _: len(site.servers()["nginx-vs-http"]["members"]) == 1)
        site.wait_answering(other)
        opened.sendall(request)
        assert f"{pod} {CLIENT[4]}".encode() in opened.recv(4096)


def test_a_restart_moves_nobody(fabric: TwoTorFabric) -> None:
    """The route stays at both ToRs, and the table goes on with the same pods."""
    site = VirtualServerSite(fabric)
    site.endpoints("a", "c")
    site.serve(timeout=20)
    site.start().wait_answering("a", "c")
    with BgpCapture(site.place.namespace, CABLE) as capture:
        site.node.restart_daemon()
        site.node.wait_healthy()
        assert site.answering(2) == ["a", "c"]
    updates = [it for it in capture.messages(BgpType.UPDATE, src=site.place.address) if not it.end_of_rib]
    assert updates == []


def test_as_a_last_resort(fabric: TwoTorFabric) -> None:
    """With `whenDown: med` the address stays, with the worse MED, and the pods that failed are tried."""
    site = VirtualServerSite(fabric, whenDown="med", med=777)
    site.endpoints("a")
    site.serve()
    site.start().wait_answering("a")
    site.pods["a"].health("out of order")
    site.node.wait_problem("served as a last resort")
    rows = [row for row in site.node.ask("routes") if row["prefix"] == site.route()]
    assert {row["med"] for row in rows} == {777}
    assert site.ask()[0] == "a"
    site.endpoints()
    site.wait_withdrawn()


def test_an_address_that_is_no_pods_is_neither_monitored_nor_served(fabric: TwoTorFabric) -> None:
    """Whoever may write a slice may name any address as one of this node; status names it, and the pod is served."""
    site = VirtualServerSite(fabric)
    site.endpoints("a")
    endpoint = {"addresses": [CLIENT[4]], "nodeName": site.place.name, "conditions": {"ready": True}}
    by_hand = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": "by-hand", "namespace": "default", "labels": {"kubernetes.io/service-name": "nginx-http"}
        },
        "addressType": "IPv4",
        "ports": [{"name": "TCP", "protocol": "TCP", "port": 80}],
        "endpoints": [endpoint],
    }  # fmt: skip
    site.write("by-hand", by_hand)
    site.serve()
    site.start().wait_answering("a")
    site.node.wait_problem(f"{CLIENT[4]} of EndpointSlice default/by-hand is no pod of this node")
    server = site.servers()["nginx-vs-http"]
    assert ([each["address"] for each in server["members"]], server["served"]) == (["188.188.0.10"], True)


def test_the_older_config_map_has_the_address(fabric: TwoTorFabric) -> None:
    """A later one of the same address and port, whatever it is called, gets nothing and says whose it is."""
    site = VirtualServerSite(fabric)
    site.endpoints("a")
    site.serve("z", created="2026-01-01T00:00:00Z")
    site.start().wait_answering("a")
    site.serve("a", created="2026-01-02T00:00:00Z")
    site.node.wait_problem("virtual server default/a: tcp 11.16.22.80 port 80 is ConfigMap default/z's, which is")
    assert {name: each["served"] for name, each in site.servers().items()} == {"z": True, "a": False}


def test_somebody_edits_the_table(fabric: TwoTorFabric) -> None:
    """What nobody asked for is put right; once virtual servers are off nothing is left."""
    site = VirtualServerSite(fabric)
    site.endpoints("a")
    site.serve()
    site.start().wait_answering("a")
    node, where = site.node, site.place.namespace
    assert node.daemon is not None
    node.daemon.stop()
    where.run(["nft", "delete", "element", "inet", "bgpd-virtual-servers", "addresses4", "{ 11.16.22.80 }"])
    node.start_daemon()
    site.wait_answering("a")
    listed = ["nft", "list", "set", "inet", "bgpd-virtual-servers", "addresses4"]
    poll(lambda: "11.16.22.80" in where.run(listed).stdout, 10, site.told)
    node.config["virtualServers"]["enabled"] = False
    node.write_config()
    node.restart_daemon()
    site.wait_withdrawn()
    assert "bgpd-virtual-servers" not in where.run(["nft", "list", "tables"]).stdout


def test_a_port_that_nothing_serves_is_refused(fabric: TwoTorFabric) -> None:
    """It does not go back and forth between node and ToR; the node itself and a pod reach what is served."""
    site = VirtualServerSite(fabric)
    site.endpoints("a", "c")
    site.serve()
    site.start().wait_answering("a", "c")
    with pytest.raises(ConnectionRefusedError):
        site.ask(port=81)
    assert {site.ask(client=site.place.namespace)[0] for _ in range(2)} == {"a", "c"}, "from the node itself"
    assert {site.ask(client=site.pods["c"].namespace)[0] for _ in range(2)} == {"a", "c"}


def test_least_connections(fabric: TwoTorFabric) -> None:
    """Who has fewer open connections gets the next ones."""
    site = VirtualServerSite(fabric)
    site.endpoints("a")
    site.serve(balance="least-connections-member")
    site.start().wait_answering("a")
    with contextlib.ExitStack() as stack:
        for _ in range(12):
            stack.enter_context(site.connection())
        site.endpoints("a", "c")
        site.wait_answering("a", "c")

        def counted() -> int:
            members = site.servers()["nginx-vs-http"]["members"]
            return max(each["connections"] or 0 for each in members)

        poll(lambda: counted() >= 12, 10, site.told)
        time.sleep(2.0)  # two looks: what was counted has been dealt
        assert site.answering(12).count("c") >= 10


def test_a_udp_flow_leaves_a_pod_that_is_down(fabric: TwoTorFabric) -> None:
    """Its client never stops, and gets answers from the other pod."""
    site = VirtualServerSite(fabric)
    site.endpoints("a", "c")
    site.serve(protocol="udp", send="ping", recv="a|c", timeout=3)
    echoes = {name: Echo(site.pods[name]) for name in ("a", "c")}
    site.start().wait_announced()
    with site.fabric.outside.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.settimeout(1.0)
        opened.connect((VIP[4], 80))
        first = echoed(opened)
        echoes[first].close()
        other = "c" if first == "a" else "a"
        poll(lambda: echoed(opened) == other, 20, site.told)
    echoes[other].close()


def test_a_source_that_suddenly_shows_nothing(fabric: TwoTorFabric) -> None:
    """Without the ConfigMap it is served for a while, without a Node until there is one again, restart or not."""
    site = VirtualServerSite(fabric)
    site.endpoints("a")
    site.serve()
    site.start().wait_answering("a")
    files = [each for each in site.node.manifests.iterdir() if each.suffix == ".yaml"]
    away = site.fabric.lab.directory / "away"
    away.mkdir()
    for each in files:
        each.rename(away / each.name)
    site.node.wait_problem("lacks every Node: is it right?")
    for tor in fabric.tors:
        tor.speaker.wait_route(site.place.pod_cidrs[0], 1.0)  # its pods' routes wait as they would without it
    time.sleep(EMPTY_GRACE_S + 1)
    assert site.ask()[0] == "a"
    site.node.restart_daemon()
    site.node.wait_problem("lacks every Node: is it right?")
    assert site.ask()[0] == "a"
    site.wait_announced()
    for each in files:
        (away / each.name).rename(each)
    site.node.wait_healthy()
    assert site.answering(2) == ["a", "a"]
    (site.node.manifests / "cm-nginx-vs-http.yaml").unlink()
    site.node.wait_problem("shows no ConfigMap of a virtual server any more: those of before count on for 10 s")
    assert site.ask()[0] == "a"
    site.wait_withdrawn()
    assert site.servers() == {}


def test_doctor_tells_what_virtual_servers_rest_on(fabric: TwoTorFabric) -> None:
    """Tried beside the table in use, of which nothing changes; without CAP_NET_ADMIN it names the modules to load."""
    site = VirtualServerSite(fabric)
    site.endpoints("a")
    site.serve()
    site.start().wait_answering("a")
    tables = site.place.namespace.run(["nft", "list", "ruleset"]).stdout
    found = {row["what"]: row["state"] for row in site.node.ask("doctor")}
    told = {what: state for what, state in found.items() if what.startswith("virtualServers: ")}
    assert told.pop("virtualServers: table owner") in ("ok", "warn"), "as the kernel has it"
    rests_on = ("NAT", "nf_conntrack_netlink", "conntrack")
    assert told == {f"virtualServers: {each}": "ok" for each in rests_on}
    assert site.place.namespace.run(["nft", "list", "ruleset"]).stdout == tables
    doctor = [str(site.node.program), "doctor", "-o", "json", "--config", str(site.node.config_file)]
    powerless = ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin", *doctor]
    refused = {row["what"]: row for row in json.loads(site.place.namespace.run(powerless, check=False).stdout)}
    for what, state, module in (("NAT", "bad", "nft_chain_nat"), ("nf_conntrack_netlink", "warn", "modprobe")):
        row = refused[f"virtualServers: {what}"]
        assert (row["state"], module in row["text"], "not permitted" in row["text"]) == (state, True, True)
