"""The demo: the two-ToR fabric on this machine, the real daemon on its three nodes, and what one would look for.

`python -m tests.fabric.demo [--keep]`, as root; `tests/demo` installs what is needed and calls it. This decides
which story is told: routes and sessions at the ToRs, a pod reached with its own address, a pod CIDR added,
masquerade (`demo_masq`), NetworkPolicy (`demo_policy`), a daemon killed, a node drained. It does not decide how it
looks (`screen`) nor how things are watched (`observe`, `reach`). Every claim is a check of what the ToRs, the wire
and the far end say, and one that fails makes the exit status 1.
"""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from tests.fabric.bird import Bird
from tests.fabric.bird_control import BirdControl, BirdError
from tests.fabric.demo_masq import POD, POD6, MasqueradePart, show
from tests.fabric.demo_policy import PolicyPart
from tests.fabric.netns import FILES_DIR, NETNS_DIR, PREFIX, Lab, Namespace, missing
from tests.fabric.node import BgpdNode, node_manifest, two_tor_bgp
from tests.fabric.observe import BgpCapture, RouteSampler
from tests.fabric.process import poll
from tests.fabric.reach import ping, source_seen
from tests.fabric.screen import Screen
from tests.fabric.topology import CABLE, HEALTH_CHECKER, STRANGER, NodePlace, TorPlace, TwoTorFabric

DRAIN_WAIT_S = 1.5
_BLIND_MS = 500  # samples further apart have proven nothing
_GRACEFUL_SHUTDOWN = "(65535,0)"  # as BIRD writes 65535:0, RFC 8326


