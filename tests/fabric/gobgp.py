"""GoBGP as a speaker of the lab.

This decides how `Options` read in GoBGP's configuration (JSON), and when it is started, told to read it
again (SIGHUP) and asked (the `gobgp` command over a unix socket, 10 ms a question). It does not decide what
a test wants of it (`peer`) or what its answers mean (`gobgp_json`).

GoBGP keeps a lost session idle for 5 s, whatever it is told. The reason of the last loss is only in its log.
It has no kernel of its own: `install_routes` is refused.
"""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any, Self

from tests.fabric import gobgp_json, mrt
from tests.fabric.peer import IPV4, IPV6, Neighbor, Options, PeerSession, ReceivedRoute, Speaker
from tests.fabric.process import inside, poll, run

_FAMILY_FLAG = {IPV4: "ipv4", IPV6: "ipv6"}
_RELOAD = "Reload the config file"
_FEW = 20  # so many changes of originated routes are made one by one, more by replacing the table


class Gobgp(Speaker):
    """`gobgpd` with an API socket of its own in the lab's directory."""

    kind = "gobgp"
    programs = ("gobgpd", "gobgp")

    def start(self, *, restarting: bool = False) -> Self:
        self._write()
        config, api = str(self.directory / "gobgpd.json"), f"unix://{self.directory}/api"
        (self.directory / "api").unlink(missing_ok=True)
        argv = ["gobgpd", "-f", config, "-t", "json", "--api-hosts", api, "--pprof-disable", "--log-plain"]
        self.process = self.namespace.popen([*argv, *(["-r"] if restarting else [])], name=self.name)
        poll(self._answers, 20.0, lambda: self._complaint("does not answer"))
        self._originate((), self.options.originate)
        return self

    def ask(self, *words: str) -> str:
        """What `gobgp WORDS` prints; `RuntimeError` with its words when it fails."""
        api = f"unix://{self.directory}/api"
        return run(["gobgp", "--target", api, *words], netns=self.namespace.path, timeout_s=120).stdout

    def paths(self, prefix: str | None = None) -> list[ReceivedRoute]:
        found: list[ReceivedRoute] = []
        for family, flag in _FAMILY_FLAG.items():
            if prefix is not None and (":" in prefix) != (family == IPV6):
                continue
            words = ["-j", "global", "rib", *([prefix] if prefix is not None else []), "-a", flag]
            found += gobgp_json.table(json.loads(self.ask(*words) or "{}"))
        return [path for path in found if prefix is None or path.prefix == prefix]

    def route_count(self, address: str) -> int:
        return gobgp_json.accepted(self._neighbor(address))

    def session(self, address: str) -> PeerSession:
        log = "" if self.process is None else self.process.log()
        return gobgp_json.session(address, self._neighbor(address), log)

    def _neighbor(self, address: str) -> gobgp_json.Json:
        for neighbor in json.loads(self.ask("-j", "neighbor") or "[]"):
            if neighbor["conf"]["neighbor_address"] == address:
                found: gobgp_json.Json = neighbor
                return found
        raise KeyError(f"gobgp has no neighbor {address}")

    def _apply(self, before: Options) -> None:
        self._write()
        if self.process is None or not self.process.running():
            return
        reloads = self.process.log().count(_RELOAD)
        self.process.signal(signal.SIGHUP)
        self.process.wait_log(_RELOAD, times=reloads + 1)
        poll(self._answers, 10.0, lambda: self._complaint("has not the neighbors it was told of"))
        self._originate(before.originate, self.options.originate)

    def _originate(self, before: tuple[str, ...], after: tuple[str, ...]) -> None:
        gone, come = sorted(set(before) - set(after)), sorted(set(after) - set(before))
        if len(gone) + len(come) <= _FEW:
            for verb, prefixes in (("del", gone), ("add", come)):
                for prefix in prefixes:
                    self.ask("global", "rib", verb, prefix, "-a", "ipv6" if ":" in prefix else "ipv4")
            return
        if gone:
            for flag in _FAMILY_FLAG.values():
                self.ask("global", "rib", "del", "all", "-a", flag)
            come = list(after)
        self._inject(come)

    def _inject(self, prefixes: list[str]) -> None:
        """Give GoBGP many routes at once.

        `gobgp mrt inject` 3.10 ends when it has read its file, whatever of it the daemon has taken by then:
        it reads a pipe here that stays open until every route is there.
        """
        target = len(self._held() | set(prefixes))
        api = f"unix://{self.directory}/api"
        argv = inside(
            self.namespace.path, ["gobgp", "--target", api, "mrt", "inject", "global", "/dev/stdin"]
        )
        with subprocess.Popen(argv, stdin=subprocess.PIPE, bufsize=0, start_new_session=True) as client:
            assert client.stdin is not None
            for piece in mrt.table_dump(prefixes, asn=self.options.asn, router_id=self.options.router_id):
                client.stdin.write(piece)
            failure = f"not all of {len(prefixes)} originated routes were taken"
            poll(lambda: self._count() >= target, 120.0, lambda: self._complaint(failure), every_s=0.05)
            client.stdin.close()

    def _held(self) -> set[str]:
        """Every prefix in the table, whoever it is from."""
        held: set[str] = set()
        for flag in _FAMILY_FLAG.values():
            held |= json.loads(self.ask("-j", "global", "rib", "-a", flag) or "{}").keys()
        return held

    def _count(self) -> int:
        """The same as a number, cheap also with many."""
        said = "".join(self.ask("global", "rib", "summary", "-a", flag) for flag in _FAMILY_FLAG.values())
        return sum(int(count) for count in re.findall(r"Destination: (\d+)", said))

    def _answers(self) -> bool:
        if self.process is None or not self.process.running():
            raise RuntimeError(self._complaint("ended at once"))
        if not _listens(self.directory / "api"):  # the command would wait a whole second for it
            return False
        listed = {it["conf"]["neighbor_address"] for it in json.loads(self.ask("-j", "neighbor")) or ()}
        return listed == {neighbor.address for neighbor in self.options.neighbors}

    def _write(self) -> None:
        if self.options.install_routes:
            raise ValueError("gobgp does not install routes into the kernel: use bird or frr")
        (self.directory / "gobgpd.json").write_text(json.dumps(render(self.options), indent=1))


