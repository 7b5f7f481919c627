"""BIRD 2 as a speaker of the lab: its configuration and its life.

This decides how `Options` read in BIRD's language, and when BIRD is started, told to read it again, and
asked. It does not decide what a test wants of it (`peer`), how its socket is spoken to (`bird_control`) or
what its words mean (`bird_text`).

Two things BIRD does not tell: which stale routes were refreshed once the session is back (all that arrived
before count as stale until End-of-RIB), and the numbers of a NOTIFICATION (found again from its words).
"""

from __future__ import annotations

from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Self

from tests.fabric import bird_text
from tests.fabric.bird_control import BirdControl, BirdError
from tests.fabric.peer import IPV4, IPV6, Neighbor, Options, PeerSession, ReceivedRoute, Speaker
from tests.fabric.process import poll, run

_CHANNEL = {IPV4: "ipv4", IPV6: "ipv6"}
_NETWORK_NOT_FOUND = 8001

_HEAD = """\
log stderr all;
router id {router_id};
timeformat protocol iso long us;
timeformat route iso long us;
protocol device {{ scan time 1; }}
protocol direct {{ ipv4; ipv6; }}  # what recursive next hops are resolved with
"""


class Bird(Speaker):
    """`bird` with a configuration, a control socket and a log of its own in the lab's directory."""

    kind = "bird"
    programs = ("bird",)

    @property
    def control_path(self) -> Path:
        """The control socket: `RouteSampler` and `birdc -s` find it here."""
        return self.directory / "ctl"

    def start(self, *, restarting: bool = False) -> Self:
        self._write()
        config = self.directory / "bird.conf"
        argv = ["bird", "-f", "-c", str(config), "-s", str(self.control_path)]
        self.process = self.namespace.popen([*argv, *(["-R"] if restarting else [])], name=self.name)
        poll(self._answers, 20.0, lambda: self._complaint("does not answer"))
        return self

    def ask(self, command: str) -> list[str]:
        """One command as `birdc` takes it; the lines of the answer. `BirdError` when BIRD refuses."""
        with closing(BirdControl(self.control_path)) as control:
            return control.ask(command)

    def paths(self, prefix: str | None = None) -> list[ReceivedRoute]:
        try:
            lines = self.ask(f"show route {prefix or ''} all")
        except BirdError as problem:
            if problem.code == _NETWORK_NOT_FOUND:
                return []
            raise
        protocols = {it.name: it for it in self._protocols()}
        found = []
        for path in bird_text.paths(lines):
            protocol = protocols.get(path.protocol)
            if protocol is not None:
                family = IPV6 if ":" in path.prefix else IPV4
                away = not protocol.session.established or path.since < protocol.since
                stale = family in protocol.restarting and away
                found.append(path.received(protocol.session.address, stale=stale))
        return found

    def route_count(self, address: str) -> int:
        return self._protocol(address).imported

    def session(self, address: str) -> PeerSession:
        return self._protocol(address).session

    def _protocols(self) -> list[bird_text.Protocol]:
        return list(bird_text.protocols(self.ask("show protocols all"), datetime.now()))

    def _protocol(self, address: str) -> bird_text.Protocol:
        for protocol in self._protocols():
            if protocol.session.address == address:
                return protocol
        raise KeyError(f"bird has no neighbor {address}")

    def _apply(self, before: Options) -> None:
        self._write()
        if self.process is not None and self.process.running():
            self.ask("configure")

    def _answers(self) -> bool:
        if self.process is None or not self.process.running():
            raise RuntimeError(self._complaint("ended at once"))
        try:
            self.ask("show status")
        except OSError:
            return False
        return True

    def _write(self) -> None:
        """Write the configuration and let BIRD check it, so that a mistake is an error here."""
        for version in (4, 6):
            prefixes = [it for it in self.options.originate if (":" in it) == (version == 6)]
            include = self.directory / f"originate{version}.conf"
            include.write_text("".join(f"route {it} blackhole;\n" for it in prefixes))
        config = self.directory / "bird.conf"
        config.write_text(render(self.options, self.directory))
        run(["bird", "-p", "-c", str(config)])


def render(options: Options, directory: Path) -> str:
    """The whole configuration file; the originated prefixes are in files of their own in `directory`."""
    parts = [_HEAD.format(router_id=options.router_id)]
    for version in (4, 6):
        include = directory / f"originate{version}.conf"
        # BIRD reads `include` only at the start of a line.
        parts.append(f'protocol static originate{version} {{ ipv{version};\ninclude "{include}";\n}}')
        if options.install_routes:
            channel = f"ipv{version} {{ import none; export where source = RTS_BGP; }}"
            parts.append(f"protocol kernel kernel{version} {{ {channel}; merge paths on; scan time 5; }}")
    bfd_ms = next((it.bfd_ms for it in options.neighbors if it.bfd_ms is not None), None)
    if bfd_ms is not None:
        timers = f"interval {bfd_ms} ms; multiplier 3;"
        parts.append(f'protocol bfd {{ interface "*" {{ {timers} }}; multihop {{ {timers} }}; }}')
    parts += [_neighbor(neighbor, options) for neighbor in options.neighbors]
    return "\n".join([*parts, options.extra, ""])


def protocol_name(address: str) -> str:
    """The name of the BGP protocol for this neighbor, for `birdc` commands such as `disable NAME`."""
    return "n_" + address.replace(".", "_").replace(":", "_")


def _neighbor(neighbor: Neighbor, options: Options) -> str:
    local = f"local {neighbor.local_address or ''} port {options.listen_port} as {options.asn};"
    lines = [
        local,
        f"neighbor {neighbor.address} port {neighbor.port} as {neighbor.asn};",
        f"hold time {neighbor.hold_time_s}; keepalive time {neighbor.keepalive_s};",
        # BIRD's own five and more seconds before a first or next try would be most of a test's time.
        "connect delay time 1; connect retry time 2; error wait time 1, 2;",
        f"graceful restart {'on' if neighbor.graceful_restart else 'off'};",
        f"graceful restart time {neighbor.restart_time_s};",
    ]
    if neighbor.long_lived_s is not None:
        lines.append(f"long lived graceful restart on; long lived stale time {neighbor.long_lived_s};")
    if neighbor.interface is not None:
        lines.append(f'interface "{neighbor.interface}";')
    if neighbor.multihop is not None:
        lines.append(f"multihop {neighbor.multihop};")
    if neighbor.ttl_security:
        lines.append("ttl security on;" if neighbor.multihop is not None else "direct; ttl security on;")
    elif neighbor.direct:
        lines.append("direct;")
    if neighbor.bfd_ms is not None:
        lines.append("bfd on;")
    if neighbor.passive:
        lines.append("passive on;")
    if neighbor.password is not None:
        lines.append(f'password "{neighbor.password}";')
    extended = "extended next hop on; " if neighbor.extended_next_hop else ""
    export = 'export where proto = "originate4" || proto = "originate6";'
    lines += [f"{_CHANNEL[family]} {{ import all; {export} {extended}}};" for family in neighbor.families]
    body = "\n  ".join([*lines, *neighbor.extra.splitlines()])
    return f"protocol bgp {protocol_name(neighbor.address)} {{\n  {body}\n}}"