class Demo:
    """The story, a chapter a method, in the order of `tell`."""

    def __init__(self, lab: Lab, screen: Screen) -> None:
        self.lab, self.screen = lab, screen
        self.nodes: list[BgpdNode] = []
        self.stands = False  # whether there is a fabric with all its nodes to look at

    def tell(self) -> None:
        self.build()
        self.show_routes()
        self.show_sessions()
        self.reach_pod()
        self.add_pod_cidr()
        self.masquerade.show_who_sees_whom(self.nodes[0], self.pod)
        self.masquerade.change_document(self.nodes[0], self.pod)
        self.policy.show(self.nodes[0], self.pod)
        self.kill_daemon()
        self.drain_node()
        self.show_status()

    # --- chapters -----------------------------------------------------------------------------------------

    def build(self) -> None:
        """The network, the ToRs, the nodes; ends when every node's first pod CIDR is at both ToRs."""
        screen = self.screen
        with screen.step("network: 3 nodes, 2 ToRs, a gateway and an outside host, a namespace each"):
            self.fabric = TwoTorFabric(self.lab)
        with screen.step("ToRs: BIRD as 11.11.255.1 and 11.11.255.2, AS 64512"):
            self.fabric.start()
        self.nodes = [BgpdNode.at(place, two_tor_bgp(self.fabric)) for place in self.fabric.nodes]
        self.masquerade = MasqueradePart(self.lab, screen, self.fabric)
        self.policy = PolicyPart(screen, self.fabric)
        with screen.step("bgpd doctor: whether this machine can masquerade and enforce policies"):
            self.masquerade.configure(self.nodes)
            self.policy.configure(self.nodes[0], self.masquerade.absent)
        for node, place in zip(self.nodes, self.fabric.nodes, strict=True):
            with screen.step(f"{place.namespace.name} {place.address}: bgpd, its ExaBGP, a directory of manifests"):
                node.start()
        with screen.step("waiting for every node's pod CIDR at both ToRs"):
            for place in self.fabric.nodes:
                for tor in self.fabric.tors:
                    tor.speaker.wait_route(place.pod_cidrs[0], peer=place.address)
            for node in self.nodes:
                node.wait_healthy()
        self.stands = True

    def show_routes(self) -> None:
        self.screen.title("Routes at the ToRs")
        for tor in self.fabric.tors:
            self._birdc(tor, "show route where source = RTS_BGP")
            held = tor.speaker.routes()
            wanted = {place.pod_cidrs[0]: place.address for place in self.fabric.nodes}
            found = {prefix: route.next_hop for prefix, route in held.items() if prefix in wanted and route.usable}
            self.screen.check(
                f"{tor.name} reaches 188.188.{{0,1,2}}.0/24 by .63, .67 and .68", found == wanted, f"it has {found}"
            )

    def show_sessions(self) -> None:
        self.screen.title("Sessions")
        for tor in self.fabric.tors:
            self._birdc(tor, 'show protocols "n_*"')
            states = {place.address: tor.speaker.session(place.address).state for place in self.fabric.nodes}
            up = all(state == "established" for state in states.values())
            self.screen.check(f"{tor.name} has a session with every node", up, str(states))
        show(self.screen, self.nodes[0], "peers")

    def reach_pod(self) -> None:
        """A pod answers by its own address, and is seen by it: nobody translates on the way."""
        screen, checker = self.screen, self.fabric.outside
        screen.title(f"A pod on node1, and a health checker behind the fabric ({HEALTH_CHECKER})")
        self.pod = self.fabric.add_pod(self.fabric.nodes[0], POD, "pod1")
        screen.check(f"ping {POD} is answered", ping(checker, POD))
        seen = source_seen(checker, self.pod, POD)
        text = f"the health checker dials the pod: it sees {HEALTH_CHECKER}"
        screen.check(text, seen == HEALTH_CHECKER, f"it saw {seen}")
        seen = source_seen(self.pod, checker, HEALTH_CHECKER)
        text = f"the pod dials the health checker: it sees {POD}, the pod's own address"
        screen.check(text, seen == POD, f"it saw {seen}")

    def add_pod_cidr(self) -> None:
        """The cluster gives node1 a second pod CIDR; the daemon runs on."""
        screen, place, node = self.screen, self.fabric.nodes[0], self.nodes[0]
        prefix = str(ipaddress.ip_network(place.pod_cidrs[1]))
        screen.title(f"Node1 is given a second pod CIDR, {prefix}, while it runs")
        text = node_manifest(place.name, list(place.pod_cidrs), place.address, place.address6)
        temporary = node.manifests / ".node.yaml.new"
        temporary.write_text(text)
        with contextlib.ExitStack() as stack:
            controls = self._controls(stack)
            arrived: dict[str, float] = {}
            renamed = time.monotonic()
            temporary.rename(node.manifests / "node.yaml")

            def probe() -> bool:
                for name in controls.keys() - arrived.keys():
                    if _state(controls[name], prefix) == "announced":
                        arrived[name] = time.monotonic() - renamed
                return len(arrived) == len(controls)

            poll(probe, 10.0, lambda: f"{prefix} is at {sorted(arrived)} only", every_s=0.0005)
        screen.table(
            [("0.0 ms", "the manifest is renamed into place")]
            + [(f"{1000 * at:.1f} ms", f"{prefix} is in {name}'s table") for name, at in sorted(arrived.items())]
        )
        self._birdc(self.fabric.tors[0], f"show route {prefix}")
        hops = [tor.speaker.wait_route(prefix).next_hop for tor in self.fabric.tors]
        text = f"{prefix} is at both ToRs, next hop {place.address6}, over the IPv4 sessions"
        screen.check(text, hops == [place.address6] * 2, f"next hops {hops}")
        self._give_pod_ipv6(place)
        screen.check(f"ping {POD6} from outside is answered", ping(self.fabric.outside, POD6))

    def kill_daemon(self) -> None:
        """SIGKILL, start again: the sessions are ExaBGP's, so nobody else may notice."""
        screen, place, node = self.screen, self.fabric.nodes[1], self.nodes[1]
        screen.title("The daemon of node2 is killed (SIGKILL) and started again")
        prefix = place.pod_cidrs[0]
        with contextlib.ExitStack() as stack:
            capture = stack.enter_context(BgpCapture(place.namespace, CABLE))
            samplers = [
                stack.enter_context(RouteSampler(_bird(tor).control_path, [prefix])) for tor in self.fabric.tors
            ]
            for sampler in samplers:
                sampler.wait_samples()
            assert node.daemon is not None
            with screen.step(f"kill -9 {node.daemon.pid}, start it again, until it has read back what is announced"):
                node.daemon.kill()
                self.masquerade.check_without_daemon()
                node.start_daemon()
                node.wait_healthy()
            with screen.step("waiting for a keepalive each way on both sessions after that (hold time 9 s)"):
                self._wait_keepalives(capture, place)
        screen.line(f"    on the wire: {dict(capture.counts())}, {capture.dropped} frames missed")
        for tor, sampler in zip(self.fabric.tors, samplers, strict=True):
            seen = sampler.result()
            gap = f"the widest gap {seen.longest_blind_ms:.0f} ms"
            text = f"{tor.name} had {prefix} in all {seen.count} samples, {gap}"
            watched = seen.count > 0 and seen.longest_blind_ms < _BLIND_MS
            screen.check(text, watched and seen.losses == 0 and not seen.lost, str(seen))
        strange = capture.besides_keepalives()
        quiet = not strange and not capture.dropped and bool(capture.messages())
        screen.check("nothing but keepalives was sent", quiet, "\n".join(map(str, strange)))

    def drain_node(self) -> None:
        """First less preferred, then gone: the order in which a fabric loses no packet."""
        screen, place, node = self.screen, self.fabric.nodes[2], self.nodes[2]
        prefix = place.pod_cidrs[0]
        screen.title(f"Node3 is drained: bgpd drain --wait {DRAIN_WAIT_S}")
        events = self._watch_drain(place, node, prefix)
        screen.table([(f"{at:8.3f} s", text) for at, text in events])
        order = [text.partition(": ")[2] for _, text in events if text.startswith("tor-")]
        at = [when for when, text in events if text.startswith("tor-")]
        told_first = order == [f"{prefix} {_WORDS['shutdown']}"] * 2 + [f"{prefix} {_WORDS['gone']}"] * 2
        screen.check("both ToRs had graceful-shutdown (65535:0) before any withdrawal", told_first, str(events))
        waited = told_first and at[2] - at[1] >= DRAIN_WAIT_S - 0.1
        screen.check(f"the withdrawal came {DRAIN_WAIT_S} s later", waited, str(events))
        up = all(tor.speaker.session(place.address).established for tor in self.fabric.tors)
        screen.check("the sessions of node3 stayed up", up)
        with screen.step("bgpd undrain"):
            node.bgpd("undrain")
            for tor in self.fabric.tors:
                tor.speaker.wait_route(prefix, where=lambda route: "65535:0" not in route.communities)
        back = [tor.speaker.wait_route(prefix).next_hop for tor in self.fabric.tors]
        screen.check(f"after bgpd undrain {prefix} is back at both", back == [place.address] * 2, str(back))

    def show_status(self) -> None:
        self.screen.title("What the node itself says")
        show(self.screen, self.nodes[0], "status")
        for node in self.nodes:
            problems = node.status()["problems"]
            self.screen.check(f"{node.namespace.name} knows of no problem", not problems, "\n".join(problems))

    # --- how ----------------------------------------------------------------------------------------------

    def _give_pod_ipv6(self, place: NodePlace) -> None:
        self.pod.add_address(CABLE, f"{POD6}/128")
        place.namespace.add_address("vpod1", "fe80::1/64")
        place.namespace.add_route(f"{POD6}/128", dev="vpod1")
        self.pod.add_route("default", via="fe80::1", dev=CABLE)

    def _wait_keepalives(self, capture: BgpCapture, place: NodePlace) -> None:
        since = time.time()
        ways = {(place.address, tor.loopback) for tor in self.fabric.tors}
        ways |= {(there, here) for here, there in ways}

        def probe() -> bool:
            return ways <= {(it.src, it.dst) for it in capture.messages() if it.time > since}

        poll(probe, 9.0, lambda: f"no keepalives on some of {ways}", every_s=0.05)

    def _watch_drain(self, place: NodePlace, node: BgpdNode, prefix: str) -> list[tuple[float, str]]:
        """What each ToR's table said and when, in seconds after the command was given."""
        events = [(0.0, f"node3: bgpd drain --wait {DRAIN_WAIT_S}")]
        argv = [str(node.program), "drain", "--wait", str(DRAIN_WAIT_S), "--config", str(node.config_file)]
        with contextlib.ExitStack() as stack:
            controls = self._controls(stack)
            states = dict.fromkeys(controls, "announced")
            began = time.monotonic()
            command = place.namespace.popen(argv, name="drain")
            while command.running():
                for name, control in controls.items():
                    state = _state(control, prefix)
                    if state != states[name]:
                        states[name] = state
                        events.append((time.monotonic() - began, f"{name}: {prefix} {_WORDS[state]}"))
                if time.monotonic() - began > 30:
                    raise TimeoutError(f"the drain does not end; {command.log_tail()}")
                time.sleep(0.001)
        code = command.popen.returncode
        last = (command.log().strip().splitlines() or [""])[-1]
        events.append((time.monotonic() - began, f"node3: the command ends with {code}: {last}"))
        return sorted(events)

    def _controls(self, stack: contextlib.ExitStack) -> dict[str, BirdControl]:
        """A connection to each ToR's BIRD, by the ToR's name, as long as `stack` lasts."""
        return {tor.name: stack.enter_context(BirdControl(_bird(tor).control_path)) for tor in self.fabric.tors}

    def _birdc(self, tor: TorPlace, command: str) -> None:
        words = command.split(" ")
        said = tor.namespace.run(["birdc", "-s", str(_bird(tor).control_path), *words]).stdout
        self.screen.shell(tor.name, shlex.join(["birdc", *words]), said)

    def ways_to_look(self) -> list[str]:
        """Commands, exactly as they work from another terminal."""
        node, tor = self.nodes[0], self.fabric.tors[0]
        enter = f"nsenter --net={NETNS_DIR}"

        def inside(namespace: Namespace, command: str) -> str:
            return f"  {enter}/{namespace.netns_name} {command}"

        lines = [
            "the ToR's tables and sessions:",
            inside(tor.namespace, f"birdc -s {_bird(tor).control_path} show route"),
            "the daemon on node1 (status, peers, routes, doctor, drain --wait 5, undrain):",
            inside(node.namespace, f"{node.program} status --config {node.config_file}"),
            "change node1's pod CIDRs and watch them arrive:",
            f"  $EDITOR {node.manifests}/node.yaml",
            "logs: daemon and ExaBGP of node1, BIRD of tor-a:",
            f"  tail -f {self.lab.directory}/node1-bgpd.log {self.lab.directory}/node1-speaker.log",
            f"  tail -f {self.lab.directory}/tor-a-bird.log",
        ]
        if not self.masquerade.absent:
            lines += [
                "who keeps the pods' addresses, and a change of that:",
                inside(node.namespace, f"{node.program} masq list --hits --config {node.config_file}"),
                inside(node.namespace, f"{node.program} masq test {STRANGER} --config {node.config_file}"),
                f"  $EDITOR {self.masquerade.document}",
            ]
        if not self.policy.absent:
            explain = f"policy explain {HEALTH_CHECKER} {POD}:8080/TCP"
            lines += [
                "write policies into node1's directory of manifests, and ask what they come to:",
                f"  $EDITOR {node.manifests}/policy.yaml",
                inside(node.namespace, f"{node.program} {explain} --config {node.config_file}"),
                inside(node.namespace, f"{node.program} flows --verdict dropped --config {node.config_file}"),
            ]
        if shutil.which("ping"):
            lines += ["reach the pod from outside:", inside(self.fabric.outside, f"ping -c 3 {POD}")]
        if shutil.which("tcpdump"):
            lines += ["BGP on node1's wire:", inside(node.namespace, "tcpdump -ni eth0 tcp port 179")]
        return lines


