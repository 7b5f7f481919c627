"""`tests/bench services`: 500 Services with 5,000 endpoints, and how soon a change of one endpoint is a route.

Every Service has a load balancer address, `externalTrafficPolicy: Local` and one of ten endpoints on the node that is
measured. First announcement: from the start of the process, its BGP sessions up, to all routes at both ToRs. A
change: from the request to the API server that turns the local endpoint's readiness to the route's going, or coming,
at the later of both ToRs. Beside it a script with the official client and a BIRD; one after the other, for both have
the same routes.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from ipaddress import IPv4Network
from typing import Any

from tests.benchmarks.bulk import held
from tests.benchmarks.contenders import bgp_options
from tests.benchmarks.report import Result, percentile
from tests.benchmarks.stage import Stage, stage
from tests.benchmarks.tap import RouteTap
from tests.fabric.bird import Bird
from tests.fabric.bird_control import BirdControl
from tests.fabric.netns import Lab
from tests.fabric.node import BgpdNode, two_tor_bgp
from tests.fabric.process import Process, poll
from tests.fabric.screen import Screen
from tests.fabric.service_objects import endpoint, endpoint_slice, service
from tests.fabric.topology import NodePlace

PROGRAMS = ("bird", "birdc")
SERVICES, ENDPOINTS = 500, 10
CHANGED = 60  # each goes and comes
TIMEOUT_S = 30.0
ROOM = IPv4Network("188.188.128.0/22")
_PAUSE_S = (0.05, 0.12)  # at random, so that nobody's rhythm meets ours
_NAMESPACES = "/api/v1/namespaces"
_SERVICES = f"{_NAMESPACES}/shop/services"
_SLICES = "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices"


def run(screen: Screen) -> list[Result]:
    """Under three minutes on two cores."""
    with Lab() as lab, ExitStack() as stack:
        with screen.step("fabric, API server"):
            place = stack.enter_context(stage(lab))
        ours, theirs = place.fabric.nodes[:2]
        with screen.step("a node with sessions, and a BIRD"):
            node = _node(place, ours)
            bird = Bird(theirs.namespace, bgp_options(place.fabric, theirs)).start()
            for tor in place.fabric.tors:
                tor.speaker.wait_established(theirs.address)
        with screen.step(f"{SERVICES} Services with {SERVICES * ENDPOINTS} endpoints"):
            _write(place, ours.name)
        first, changes = {}, {}
        with screen.step("bgpd"):
            first["bgpd"] = _first(place, ours, lambda: _daemon(node))
            changes["bgpd"] = _changes(place, ours.name)
            node.stop_speaker()
        with screen.step("a script and BIRD"):
            first["bird+client"] = _first(place, theirs, lambda: _script(place, theirs, ours.name, bird))
            changes["bird+client"] = _changes(place, ours.name)
    return _results(first, changes)


def _results(first: dict[str, float], changes: dict[str, list[float]]) -> list[Result]:
    def against(name: str, values: dict[str, float], unit: str, goal: float | None = None) -> Result:
        others = {who: value for who, value in values.items() if who != "bgpd"}
        return Result(name=name, value=values["bgpd"], unit=unit, goal=goal, beside=others)

    p50, p99 = ({who: percentile(taken, share) for who, taken in changes.items()} for share in (0.5, 0.99))
    return [
        against("services_500_first_s", first, "s", 2.0),
        against("endpoint_to_route_p50_ms", p50, "ms", 30.0),
        against("endpoint_to_route_p99_ms", p99, "ms"),
    ]


def _node(place: Stage, ours: NodePlace) -> BgpdNode:
    """The product with its sessions up, and no daemon: what it starts with is what a restart finds."""
    bgp = two_tor_bgp(place.fabric)
    entry = {"advertisementType": "Service", "service": {"addresses": ["LoadBalancerIP"]}, "selector": {}}
    bgp["advertisements"].append(entry)
    source = {"kubernetes": {"kubeconfig": str(place.kubeconfig)}}
    node = BgpdNode(ours.namespace, ours.name, bgp, source=source)
    place.api.register(ours)
    place.api.assign(ours, ours.pod_cidrs[:1])
    node.start()
    node.wait_healthy()
    assert node.daemon is not None
    node.daemon.stop()
    return node


def _daemon(node: BgpdNode) -> Process:
    node.start_daemon()
    assert node.daemon is not None
    return node.daemon


def _write(place: Stage, here: str) -> None:
    place.api.create(_NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}})
    for number in range(SERVICES):
        made = _service(number)
        place.api.create(_SERVICES, made)
        place.api.patch(f"{_SERVICES}/{_name(number)}/status", {"status": made["status"]})
        place.api.create(_SLICES, _slice(number, here, ready=True))


def _name(number: int) -> str:
    return f"web-{number}"


def _address(number: int) -> str:
    return str(ROOM[number])


def _service(number: int) -> dict[str, Any]:
    made = service(_name(number), ingress=[_address(number)], externalTrafficPolicy="Local")
    made["spec"].pop("clusterIPs")  # the API server assigns one
    return made


def _slice(number: int, here: str, *, ready: bool) -> dict[str, Any]:
    others = [endpoint(f"10.2.{number % 256}.{it}", f"elsewhere-{it}") for it in range(1, ENDPOINTS)]
    return endpoint_slice(_name(number), [endpoint("10.1.1.1", here, ready=ready), *others])


def _first(place: Stage, announcer: NodePlace, start: Callable[[], Process]) -> float:
    """Seconds from `start` until both ToRs hold every address from this node."""
    with ExitStack() as stack:
        controls = []
        for tor in place.fabric.tors:
            assert isinstance(tor.speaker, Bird)
            controls.append(stack.enter_context(BirdControl(tor.speaker.control_path)))

        def counts() -> list[int]:
            return [held(control, announcer) for control in controls]

        began = time.monotonic()
        process = start()
        poll(lambda: min(counts()) >= SERVICES, TIMEOUT_S, lambda: f"the ToRs hold {counts()}; {process.log_tail()}")
        return time.monotonic() - began


def _changes(place: Stage, here: str) -> list[float]:
    """Milliseconds of every change. The Services are picked anew for each contender, each of them once."""
    taken = []
    rand = random.Random(1)
    with RouteTap({tor.name: tor.namespace for tor in place.fabric.tors}) as tap:
        for number in rand.sample(range(SERVICES), CHANGED):
            prefix, path = f"{_address(number)}/32", f"{_SLICES}/{_name(number)}-a"
            for ready, moment in ((False, tap.departure), (True, tap.arrival)):
                time.sleep(rand.uniform(*_PAUSE_S))
                began, _ = place.api.replace(path, _slice(number, here, ready=ready))
                taken.append(1000 * (moment(prefix, TIMEOUT_S) - began))
    return taken


def _script(place: Stage, theirs: NodePlace, here: str, bird: Bird) -> Process:
    """It follows the endpoints of the other node, and announces from its own."""
    server = f"{place.control_plane.address}:{place.control_plane.port}"
    options = {
        "server": server,
        "ca": place.control_plane.certificate_authority,
        "token": place.token,
        "node": here,
        "file": bird.directory / "originate4.conf",
        "control": bird.control_path,
    }
    argv = [sys.executable, "-m", "tests.benchmarks.services_script"]  # as a module: `http` beside it is not Python's
    argv += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return theirs.namespace.popen(argv, name="script")
