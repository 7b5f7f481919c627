"""Tunnels by a parent of pods' interfaces: the kernel takes what they send for the pod's whose packet is inside."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address
from pathlib import Path

import pytest

from bgpd.datapath import features, layout, loader
from bgpd.datapath.layout import PolicyVerdict, StationFlag
from bgpd.model.outcome import DONE
from bgpd.netlink.links import own_cookie
from bgpd.policy import filters, ipvlans, parents
from bgpd.policy.parents import MACVLAN, Kind, Programs
from bgpd.runtime.diff import Change
from tests.fabric.netns import Lab
from tests.fabric.policy_node import link
from tests.fabric.reach import ping
from tests.fabric.rules_by_hand import verdicts

pytestmark = pytest.mark.needs("mount")

PORT, SILENCE_S = 4789, 0.5
NODE, OUTSIDE = {4: "192.0.2.1", 6: "2001:db8::1"}, {4: "192.0.2.2", 6: "2001:db8::2"}
LENGTH = {4: 24, 6: 64}
POD, FAR = "10.9.0.2", "10.9.0.1"


@pytest.mark.parametrize("kind", [ipvlans.KIND, MACVLAN], ids=lambda kind: kind.object)
@pytest.mark.parametrize("version", [4, 6])
def test_a_tunnel_that_is_configured_is_no_forgery(lab: Lab, bpffs: Path, kind: Kind, version: int) -> None:
    """A bridge hands a pod's packet to VXLAN with its socket. To other ports a pod is not the node still."""
    if not features.can_tell_netns():
        pytest.skip("this kernel does not tell a program where a packet was sent: Linux 6.15 does")
    node, outside, pod = (lab.namespace(name) for name in ("node", "outside", "pod"))
    lab.link(node, "eth0", outside, "eth0")
    lab.bridge(node)
    node.sysctl({f"net/bridge/bridge-nf-call-{each}": "0" for each in ("iptables", "ip6tables")})
    lab.plug(pod, "eth0", node, "port")
    pod.add_address("eth0", f"{POD}/24")
    for namespace, here, there in ((node, NODE, OUTSIDE), (outside, OUTSIDE, NODE)):
        namespace.add_address("eth0", f"{here[version]}/{LENGTH[version]}")
        made = f"link add vx0 type vxlan id 7 dstport {PORT} local {here[version]} remote {there[version]}"
        namespace.ip(made, "link set vx0 up")
    node.ip("link set vx0 master br0")
    outside.add_address("vx0", f"{FAR}/24")
    assert ping(pod, FAR, timeout_s=5)
    loader.install(loader.shipped("policy"), bpffs / "bgpd")
    parent, cookie = link(node, "eth0")[0], node.call(own_cookie)
    installed = node.call(lambda: parents.install(bpffs / "bgpd", kind))
    if kind is MACVLAN:
        mac = link(node, "eth0")[1]
        value = layout.STATION.pack(bytes(16), bytes(16), cookie, mac, StationFlag.NODE)
        installed.maps["macvlan_stations"].update({layout.STATION_KEY.pack(parent, mac, bytes(2)): value})
    else:
        for address in map(ip_address, (NODE[version], "::")):
            key = layout.IPVLAN_ADDRESS_KEY.pack(parent, layout.policy_address(address))
            installed.maps["ipvlan_addresses"].update({key: layout.IPVLAN_OWNER.pack(0, cookie, 0, 0)})
    target = node.call(lambda: filters.actuator(installed, bpffs / "bgpd", kind))
    asked: Programs = {hook: each.id for hook, each in parents.programs(installed, kind).items()}
    assert node.call(lambda: list(asyncio.run(target.apply([Change(parent, asked, None)])))) == [DONE]
    tunnels = installed.maps[f"{kind.object}_tunnels"]
    for port, passes in ((PORT + 1, False), (PORT, True)):
        tunnels.update({layout.transport_port(port): layout.PRESENT})
        before = verdicts(installed.maps["policy_verdicts"]).get(PolicyVerdict.SPOOFED, 0)
        assert ping(pod, FAR, timeout_s=SILENCE_S) is passes
        dropped = verdicts(installed.maps["policy_verdicts"]).get(PolicyVerdict.SPOOFED, 0) - before
        assert (dropped == 0) is passes