_WORDS = {
    "announced": "is announced as usual",
    "shutdown": "carries graceful-shutdown",
    "gone": "is withdrawn",
}


def _state(control: BirdControl, prefix: str) -> str:
    """One of `_WORDS`, for what a ToR has of a prefix now."""
    try:
        lines = control.ask(f"show route {prefix} all")
    except BirdError:
        return "gone"
    if not any(" unicast [" in line for line in lines):
        return "gone"
    return "shutdown" if any(_GRACEFUL_SHUTDOWN in line for line in lines) else "announced"


def _bird(tor: TorPlace) -> Bird:
    assert isinstance(tor.speaker, Bird)
    return tor.speaker


def _stay(demo: Demo, screen: Screen) -> None:
    """Leaves everything running until Enter, Ctrl-C, or a signal when there is nobody to press a key."""
    screen.title("Everything keeps running. From another terminal, as root:")
    for line in demo.ways_to_look():
        screen.out.write(f"  {line}\n")  # whole, however long: it is to be copied
    screen.line()
    screen.line("Enter or Ctrl-C ends it.")
    try:
        input()
    except EOFError:
        signal.pause()


def _tell(lab: Lab, screen: Screen, *, keep: bool) -> bool:
    """The whole demo in a lab; whether all was as it should be."""
    demo = Demo(lab, screen)
    try:
        demo.tell()
    except (OSError, RuntimeError, AssertionError) as problem:  # TimeoutError is an OSError
        screen.check("the demo got to its end", False, str(problem) or type(problem).__name__)
    passed = screen.summary()
    if keep and demo.stands:
        with contextlib.suppress(KeyboardInterrupt):
            _stay(demo, screen)
    return passed


