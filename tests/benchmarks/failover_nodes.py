"""Who announces the measured node: bgpd, or the BIRD of a hand-written file, as many a cluster has it.

This decides what each of them is told and how its processes end and come back. Both announce the same pod CIDRs to
both ToRs in the same mode. The file is the one that operators write today: a static route per pod CIDR, two uplinks,
nothing imported; what makes it comparable is added (IPv6, the local preference above the standby's).
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from contextlib import ExitStack

from tests.benchmarks.failover_site import BFD_MS, HOLD_TIME_S, POD, POD_PORT, FailoverSite
from tests.benchmarks.stage import stage
from tests.fabric.bird import Bird
from tests.fabric.node import BgpdNode, two_tor_bgp
from tests.fabric.peer import Options
from tests.fabric.process import poll
from tests.fabric.topology import ASN

AWAY_S = 1.0  # between the end of a process and its next start: systemd's RestartSec and the start
API_AWAY_S = 5.0
PREFERENCE = 200  # the standby has 100
_READY_S = 40.0


class Announcer(ABC):
    """One of the two, on the site's first node. What ends a process starts it again, `AWAY_S` later."""

    name: str

    def __init__(self, site: FailoverSite, closing: ExitStack) -> None:
        self.site, self.closing = site, closing

    @abstractmethod
    def start(self) -> None: ...

    @abstractmethod
    def wait_ready(self) -> None:
        """Sessions up, with BFD where the mode has it, whatever was before."""

    @abstractmethod
    def kill_daemon(self) -> None: ...

    @abstractmethod
    def kill_speaker(self) -> None: ...

    @abstractmethod
    def stop_speaker(self) -> None: ...

    @abstractmethod
    def lose_api_server(self) -> None:
        """For `API_AWAY_S`, and longer."""

    @abstractmethod
    def find_api_server(self) -> None: ...


class Ours(Announcer):
    """The units as systemd would start them again, on a Node of a real API server."""

    name = "bgpd"

    def start(self) -> None:
        site = self.site
        self._stage = self.closing.enter_context(stage(site.lab, site.fabric))
        self._stage.api.register(site.place)
        self._stage.api.assign(site.place, site.place.pod_cidrs)
        timers = {"transmitIntervalMilliseconds": BFD_MS, "receiveIntervalMilliseconds": BFD_MS}
        peer = {
            "timers": {"holdTimeSeconds": HOLD_TIME_S},
            "gracefulRestart": {"enabled": site.mode.graceful_restart},
            **({"bfd": timers} if site.mode.bfd else {}),
        }
        bgp = two_tor_bgp(site.fabric, **peer)
        bgp["advertisements"][0]["attributes"] = {"localPreference": PREFERENCE}
        check = {"name": "pod", "tcpSocket": f"{POD}:{POD_PORT}", "periodSeconds": 1, "timeoutSeconds": 1}
        bgp["health"] = [check]
        source = {"kubernetes": {"kubeconfig": str(self._stage.kubeconfig)}}
        self.node = BgpdNode(site.place.namespace, site.place.name, bgp, source=source)
        if site.mode.bfd:
            self.node.start_bfd()
        self.node.start()

    def wait_ready(self) -> None:
        self.node.wait_healthy()
        if self.site.mode.bfd:
            self.node.wait_status(
                "BFD is not up everywhere", lambda it: all(row["bfd"]["state"] == "up" for row in it["peers"])
            )

    def kill_daemon(self) -> None:
        assert self.node.daemon is not None
        self.node.daemon.kill()
        time.sleep(AWAY_S)
        self.node.start_daemon()

    def kill_speaker(self) -> None:
        assert self.node.speaker is not None
        self.node.speaker.kill()
        time.sleep(AWAY_S)
        self.node.start_speaker()

    def stop_speaker(self) -> None:
        self.node.stop_speaker()
        time.sleep(AWAY_S)
        self.node.start_speaker()

    def lose_api_server(self) -> None:
        self._stage.control_plane.kill_apiserver()
        time.sleep(API_AWAY_S)

    def find_api_server(self) -> None:
        self._stage.control_plane.start_apiserver()


class ByHand(Announcer):
    """There is one process: the daemon is the speaker."""

    name = "bird"

    def start(self) -> None:
        self.speaker = HandWritten(self.site)

    def wait_ready(self) -> None:
        # started anew: after an error BIRD as it comes stays away for a minute and more (`error wait time`)
        self.speaker.stop()
        self.speaker.start()
        for tor in self.site.fabric.tors:
            tor.speaker.wait_established(self.site.place.address, _READY_S)
        poll(lambda: self.speaker.watched() == self.site.mode.bfd, _READY_S, lambda: "BFD does not come up")

    def kill_daemon(self) -> None:
        self.kill_speaker()

    def kill_speaker(self) -> None:
        self.speaker.kill()
        self._again()

    def stop_speaker(self) -> None:
        self.speaker.stop()
        self._again()

    def lose_api_server(self) -> None:
        """It never asked one."""

    def find_api_server(self) -> None: ...

    def _again(self) -> None:
        time.sleep(AWAY_S)
        self.speaker.start(restarting=self.site.mode.graceful_restart)


_FILE = """\
log syslog all;
router id {address};
protocol device {{ scan time 10; }}
protocol direct {{ disabled; }}
protocol kernel {{ ipv4 {{ import none; export none; }}; }}
protocol static {{ ipv4; route {cidr} via "{port}"; }}
protocol static {{ ipv6; route {cidr6} via "{port}"; }}
{bfd}
"""
_UPLINK = """\
protocol bgp uplink{number} {{
  description "BGP uplink {number}";
  local {address} as {asn};
  neighbor {tor} as {asn};
  default bgp_local_pref {preference};
  {options}
  ipv4 {{ import filter {{ reject; }}; export filter {{ accept; }}; }};
  ipv6 {{ import filter {{ reject; }}; export filter {{ accept; }}; }};
}}
"""


class HandWritten(Bird):
    """BIRD with that file, and BIRD's defaults for whatever the file does not say."""

    def __init__(self, site: FailoverSite) -> None:
        super().__init__(site.place.namespace, Options(asn=ASN, router_id=site.place.address), name="by-hand")
        self._site = site

    def watched(self) -> bool:
        """Whether BFD with both ToRs is up."""
        if not self._site.mode.bfd:
            return False
        return sum(" Up " in line for line in self.ask("show bfd sessions")) == len(self._site.fabric.tors)

    def _write(self) -> None:
        site = self._site
        cidr, cidr6 = site.place.pod_cidrs
        timers = f"interval {BFD_MS} ms; multiplier 3;"
        bfd = f"protocol bfd {{ multihop {{ {timers} }}; }}" if site.mode.bfd else ""
        options = "graceful restart on; " * site.mode.graceful_restart + "bfd on;" * site.mode.bfd
        parts = [_FILE.format(address=site.place.address, cidr=cidr, cidr6=cidr6, port="vpod", bfd=bfd)]
        for number, tor in enumerate(site.fabric.tors):
            parts.append(
                _UPLINK.format(
                    number=number,
                    address=site.place.address,
                    asn=ASN,
                    tor=tor.loopback,
                    preference=PREFERENCE,
                    options=options,
                )
            )
        (self.directory / "bird.conf").write_text("".join(parts))
