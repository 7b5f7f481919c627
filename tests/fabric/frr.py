"""FRR's bgpd as a speaker of the lab, alone or with zebra.

This decides how `Options` read in FRR's language, how two of them differ, and when FRR is started and
asked. It does not decide what a test wants of it (`peer`), how its socket is spoken to (`frr_vty`) or what
its JSON means (`frr_json`). bgpd runs with `-Z` and then believes every next hop; with `install_routes` it
runs beside a zebra of its own, which resolves next hops and fills the kernel's table.

FRR stays in its default mode of graceful restart, helper: it keeps a restarting peer's routes and offers no
restart of its own. Where graceful restart was negotiated it leaves on SIGTERM without a NOTIFICATION. The
restart time and long-lived stale time of the first neighbor that names one hold for all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Self

from tests.fabric import frr_json
from tests.fabric.frr_vty import FrrError, FrrVty
from tests.fabric.peer import IPV4, IPV6, Neighbor, Options, PeerSession, ReceivedRoute, Speaker
from tests.fabric.process import Process, poll

BGPD = "/usr/lib/frr/bgpd"
ZEBRA = "/usr/lib/frr/zebra"
BFDD = "/usr/lib/frr/bfdd"

ADDRESS_FAMILY = {IPV4: "ipv4 unicast", IPV6: "ipv6 unicast"}

# The commands that lead to a node, and the lines that stand in it.
Section = tuple[str, ...]
Sections = dict[Section, list[str]]


class Frr(Speaker):
    """`bgpd`; with `install_routes` `zebra` too, and then `bfdd` for BFD. All is in the lab's directory."""

    kind = "frr"
    programs = (BGPD, ZEBRA, BFDD)
    zebra: Process | None = None
    bfdd: Process | None = None

    def start(self, *, restarting: bool = False) -> Self:
        """Start; `restarting` is not FRR's to be told, it decides on the R bit itself."""
        zebra_api = ["-Z"]
        if self.options.install_routes:
            zebra_api = ["-z", str(self.directory / "zserv.api")]
            if self.zebra is None or not self.zebra.running():
                self.zebra = self._start_as_root("zebra", [ZEBRA], zebra_api)
            if self.bfd_ms is not None and (self.bfdd is None or not self.bfdd.running()):
                control = ["--bfdctl", str(self.directory / "bfdd.sock")]
                self.bfdd = self._start_as_root("bfdd", [BFDD, *control], zebra_api)
                with closing(FrrVty(self.directory / "bfdd.vty")) as vty:
                    vty.configure(_bfd_profile(self.bfd_ms))
        (self.directory / "bgpd.conf").write_text("")
        # `-S`: stay root, so that the child keeps PDEATHSIG and may write to the lab's directory.
        argv = [BGPD, "-S", *self._common("bgpd"), *zebra_api, "-p", str(self.options.listen_port)]
        self.process = self.namespace.popen(argv, name=self.name)
        poll(self._answers, 30.0, lambda: self._complaint("does not answer"))
        with closing(
            self._vty()
        ) as vty:  # not by the file: of a line it refuses there it only says so in its log
            vty.configure(commands(render(self.options)))
        return self

    def stop(self) -> None:
        super().stop()
        for process in (self.bfdd, self.zebra):
            if process is not None:
                process.stop()

    def kill(self) -> None:
        super().kill()
        for process in (self.bfdd, self.zebra):
            if process is not None:
                process.kill()

    def ask(self, command: str) -> str:
        """One command as `vtysh` takes it; what bgpd prints. `FrrError` when it refuses."""
        with closing(self._vty()) as vty:
            return vty.ask(command)

    def shut_bfd_down(self, shut: bool) -> None:
        """All BFD sessions administratively down, or not any more: they say AdminDown meanwhile (RFC 5880 6.8.16)."""
        with closing(FrrVty(self.directory / "bfdd.vty")) as vty:
            vty.configure(["bfd", "profile lab", "shutdown" if shut else "no shutdown", "exit", "exit"])

    def paths(self, prefix: str | None = None) -> list[ReceivedRoute]:
        found: list[ReceivedRoute] = []
        with closing(self._vty()) as vty:
            for family, words in ADDRESS_FAMILY.items():
                if prefix is None:
                    found += frr_json.table(vty.ask_json(f"show bgp {words}", "json detail"))
                elif (":" in prefix) == (family == IPV6):
                    found += frr_json.network(vty.ask_json(f"show bgp {words} {prefix}"))
        return found

    def route_count(self, address: str) -> int:
        return frr_json.accepted(self._neighbor(address))

    def session(self, address: str) -> PeerSession:
        return frr_json.session(address, self._neighbor(address))

    def _neighbor(self, address: str) -> frr_json.Json:
        with closing(self._vty()) as vty:
            said = vty.ask_json(f"show bgp neighbors {address}")
        if address not in said:
            raise KeyError(f"frr has no neighbor {address}")
        neighbor: frr_json.Json = said[address]
        return neighbor

    def _apply(self, before: Options) -> None:
        if (before.asn, before.listen_port) != (self.options.asn, self.options.listen_port):
            raise ValueError("bgpd cannot change its ASN or port without a restart")
        if self.process is not None and self.process.running():
            with closing(self._vty()) as vty:
                vty.configure(changes(render(before), render(self.options)))

    def _vty(self) -> FrrVty:
        return FrrVty(self.directory / "bgpd.vty")

    def _answers(self) -> bool:
        if self.process is None or not self.process.running():
            raise RuntimeError(self._complaint("ended at once"))
        try:
            self.ask("show version")
        except (OSError, FrrError):
            return False
        return True

    def _start_as_root(self, daemon: str, program: list[str], zebra_api: list[str]) -> Process:
        """Start zebra or bfdd as root and wait until it can be connected to.

        They have no `-S` and refuse to be root unless root is in the group frrvty: it is shown an
        /etc/group that says so, in a mount namespace of its own.
        """
        (self.directory / f"{daemon}.conf").write_text("")
        group = self.directory / "group"
        group.write_text(re.sub(r"^(frrvty:.*)$", r"\1,root", Path("/etc/group").read_text(), flags=re.M))
        shown = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/group && exec "$@"', str(group)]
        argv = [*shown, *program, "-u", "root", "-g", "root", *self._common(daemon), *zebra_api]
        process = self.namespace.popen(argv, name=f"{self.name}-{daemon}")
        ready = self.directory / f"{daemon}.vty"
        poll(lambda: ready.exists() or not process.running(), 10.0, process.log_tail)
        if not process.running():
            raise RuntimeError(process.log_tail())
        return process

    def _common(self, daemon: str) -> list[str]:
        config, pid = self.directory / f"{daemon}.conf", self.directory / f"{daemon}.pid"
        files = ["-f", str(config), "-i", str(pid), "--vty_socket", str(self.directory)]
        return [*files, "-P", "0", "--log", "stdout"]


