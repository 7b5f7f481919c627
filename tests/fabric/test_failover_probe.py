"""The probe of `tests/bench failover`: what it counts as lost, and what it does not."""

from __future__ import annotations

import time

from tests.benchmarks.failover_probe import INTERVAL_S, Flow, Probe, Receiver
from tests.fabric.netns import Lab
from tests.fabric.process import poll

HERE, THERE = ("10.0.0.1", "fd00::1"), ("10.0.0.2", "fd00::2")
SLACK_MS = 100  # a packet counts until the next one is sent, which a busy machine does late
FLOWS = [Flow(source, 30_000 + number, to) for number, (source, to) in enumerate(zip(HERE, THERE, strict=True))]


def test_what_nobody_takes_is_lost_for_as_long_as_nobody_takes_it(lab: Lab) -> None:
    """The family that lost more counts; what another holder of the address takes is not lost."""
    client, server = lab.namespace("client"), lab.namespace("server")
    lab.link(client, "eth0", server, "eth0")
    client.add_address("eth0", "10.0.0.1/24", "fd00::1/64")
    server.add_address("eth0", "10.0.0.2/24", "fd00::2/64")
    first, second = Receiver(server, THERE), Receiver(server, THERE)
    first.open()
    probe = Probe(client, FLOWS, [first, second])
    try:
        time.sleep(0.1)  # the first packets wait for an answer to ARP
        began = time.monotonic()
        time.sleep(0.2)
        assert probe.lost_ms(began) == 0
        closed = time.monotonic()
        first.close()
        time.sleep(0.2)
        second.open()
        away_ms = 1000 * (time.monotonic() - closed)
        poll(lambda: probe.lost_ms(time.monotonic() - 0.15) == 0, 5, lambda: "it goes on")
        assert 100 < probe.lost_ms(began) <= away_ms + 1000 * INTERVAL_S + SLACK_MS
    finally:
        probe.stop()
        second.close()
