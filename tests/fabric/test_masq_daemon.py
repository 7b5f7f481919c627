"""Masquerade with the whole daemon: a document becomes what outsiders see, and stays so whatever ends."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from tests.fabric.masq_node import IPV4, PLANS, MasqNode, tcp_stream
from tests.fabric.netns import Lab
from tests.fabric.node import BgpdNode, node_manifest
from tests.fabric.process import poll
from tests.fabric.reach import source_seen

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.needs("nft", "mount")


class Site:
    """The daemon on the node of `MasqNode`, reading its document from a file."""

    def __init__(self, lab: Lab, bpffs: Path) -> None:
        self.place = MasqNode(lab, bpffs)
        self.place.connection.close()
        self.document = lab.directory / "document" / "ip-masq-agent"
        self.document.parent.mkdir()
        nobody = {"name": "nobody", "peerAddress": "192.0.2.254", "peerASN": 64512}
        bgp = {"localASN": 64512, "peers": [nobody], "export": {"allow": ["10.0.0.0/8"]}}
        masquerade = {
            "enabled": True,
            "ipv6": True,
            "config": {"path": str(self.document)},
            "clusterCIDRs": [plan.cluster for plan in PLANS],
        }
        self.node = BgpdNode(self.place.node, "worker1", bgp, masquerade=masquerade)
        self.node.config["paths"]["bpf"] = str(bpffs / "own")
        self.node.write_config()
        addresses = [plan.node for plan in PLANS]
        manifest = node_manifest("worker1", [plan.pods for plan in PLANS], *addresses)
        (self.node.manifests / "node.yaml").write_text(manifest)

    def write(self, *entries: str) -> None:
        """The document; a mere address is taken for the prefix that holds it alone."""
        prefixes = [entry if "/" in entry else str(ip_network(entry)) for entry in entries]
        new = self.document.with_name("new")
        new.write_text(json.dumps({"nonMasqueradeCIDRs": prefixes}))
        new.replace(self.document)

    def wait_seen(self, address: str, destination: str) -> None:
        place = self.place
        poll(
            lambda: source_seen(place.pod_a, place.outside, destination) == address,
            10,
            lambda: self.node.bgpd("status", check=False),
        )

    def listed(self) -> list[str]:
        return self.node.bgpd("masq", "list").splitlines()

    def tested(self, address: str) -> dict[str, Any]:
        return dict(json.loads(self.node.bgpd("masq", "test", address, "-o", "json")))


@pytest.fixture
def site(lab: Lab) -> Iterator[Site]:
    bpffs = lab.directory / "bpf"
    bpffs.mkdir()
    subprocess.run(["mount", "-t", "bpf", "bpf", bpffs], check=True)
    try:
        yield Site(lab, bpffs)
    finally:
        subprocess.run(["umount", "--lazy", bpffs], check=True)


@pytest.fixture
def running(site: Site) -> Site:
    """With one destination of each family listed, and in force."""
    site.write(*(plan.listed for plan in PLANS))
    site.node.start_daemon()
    for plan in PLANS:
        site.wait_seen(plan.node, plan.unlisted)
    return site


def test_a_listed_destination_sees_the_pod(running: Site) -> None:
    """Both families, in the kernel and in what the commands say of it."""
    for plan in PLANS:
        running.wait_seen(plan.pod_a, plan.listed)
        assert running.tested(plan.listed)["kept"] is True
        assert running.tested(plan.unlisted)["kept"] is False
        assert running.tested(plan.remote_pod)["why"] == "pods of the cluster"
    heading, *entries = running.listed()
    assert heading.split() == ["IP", "PREFIX/ADDRESS"]
    wanted = {"169.254.0.0/16", "fe80::/10", f"{PLANS[0].listed}/32", f"{PLANS[1].listed}/128"}
    assert {entry.strip() for entry in entries} == wanted


def test_the_capabilities_of_its_unit_suffice(site: Site, tmp_path: Path) -> None:
    """The daemon with what systemd leaves it, and the commands that take everything out again."""
    unit = (ROOT / "systemd" / "bgpd.service").read_text()
    (granted,) = re.findall(r"^CapabilityBoundingSet=(.*)$", unit, re.MULTILINE)
    left = ",".join(["-all", *(f"+{name.lower().removeprefix('cap_')}" for name in granted.split())])
    wrapper = tmp_path / "bgpd"
    wrapper.write_text(f'#!/bin/sh\nexec setpriv --bounding-set={left} {site.node.program} "$@"\n')
    wrapper.chmod(0o755)
    site.node.program = wrapper
    site.write(IPV4.listed)
    site.node.start_daemon()
    site.wait_seen(IPV4.node, IPV4.unlisted)
    site.wait_seen(IPV4.pod_a, IPV4.listed)
    assert site.node.daemon is not None
    assert "stop that first" in site.node.try_bgpd("masq", "clear").stderr
    site.node.daemon.stop()
    assert "removed nftables table inet bgpd" in site.node.bgpd("masq", "clear")
    assert not Path(site.node.config["paths"]["bpf"]).exists()
    assert site.node.bgpd("masq", "clear") == "nothing was there\n"
    site.wait_seen(IPV4.pod_a, IPV4.unlisted)


def test_an_edit_counts_for_new_flows_only(running: Site) -> None:
    """An open stream goes on with the address it began with; the next flow follows the new list."""
    place = running.place
    with tcp_stream(place.pod_a, place.outside, IPV4.unlisted) as (client, server):
        began_as = server.getpeername()[0]
        running.write(*(plan.unlisted for plan in PLANS))
        running.wait_seen(IPV4.pod_a, IPV4.unlisted)
        running.wait_seen(IPV4.node, IPV4.listed)
        client.sendall(b"still here")
        assert server.recv(64) == b"still here"
    assert began_as == IPV4.node


def test_it_lasts_without_the_daemon_and_through_its_restart(running: Site) -> None:
    """SIGKILL, an edit meanwhile, a new daemon: never anything but one of the two lists."""
    assert running.node.daemon is not None
    running.node.daemon.kill()
    running.wait_seen(IPV4.pod_a, IPV4.listed)
    running.wait_seen(IPV4.node, IPV4.unlisted)
    running.write(IPV4.listed, IPV4.unlisted)
    running.node.start_daemon()
    running.wait_seen(IPV4.pod_a, IPV4.unlisted)
    running.wait_seen(IPV4.pod_a, IPV4.listed)


def test_a_bad_document_changes_nothing_and_is_named(running: Site) -> None:
    """All of its faults, with the last good list in force."""
    running.write("10.0.0.0/33", "nonsense/8", IPV4.unlisted)
    found = poll(
        lambda: [it for it in running.node.status()["problems"] if "stays in use" in it] or None,
        10,
        lambda: "no problem is shown",
    )
    assert all(any(f"nonMasqueradeCIDRs[{index}]" in it for it in found) for index in (0, 1)), found
    running.wait_seen(IPV4.node, IPV4.unlisted)
    running.wait_seen(IPV4.pod_a, IPV4.listed)
