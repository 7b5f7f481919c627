"""Addresses of an announced aggregate that nobody has: what becomes of their packets, and the README's remedy."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fabric.bird import Bird
from tests.fabric.netns import Lab, Namespace
from tests.fabric.process import Process, poll
from tests.fabric.service_objects import endpoint, endpoint_slice, service
from tests.fabric.unnumbered_site import POD, POD6, UnnumberedSite

AGGREGATES = ("10.96.0.0/16", "fd00:96::/64")
SERVED, UNUSED = ("10.96.0.10", "fd00:96::10"), ("10.96.0.77", "fd00:96::77")
README = Path(__file__).parents[2] / "README.md"
PORT = 8080


class Site(UnnumberedSite):
    """The node announces both aggregates, for the sake of one Service, which its pod answers.

    The rules are what kube-proxy would make of the Service.
    """

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab, Bird)
        entry: dict[str, Any] = {"advertisementType": "Service", "selector": {}}
        entry["service"] = {"addresses": ["ClusterIP"], "aggregate": list(AGGREGATES)}
        self.node.config["bgp"]["advertisements"].append(entry)
        del self.node.config["bgp"]["export"]
        self.node.write_config()
        slices = [
            endpoint_slice("web", [endpoint(it, "worker1")], suffix) for it, suffix in ((POD, "a"), (POD6, "b"))
        ]
        for number, each in enumerate((service("web", cluster_ips=SERVED), *slices)):
            (self.node.manifests / f"{number}.yaml").write_text(yaml.safe_dump(each))
        for hook in ("prerouting", "output"):
            self.nft(f"add table inet proxy; add chain inet proxy {hook} {{ type nat hook {hook} priority -100; }}")
            for family, to, pod in (("ip", SERVED[0], POD), ("ip6", SERVED[1], f"[{POD6}]")):
                self.nft(f"add rule inet proxy {hook} {family} daddr {to} tcp dport 80 dnat {family} to {pod}:{PORT}")
        self.server = self._serve()

    def nft(self, commands: str) -> None:
        self.place.run(["nft", commands])

    def _serve(self) -> Process:
        program = (
            "import socket\n"
            f"server = socket.create_server(('::', {PORT}), family=socket.AF_INET6, dualstack_ipv6=True)\n"
            "while True:\n"
            "    connection, _ = server.accept()\n"
            "    connection.close()\n"
        )
        return self.pod.popen(["python3", "-c", program], name="server")


def served(place: Namespace) -> list[bool]:
    """Whether the Service answers from here, IPv4 and IPv6."""

    def connects(address: str) -> bool:
        try:
            socket.create_connection((address, 80), timeout=3).close()
        except OSError:
            return False
        return True

    return place.call(lambda: [connects(it) for it in SERVED])


def answer(place: Namespace, address: str) -> str:
    """What `ping` says of an address that does not answer."""
    return place.run(["ping", "-n", "-c1", "-W2", address], check=False).stdout


@pytest.mark.needs("bird", "nft")
def test_what_nobody_has_goes_round_until_the_readme_s_rules_refuse_it(lab: Lab) -> None:
    """Back to the ToR by the default route, and here again.

    The Service answers all along; with a route in place of the rules, not to the node itself.
    """
    site = Site(lab)
    site.start()
    for aggregate in AGGREGATES:
        site.tors[0].wait_route(aggregate)
    site.open_the_way_back()
    poll(lambda: served(site.client) == [True, True], 10, lambda: f"{served(site.client)} from the client")
    assert ["ime " in answer(site.client, it) for it in UNUSED] == [True, True]  # Time (to live) exceeded
    for aggregate in AGGREGATES:
        site.place.ip(f"route add unreachable {aggregate}")
    assert [served(it) for it in (site.client, site.place)] == [[True, True], [False, False]]
    for aggregate in AGGREGATES:
        site.place.ip(f"route del unreachable {aggregate}")
    site.nft("; ".join(readme_rules()))
    assert ["nreachable" in answer(site.client, it) for it in UNUSED] == [True, True]
    assert [served(it) for it in (site.client, site.place)] == [[True, True], [True, True]]


def readme_rules() -> list[str]:
    """The commands of the README, for our aggregates."""
    found = re.findall(r"^\$ sudo nft '(.* bgpd-aggregates.*)'$", README.read_text(), re.MULTILINE)
    assert len(found) == 4
    return [it.replace("10.96.0.0/12", AGGREGATES[0]).replace("fd00:96::/108", AGGREGATES[1]) for it in found]
