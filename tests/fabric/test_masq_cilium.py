"""`map: cilium` with the whole daemon: the list goes into Cilium's maps, and no packet meets anything of ours.

There is no Cilium here. What it does is what it pins, under its own names, where it pins it; the daemon runs in a
mount namespace in which the test's bpffs is the machine's.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bgpd.datapath import layout, pins
from bgpd.datapath.maps import Map
from bgpd.masq.map import CILIUM
from tests.fabric.masq_node import PLANS, alone
from tests.fabric.masq_site import MasqSite, keys, listed_in, with_bpffs
from tests.fabric.node import BgpdNode
from tests.fabric.process import poll
from tests.fabric.topology import TwoTorFabric

pytestmark = pytest.mark.needs("nft", "mount", "unshare")

SPECS = {version: replace(layout.MAPS[f"ipmasq_v{version}"], name=f"cilium_ipmasq_v{version}") for version in (4, 6)}
LISTED = {plan.version: alone(plan.listed) for plan in PLANS}
UNLISTED = {plan.version: alone(plan.unlisted) for plan in PLANS}


@pytest.fixture
def place(bpffs: Path) -> Path:
    """Where Cilium pins its maps; not made yet."""
    return bpffs / CILIUM.relative_to(pins.BPFFS)


@pytest.fixture
def site(masq_site: MasqSite, bpffs: Path) -> MasqSite:
    """Not started; two prefixes are listed."""
    masq_site.node.program = with_bpffs(bpffs)
    masq_site.node.config["masquerade"]["map"] = "cilium"
    masq_site.node.write_config()
    masq_site.write(*LISTED.values())
    return masq_site


def made_by_cilium(place: Path, version: int) -> Map:
    return pins.open_or_create(place / SPECS[version].name, SPECS[version])


def pinned(place: Path, version: int) -> Map | None:
    return pins.open_map(place / SPECS[version].name, SPECS[version])


def wait_list(place: Path, wanted: dict[int, str]) -> None:
    """Until each family's map has this one prefix, besides link-local."""
    for version, prefix in wanted.items():

        def is_listed(version: int = version, prefix: str = prefix) -> bool:
            target = pinned(place, version)
            return target is not None and listed_in(target, version) == keys(prefix)

        poll(is_listed, 10, lambda: f"not {wanted}")


def test_maps_that_cilium_has_made_are_fed_in_place(site: MasqSite, place: Path) -> None:
    """Entries of an earlier life go; the maps stay the ones that Cilium's datapath asks."""
    maps = {version: made_by_cilium(place, version) for version in SPECS}
    maps[4].update(dict.fromkeys(keys("192.0.2.0/24", LISTED[4]), layout.PRESENT))
    site.node.start_daemon()
    wait_list(place, LISTED)
    assert {version: each.id for version, each in maps.items()} == {
        version: found.id for version in SPECS if (found := pinned(place, version))
    }
    assert {*site.listed()[1:]} == {"169.254.0.0/16", "fe80::/10", *LISTED.values()}
    site.write(*UNLISTED.values())
    wait_list(place, UNLISTED)
    assert site.place.nft("list ruleset").stdout == ""
    assert not site.pins.exists()


def test_maps_that_are_not_there_yet_are_made_as_cilium_would(site: MasqSite, place: Path) -> None:
    """And Cilium, coming later, takes them: type, sizes and flags are what it expects."""
    site.node.start_daemon()
    wait_list(place, LISTED)
    assert {path.name for path in place.iterdir()} == {spec.name for spec in SPECS.values()}
    assert site.place.nft("list ruleset").stdout == ""
    assert not site.pins.exists()
    told = {row["what"]: row["text"] for row in json.loads(site.node.bgpd("doctor", "-o", "json", check=False))}
    assert told["masquerade: bpffs"] == f"{CILIUM} can be written"
    assert not {"masquerade: xt_bpf", "masquerade: socket filter", "masquerade: conntrack"} & told.keys()
    hits = json.loads(site.node.bgpd("masq", "list", "--hits", "-o", "json"))
    assert {row["hits"] for row in hits} == {None}, "Cilium counts none"


@pytest.mark.needs("bird")
def test_a_map_of_other_sizes_blocks_the_list_and_nothing_else(
    fabric: TwoTorFabric, bpffs: Path, place: Path, tmp_path: Path
) -> None:
    """Cilium of another release pins a smaller map: it is left alone and named, and BGP goes on."""
    document = tmp_path / "ip-masq-agent"
    document.write_text(f"nonMasqueradeCIDRs: [{LISTED[4]}]\nresyncInterval: 1s\n")
    masquerade = {"enabled": True, "map": "cilium", "config": {"path": str(document)}}
    node = BgpdNode.announcing(fabric, masquerade=masquerade, program=with_bpffs(bpffs))
    wait_list(place, {4: LISTED[4]})
    smaller = Map.create(replace(SPECS[4], max_entries=1024))
    pins.substitute(smaller.fd, place / SPECS[4].name)
    problem = node.wait_problem(f"{CILIUM / SPECS[4].name} is another map than {SPECS[4].name}")
    assert "its max_entries is 1024, not 16384" in problem
    assert f"rm {CILIUM / SPECS[4].name}" in problem
    first, second = fabric.nodes[0].pod_cidrs
    node.allocate(fabric.nodes[0], first)
    for tor in fabric.tors:
        tor.speaker.wait_no_route(second)
        tor.speaker.wait_route(first)
    assert smaller.entries() == {}
    (place / SPECS[4].name).unlink()
    wait_list(place, {4: LISTED[4]})
    node.wait_healthy()


def test_changing_sides_leaves_nothing_behind(site: MasqSite, place: Path) -> None:
    """own, cilium, own, each by a restart. Cilium's maps stay as they are then: its datapath may go by them."""
    masquerade = site.node.config["masquerade"]
    masquerade["map"] = "own"
    site.node.write_config()
    site.start()
    ours = {path.name for path in site.pins.iterdir()}
    assert not place.exists()
    masquerade["map"] = "cilium"
    site.node.write_config()
    site.node.restart_daemon()
    wait_list(place, LISTED)
    assert site.place.nft("list ruleset").stdout == ""
    assert not site.pins.exists()
    for plan in PLANS:
        assert site.seen(plan.unlisted) == plan.pod_a, "somebody translates still"
    masquerade["map"] = "own"
    site.node.write_config()
    site.node.restart_daemon()
    site.wait_in_force()
    site.check_in_force()
    assert {path.name for path in site.pins.iterdir()} == ours
    site.write(*UNLISTED.values())
    site.wait_entries(keys(UNLISTED[4]))
    wait_list(place, LISTED)
