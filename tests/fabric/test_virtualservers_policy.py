"""Virtual servers in front of pods that NetworkPolicy isolates: client and pod are judged, not the address."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from bgpd.datapath import layout, pins
from bgpd.datapath.layout import PolicyVerdict
from tests.fabric.netns import Namespace
from tests.fabric.policy_site import Object, labelled, namespace, peers, pod, policy
from tests.fabric.process import poll
from tests.fabric.rules_by_hand import verdicts
from tests.fabric.topology import STRANGER, STRANGER6, TwoTorFabric
from tests.fabric.virtualserver_site import CLIENT, VirtualServerSite

pytestmark = pytest.mark.needs("bird", "nft", "nginx", "mount")

STRANGERS = {4: STRANGER, 6: STRANGER6}


class PolicedSite(VirtualServerSite):
    """Its pods are in the namespace `default`, labelled with their names. `pins` is where the daemon pins."""

    def __init__(self, fabric: TwoTorFabric, bpffs: Path) -> None:
        super().__init__(fabric)
        self.pins = bpffs / "own"
        self.node.config["policy"] = {"enabled": True}
        self.node.config["paths"]["bpf"] = str(self.pins)
        self.node.write_config()
        known = [pod("default", name, it.addresses.values(), node=self.place.name) for name, it in self.pods.items()]
        self.write("pods", namespace("default"), *known)

    def police(self, *policies: Object) -> None:
        self.write("policies", *policies)

    def gets(self, version: int, **of: Any) -> str:
        """Which pod answers; nobody: an empty text."""
        try:
            return self.ask(version, **of)[0]
        except OSError:
            return ""

    def dropped(self, verdict: PolicyVerdict) -> int:
        """How many packets were, for this reason."""
        found = pins.open_map(self.pins / "policy_verdicts", layout.MAPS["policy_verdicts"])
        assert found is not None
        return verdicts(found).get(verdict, 0)

    def wait_gets(self, name: str, version: int, **of: Any) -> None:
        poll(lambda: self.gets(version, **of) == name, 30, self.told)


@pytest.mark.parametrize("version", [4, 6])
def test_a_client_is_judged_by_its_own_address(fabric: TwoTorFabric, bpffs: Path, version: int) -> None:
    """Who may reach the pod reaches it by the virtual server, as himself; who may not is dropped. Monitors pass."""
    site = PolicedSite(fabric, bpffs)
    site.endpoints("a")
    site.serve(version=version)
    site.start().wait_answering("a", version=version)
    assert site.ask(version, source=STRANGERS[version]) == ("a", STRANGERS[version]), "nothing isolates the pod yet"
    client = {"ipBlock": {"cidr": f"{CLIENT[version]}/{32 if version == 4 else 128}"}}
    site.police(policy("default", "a", labelled(pod="a"), ingress=[{"from": [client], "ports": [{"port": 80}]}]))
    site.wait_gets("", version, source=STRANGERS[version])
    assert site.dropped(PolicyVerdict.DENIED_INGRESS) > 0
    assert site.ask(version) == ("a", CLIENT[version])
    assert [it["state"] for it in site.servers()["nginx-vs-http"]["members"]] == ["up"]
    site.police()
    site.wait_gets("a", version, source=STRANGERS[version])


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(("client", "server"), [("c", "a"), ("b", "c")])
def test_egress_is_judged_by_the_pod_behind(
    fabric: TwoTorFabric, bpffs: Path, version: int, client: str, server: str
) -> None:
    """A pod that dials the address needs the right to the pod that answers; one to the address is worth nothing."""
    site = PolicedSite(fabric, bpffs)
    site.endpoints(server)
    site.serve(version=version)
    site.start().wait_answering(server, version=version)
    dialer: Namespace = site.pods[client].namespace
    assert site.gets(version, client=dialer) == server
    address = {"ipBlock": {"cidr": site.route(version)}}
    site.police(policy("default", "out", labelled(pod=client), types=["Egress"], egress=[{"to": [address]}]))
    site.wait_gets("", version, client=dialer)
    assert site.dropped(PolicyVerdict.DENIED_EGRESS) > 0
    assert site.ask(version)[0] == server, "others are not concerned"
    site.police(policy("default", "out", labelled(pod=client), types=["Egress"], egress=[{"to": [peers(server)]}]))
    site.wait_gets(server, version, client=dialer)
    source = ip_address(site.ask(version, client=dialer)[1])
    assert source == ip_address(site.pods[client].addresses[version])
