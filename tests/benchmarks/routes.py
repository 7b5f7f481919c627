"""`tests/bench routes`: the numbers of routing, all in one run. This names and orders them; others measure."""

from __future__ import annotations

from contextlib import ExitStack

from tests.benchmarks import bulk, continuity, footprint, latency
from tests.benchmarks.contenders import BirdScript, Contender, GobgpScript, Ours
from tests.benchmarks.installation import Installation
from tests.benchmarks.report import Result
from tests.benchmarks.stage import stage
from tests.fabric.netns import Lab
from tests.fabric.node import BgpdNode
from tests.fabric.screen import Screen
from tests.fabric.topology import TwoTorFabric

PROGRAMS = ("bird", "birdc", "gobgpd", "gobgp")


def run(screen: Screen) -> list[Result]:
    """Under eight minutes on two cores."""
    return [*_with_api_server(screen), *_with_manifests(screen)]


def _with_api_server(screen: Screen) -> list[Result]:
    """What depends on an API server, with all three contenders running all the time."""
    with Lab() as lab, ExitStack() as stack:
        with screen.step("fabric, API server"):
            place = stack.enter_context(stage(lab))
        ours = Ours(place, place.fabric.nodes[0])
        bird = BirdScript(place, place.fabric.nodes[1])
        gobgp = GobgpScript(place, place.fabric.nodes[2])
        contenders: list[Contender] = [ours, bird, gobgp]
        with screen.step(f"start {', '.join(it.name for it in contenders)}"):
            for contender in contenders:
                place.api.register(contender.place)
                contender.start()
            for contender in contenders:
                prefix = contender.place.pod_cidrs[0]
                place.api.assign(contender.place, [prefix])
                for tor in place.fabric.tors:
                    tor.speaker.wait_route(prefix, peer=contender.place.address)
        with screen.step(f"{latency.CHANGES} changes of each one's Node"):
            found = latency.results(latency.measure(place, contenders))
        found += footprint.memory(ours, bird, gobgp)
        with screen.step(f"idle for {footprint.IDLE_S:.0f} s"):
            found += footprint.idle(contenders)
    return found


def _with_manifests(screen: Screen) -> list[Result]:
    """What needs the node and the fabric only, on a directory of manifests."""
    with Lab() as lab:
        fabric = TwoTorFabric(lab, install_routes=False).start()
        place = fabric.nodes[0]
        node = BgpdNode.at(place, bulk.bgp_section(fabric))
        with screen.step("a cold start, to the route at the ToR"):
            found = [footprint.cold(fabric, node, place)]
        node.wait_healthy()
        with screen.step(f"{footprint.STARTS} starts of the daemon"):
            found += footprint.starts(node)
        node.wait_healthy()
        with screen.step("restart, kill the daemon, kill ExaBGP; the same to a BIRD"):
            found += continuity.results(fabric, node, place)
        with screen.step("two releases"):
            installation = Installation(lab.directory / "installation")
        with screen.step("an upgrade"):
            found += continuity.upgrade(fabric, fabric.nodes[2], installation)
        with screen.step(f"{bulk.FEW} and {bulk.MANY} prefixes"):
            found += bulk.results(fabric, node, place)
    return found