def render(options: Options) -> Sections:
    """The configuration as sections; a session needs nothing of the others'."""
    router: Section = (f"router bgp {options.asn}",)
    restart = next((it.restart_time_s for it in options.neighbors), 120)
    long_lived = next((it.long_lived_s for it in options.neighbors if it.long_lived_s is not None), None)
    lines = [
        f"bgp router-id {options.router_id}",
        "no bgp default ipv4-unicast",
        "no bgp ebgp-requires-policy",
        "no bgp network import-check",
        f"bgp graceful-restart restart-time {restart}",
    ]
    if long_lived is not None:
        lines.append(f"bgp long-lived-graceful-restart stale-time {long_lived}")
    for neighbor in options.neighbors:
        lines += _neighbor(neighbor, internal=neighbor.asn == options.asn)
    sections: Sections = {(): options.extra.splitlines(), router: lines}
    for family, words in ADDRESS_FAMILY.items():
        inside = [f"network {it}" for it in options.originate if (":" in it) == (family == IPV6)]
        for neighbor in options.neighbors:
            if family in neighbor.families:
                inside.append(f"neighbor {neighbor.address} activate")
        sections[*router, f"address-family {words}"] = inside
    return sections


def _bfd_profile(interval_ms: int) -> Iterator[str]:
    """What `neighbor ADDRESS bfd profile lab` refers to."""
    yield from ("bfd", "profile lab", f"transmit-interval {interval_ms}", f"receive-interval {interval_ms}")
    yield from ("detect-multiplier 3", "exit", "exit")


def _neighbor(neighbor: Neighbor, *, internal: bool) -> Iterator[str]:
    name = f"neighbor {neighbor.address}"
    yield f"{name} {'' if neighbor.interface is None else 'interface '}remote-as {neighbor.asn}"
    yield f"{name} timers {neighbor.keepalive_s} {neighbor.hold_time_s}"
    yield f"{name} timers connect 1"
    yield f"{name} advertisement-interval 0"
    if neighbor.port != 179:
        yield f"{name} port {neighbor.port}"
    if neighbor.local_address is not None:
        yield f"{name} update-source {neighbor.local_address}"
    if neighbor.password is not None:
        yield f"{name} password {neighbor.password}"
    if neighbor.ttl_security:
        yield f"{name} ttl-security hops {neighbor.multihop or 1}"
    elif neighbor.multihop is not None and not internal:
        yield f"{name} ebgp-multihop {neighbor.multihop}"
    if neighbor.bfd_ms is not None:
        yield f"{name} bfd profile lab"
    if neighbor.passive:
        yield f"{name} passive"
    if not neighbor.graceful_restart:
        yield f"{name} graceful-restart-disable"
    if neighbor.extended_next_hop:
        yield f"{name} capability extended-nexthop"
    yield from neighbor.extra.splitlines()


def commands(sections: Sections) -> Iterator[str]:
    """The sections as the commands of a configuration file, each node left again."""
    for section, lines in sections.items():
        if lines:
            yield from section
            yield from lines
            yield from (_leave(node) for node in reversed(section))


def changes(before: Sections, after: Sections) -> Iterator[str]:
    """The commands that turn one configuration into the other: what goes first, what comes second.

    A line that only gets another value is not taken out first: that alone would reset the session.
    """
    gone = {line.split()[1] for lines in before.values() for line in lines if " remote-as " in line}
    gone -= {line.split()[1] for lines in after.values() for line in lines if " remote-as " in line}
    for section in {**before, **after}:
        have, want = before.get(section, []), after.get(section, [])
        had, wanted = set(have), set(want)
        added = [line for line in want if line not in had]
        replaced = {_key(line) for line in added}
        removed = [line for line in have if line not in wanted and _key(line) not in replaced]
        lines = [f"no neighbor {address}" for address in sorted(gone) if len(section) == 1]
        lines += [
            _negated(line)
            for line in removed
            if not (line.startswith("neighbor ") and line.split()[1] in gone)
        ]
        yield from commands({section: [*lines, *added]})


def _key(line: str) -> tuple[str, ...]:
    """What a line sets, without the value."""
    words = tuple(line.removeprefix("no ").split())
    if words[0] == "network":
        return words
    if words[0] == "neighbor":  # `timers 3 9` and `timers connect 1` are two settings
        return words[:4] if words[2:4] == ("timers", "connect") else words[:3]
    return words[:-1]


def _negated(line: str) -> str:
    return line.removeprefix("no ") if line.startswith("no ") else f"no {line}"


def _leave(node: str) -> str:
    return "exit-address-family" if node.startswith("address-family") else "exit"
