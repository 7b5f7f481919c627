"""Which nodes keep a session: `nodeSelector` against the labels of the Node object, with BIRD, FRR and GoBGP.

Each test changes labels of its own and takes them away again. `always` has no selector: what happens to the
others must not be noticed there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.fabric.bgp_wire import BgpType
from tests.fabric.observe import BgpCapture
from tests.fabric.process import poll
from tests.fabric.test_options_lab import UP_S, V4, Bench, Case, benches

RACK = {"topology.kubernetes.io/rack": "r1"}

bench = benches(
    Case(name="always"),
    Case(name="rack", ours={"nodeSelector": {"matchLabels": RACK}}),
    Case(
        name="not-edge",
        ours={"nodeSelector": {"matchExpressions": [{"key": "edge", "operator": "DoesNotExist"}]}},
    ),
)


@contextmanager
def undisturbed(bench: Bench) -> Iterator[None]:
    """Asserts that meanwhile we say nothing but keepalives on the session of `always`, and that it stays."""
    bench.complete("always")
    bench.route("always")
    with BgpCapture(bench.tor, "eth0") as capture:
        yield
        seen = capture.besides_keepalives(src=bench.ours("always"))
        seen += capture.messages(BgpType.NOTIFICATION, src=bench.theirs("always"))
    assert capture.dropped == 0
    assert seen == []
    assert (bench.row("always")["state"], bench.row("always")["flaps"]) == ("up", 0)


def wait_idle(bench: Bench, name: str) -> str:
    """Waits until the daemon keeps no such session and neither does ExaBGP; why not."""

    def probe() -> str | None:
        row = bench.row(name)
        return str(row["why"]) if row["state"] == "idle" else None

    why = poll(probe, UP_S, lambda: str(bench.row(name)))
    bench.speaker.wait_down(bench.ours(name), UP_S)
    return why


def test_a_label_brings_a_session_and_takes_it_away(bench: Bench) -> None:
    """Without the label the session does not exist and `bgpd peers` says why; with it it comes up and carries the
    route; without it again session and route go. The other session sees nothing of it.
    """
    assert wait_idle(bench, "rack") == "nodeSelector does not match this node's labels"
    with undisturbed(bench):
        bench.allocate(**RACK)
        bench.session("rack")
        bench.route("rack")
        bench.allocate()
        wait_idle(bench, "rack")
        bench.speaker.wait_no_route(V4, 5.0, peer=bench.ours("rack"))


def test_an_expression_selects_too(bench: Bench) -> None:
    """`DoesNotExist`: the session is there until the node gets the label."""
    bench.session("not-edge")
    bench.route("not-edge")
    with undisturbed(bench):
        bench.allocate(edge="")
        wait_idle(bench, "not-edge")
        bench.allocate()
        bench.session("not-edge")


def test_another_value_of_the_label_does_not_count(bench: Bench) -> None:
    """The key alone is not enough."""
    bench.complete("always")
    bench.allocate(**dict.fromkeys(RACK, "r2"))
    assert wait_idle(bench, "rack") == "nodeSelector does not match this node's labels"
    bench.allocate()
