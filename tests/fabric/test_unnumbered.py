"""Peers given by interface: found by router advertisements, spoken to by link-local addresses, RFC 8950 next hops."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fabric.bird import Bird
from tests.fabric.frr import Frr
from tests.fabric.netns import Lab
from tests.fabric.peer import Speaker
from tests.fabric.process import poll
from tests.fabric.unnumbered_site import NODE_ASN, POD_CIDRS, PORT, UnnumberedSite, link_local

each_tor = pytest.mark.parametrize(
    "kind",
    [
        pytest.param(Frr, marks=pytest.mark.needs(*Frr.programs), id="frr"),
        pytest.param(Bird, marks=pytest.mark.needs("bird"), id="bird"),
    ],
)


def started(lab: Lab, *kinds: type[Speaker], **options: Any) -> UnnumberedSite:
    site = UnnumberedSite(lab, *kinds, **options).start()
    site.node.wait_healthy()
    return site


@each_tor
@pytest.mark.parametrize("asn", [65001, NODE_ASN], ids=["external", "internal"])
def test_a_peer_given_by_interface_gets_both_families_and_packets_arrive(
    lab: Lab, kind: type[Speaker], asn: int
) -> None:
    """Nothing on the link has an address that somebody configured; IPv4 goes by the IPv6 next hop."""
    site = started(lab, kind, asn=asn)
    ours, theirs = link_local(site.place, "eth1"), link_local(site.tors[0].namespace, PORT)
    assert site.node.peer("tor-a")["address"] == f"{theirs}%eth1"
    assert site.wait_routes(site.tors[0]) == dict.fromkeys(POD_CIDRS, ours)
    site.open_the_way_back()
    poll(lambda: site.reaches() == [True, True], 10, lambda: f"pings: {site.reaches()}")


@each_tor
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"passive": True}, {}),
        ({"ttlSecurity": True}, {"ttl_security": True}),
        ({"authPasswordFile": "md5"}, {"password": "s3cret"}),
    ],
    ids=["passive", "ttl-security", "md5"],
)
def test_what_a_session_can_have_works_unnumbered_too(
    lab: Lab, kind: type[Speaker], ours: dict[str, Any], theirs: dict[str, Any]
) -> None:
    """Each with the same at the other end; the peer dials, or we do."""
    site = UnnumberedSite(lab, kind, peer=ours, **theirs)
    if "authPasswordFile" in ours:
        file = site.node.directory / "md5"
        file.write_text("s3cret\n")
        file.chmod(0o600)
        site.node.config["bgp"]["peers"][0]["authPasswordFile"] = str(file)
        site.node.write_config()
    site.start()
    site.node.wait_healthy()
    site.wait_routes(site.tors[0])