def _remove_strays() -> None:
    """What an interruption caught between being made and being noted by the lab: it carries our pid."""
    for path in NETNS_DIR.glob(f"{PREFIX}-{os.getpid()}-*"):
        subprocess.run(["ip", "netns", "del", path.name], capture_output=True, check=False)
    for path in FILES_DIR.glob(f"{PREFIX}-{os.getpid()}-*"):
        shutil.rmtree(path, ignore_errors=True)


def _hang_up(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def main(arguments: Sequence[str] | None = None) -> int:
    """0: every check passed. 1: one failed, or the machine lacks something. 130: interrupted."""
    parser = argparse.ArgumentParser(prog="tests/demo", description=__doc__.partition("\n")[0])
    parser.add_argument("--keep", action="store_true", help="leave it running and say how to look around")
    options = parser.parse_args(arguments)
    reason = missing("bird", "birdc")
    if reason is not None:
        sys.stderr.write(f"tests/demo: {reason}\n")
        return 1
    screen = Screen()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with it ignored
    signal.signal(signal.SIGHUP, _hang_up)  # the terminal was closed
    try:
        with Lab() as lab:
            try:
                passed = _tell(lab, screen, keep=options.keep)
            finally:
                signal.signal(signal.SIGINT, signal.SIG_IGN)  # impatience must not leave half of it standing
                screen.line()
                screen.line("taking everything down ...")
    except KeyboardInterrupt:
        screen.line("interrupted; nothing is left")
        return 130
    finally:
        _remove_strays()
    screen.line("nothing is left")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
