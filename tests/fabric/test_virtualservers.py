"""Virtual servers on a real fabric: the article's ConfigMaps, nginx in pods, a client behind the ToRs."""

from __future__ import annotations

import pytest

from tests.fabric.topology import TwoTorFabric
from tests.fabric.virtualserver_site import CLIENT, GET, HEAD, VirtualServerSite

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
    (monitor,) = server["members"][0]["monitors"]
    assert (monitor["state"], monitor["note"]) == ("up", "passes on an error: the answer is 400 Bad Request")
    site.serve(send=GET)
    site.wait_announced()
    site.node.wait_status("no warning", lambda status: not status["virtualServers"]["warnings"])