def _listens(path: Path) -> bool:
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe:
        return probe.connect_ex(str(path)) == 0


def render(options: Options) -> dict[str, Any]:
    """The configuration; `extra` is a JSON object whose keys are put at the top level."""
    return {
        "global": {
            "config": {"as": options.asn, "router-id": options.router_id, "port": options.listen_port},
        },
        "neighbors": [
            _neighbor(neighbor, internal=neighbor.asn == options.asn) for neighbor in options.neighbors
        ],
        **(json.loads(options.extra) if options.extra else {}),
    }


def _neighbor(neighbor: Neighbor, *, internal: bool) -> dict[str, Any]:
    """One neighbor; its `extra` is a JSON object too."""
    transport: dict[str, Any] = {"remote-port": neighbor.port, "passive-mode": neighbor.passive}
    if neighbor.local_address is not None:
        transport["local-address"] = neighbor.local_address
    config: dict[str, Any] = {"neighbor-address": neighbor.address, "peer-as": neighbor.asn}
    if neighbor.password is not None:
        config["auth-password"] = neighbor.password
    restart = neighbor.graceful_restart
    described: dict[str, Any] = {
        "config": config,
        "timers": {
            "config": {
                "hold-time": neighbor.hold_time_s,
                "keepalive-interval": neighbor.keepalive_s,
                "connect-retry": 1,
            }
        },
        "transport": {"config": transport},
        "graceful-restart": {
            "config": {
                "enabled": restart,
                "restart-time": neighbor.restart_time_s,
                "long-lived-enabled": neighbor.long_lived_s is not None,
            }
        },
        "afi-safis": [_family(family, neighbor) for family in neighbor.families],
    }
    if neighbor.ttl_security:
        minimum = 256 - (neighbor.multihop or 1)
        described["ttl-security"] = {"config": {"enabled": True, "ttl-min": minimum}}
    elif neighbor.multihop is not None and not internal:
        described["ebgp-multihop"] = {"config": {"enabled": True, "multihop-ttl": neighbor.multihop}}
    return described | (json.loads(neighbor.extra) if neighbor.extra else {})


def _family(family: str, neighbor: Neighbor) -> dict[str, Any]:
    described: dict[str, Any] = {
        "config": {"afi-safi-name": family},
        "mp-graceful-restart": {"config": {"enabled": neighbor.graceful_restart}},
    }
    if neighbor.long_lived_s is not None:
        long_lived = {"enabled": True, "restart-time": neighbor.long_lived_s}
        described["long-lived-graceful-restart"] = {"config": long_lived}
    return described
