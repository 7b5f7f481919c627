"""What results mean for a pod: rise, fall and timeout, in virtual time; and the probes against real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable
from ipaddress import ip_address

import pytest

from bgpd.model.virtualserver import Member, Monitor, MonitorProtocol
from bgpd.virtualservers.monitor import Check, Rule, delayed, expired, expires_at, grace_s, judged, started
from bgpd.virtualservers.monitoring import AT_ONCE, Monitoring, Watched
from bgpd.virtualservers.probe import ANSWER_BYTES, Result, probe
from bgpd.virtualservers.shares import Shares

HTTP = Monitor(MonitorProtocol.HTTP, 5, 16, b"GET / HTTP/1.0\r\n\r\n", "ok")
HERE = ip_address("127.0.0.1")


def _after(*results: str, rule: Rule | None = None, was_up: bool = False) -> Check:
    """Results come every interval, the first after one."""
    check = started(0.0, was_up=was_up)
    for number, failure in enumerate(results, 1):
        check = judged(check, HTTP, rule or Rule(), number * HTTP.interval_s, failure)
    return check


def test_a_new_pod_is_neither_up_nor_down() -> None:
    """Until the first result, which counts at once."""
    assert _after().up is None
    assert _after("").up is True
    assert _after("refused").up is False


def test_one_that_was_in_service_stays_until_the_timeout() -> None:
    """A restart of the daemon moves nobody."""
    assert _after(was_up=True).up is True
    assert _after("refused", "refused", "refused", was_up=True).up is True
    assert _after("refused", "refused", "refused", "refused", was_up=True).up is False


def test_rise_counts_successes_in_a_row() -> None:
    """A failure in between begins anew."""
    rule = Rule(rise=2)
    assert _after("no", "", "no", "", rule=rule).up is False
    assert _after("no", "", "no", "", "", rule=rule).up is True


def test_a_new_pod_that_has_not_risen_has_not_failed() -> None:
    """It is unknown until it has, and down with its first failure."""
    rule = Rule(rise=3)
    assert _after("", "", rule=rule).up is None
    assert _after("", "", "", rule=rule).up is True
    assert _after("", "no", "", "", rule=rule).up is False


def test_fall_counts_failures_in_a_row() -> None:
    """Sooner than the timeout, if it says so."""
    rule = Rule(fall=2)
    assert _after("", "no", "", "no", rule=rule).up is True
    assert _after("", "no", "no", rule=rule).up is False


def test_silence_takes_a_pod_out() -> None:
    """At the timeout after the last success, not before, with the reason."""
    check = _after("", "no route")
    assert expires_at(check, HTTP) == 5.0 + 16
    assert expired(check, HTTP, 20.9).up is True
    down = expired(check, HTTP, 21.0)
    assert (down.up, down.since, down.reason) == (False, 21.0, "no success for 16 s: no route")


def test_a_timeout_shorter_than_the_interval_counts_from_the_next_try() -> None:
    """Or a pod would be out before it was asked again."""
    assert grace_s(Monitor(MonitorProtocol.TCP, 5, 3)) == 8
    assert grace_s(Monitor(MonitorProtocol.TCP, 5, 5)) == 10
    assert grace_s(HTTP) == 16


def test_a_try_that_had_to_wait_is_not_held_against_the_pod() -> None:
    """The timeout is put off by as much."""
    assert expires_at(delayed(_after(""), 7.0), HTTP) == 28.0


Serve = Callable[[socket.socket], None]


def _probed(monitor: Monitor, serve: Serve, within_s: float = 1.0) -> Result:
    """Of a pod that does this with a connection."""
    with socket.create_server((str(HERE), 0)) as listener:

        def run() -> None:
            with listener.accept()[0] as opened, contextlib.suppress(ConnectionError):
                serve(opened)

        thread = threading.Thread(target=run)
        thread.start()
        result = asyncio.run(probe(monitor, Member(HERE, listener.getsockname()[1]), within_s))
        thread.join()
    return result


def _answering(answer: bytes) -> Serve:
    def serve(opened: socket.socket) -> None:
        opened.recv(4096)
        opened.sendall(answer)

    return serve


def _waiting(says: bytes) -> Serve:
    def serve(opened: socket.socket) -> None:
        opened.sendall(says)
        while opened.recv(4096):
            pass

    return serve


@pytest.mark.parametrize(
    ("answer", "failure", "note"),
    [
        (b"HTTP/1.0 200 OK\r\n\r\nok", "", ""),
        (b"HTTP/1.1 400 Bad Request\r\n\r\nnot ok", "", "passes on an error: the answer is 400 Bad Request"),
        (b"", "the connection was closed without an answer", ""),
        (b"x" * ANSWER_BYTES + b"ok", "recv 'ok' is not in the answer", ""),
    ],
)
def test_http(answer: bytes, failure: str, note: str) -> None:
    """What is looked for must be in the first 5,120 bytes."""
    result = _probed(HTTP, _answering(answer))
    assert result.failure.startswith(failure)
    assert (bool(result.failure), result.note) == (bool(failure), note)


def test_a_server_that_never_answers() -> None:
    """The try ends with its time."""
    assert _probed(HTTP, _waiting(b""), 0.2).failure == "no answer in 0.2 s"


@pytest.mark.parametrize(("recv", "failure"), [("", ""), ("ready", ""), ("other", "no answer in 0.2 s")])
def test_tcp(recv: str, failure: str) -> None:
    """A connection will do, or what the pod says by itself."""
    assert _probed(Monitor(MonitorProtocol.TCP, 5, 16, b"", recv), _waiting(b"220 ready"), 0.2).failure == failure


@pytest.mark.parametrize("protocol", [MonitorProtocol.TCP, MonitorProtocol.UDP])
def test_a_port_that_is_closed(protocol: MonitorProtocol) -> None:
    """The pod, or its node, says so."""
    kind = socket.SOCK_STREAM if protocol is MonitorProtocol.TCP else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as taken:
        taken.bind((str(HERE), 0))
        port = taken.getsockname()[1]
    result = asyncio.run(probe(Monitor(protocol, 5, 16, b"?"), Member(HERE, port), 2.0))
    assert result.failure == "Connection refused"


def test_a_udp_answer() -> None:
    """It is looked for in every datagram that comes."""

    async def run() -> Result:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
            server.bind((str(HERE), 0))
            server.setblocking(False)
            monitor = Monitor(MonitorProtocol.UDP, 5, 16, b"ping", "po[n]g")
            trying = asyncio.create_task(probe(monitor, Member(HERE, server.getsockname()[1]), 2.0))
            asked, client = await loop.sock_recvfrom(server, 100)
            assert asked == b"ping"
            await loop.sock_sendto(server, b"wait", client)
            await loop.sock_sendto(server, b"pong", client)
            return await trying

    assert asyncio.run(run()) == Result("")


def test_a_udp_port_that_is_silent() -> None:
    """Without recv that will do, however short the try is."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind((str(HERE), 0))
        member = Member(HERE, silent.getsockname()[1])
        for within_s in (0.2, 1.0):
            assert asyncio.run(probe(Monitor(MonitorProtocol.UDP, 5, 1), member, within_s)) == Result("")


def test_monitors_follow_what_is_wanted() -> None:
    """Who is wanted no more is asked no more; a change of state is told; who was in service is up from the start."""
    quick = Monitor(MonitorProtocol.TCP, 1, 3)
    one, other = Watched("x", Member(HERE, 1), quick), Watched("x", Member(HERE, 2), quick)
    turns: list[tuple[bool | None, bool | None]] = []

    async def refusing(monitor: Monitor, member: Member, within_s: float) -> Result:
        return Result("refused" if member.port == 1 else "")

    async def run() -> None:
        both = asyncio.Event()

        def changed() -> None:
            turns.append((monitoring.checks[one].up, monitoring.checks[other].up))
            if len(turns) == 2:
                both.set()

        monitoring = Monitoring(lambda: Rule(fall=1), changed, lambda: 0.0, refusing)
        running = asyncio.create_task(monitoring.run())
        monitoring.follow([one, other], [one.member])
        assert [monitoring.checks[key].up for key in (one, other)] == [True, None]
        await both.wait()
        monitoring.follow([one], [])
        assert set(monitoring.checks) == {one}
        running.cancel()

    asyncio.run(run())
    assert turns == [(False, None), (False, True)]


def test_a_daemon_that_was_held_up_takes_nobody_out() -> None:
    """It tries again before it judges: a machine may stand still for longer than a pod may be silent."""
    quick = Watched("x", Member(HERE, 1), Monitor(MonitorProtocol.TCP, 1, 1))
    given: list[float] = []

    async def well(monitor: Monitor, member: Member, within_s: float) -> Result:
        given.append(within_s)
        return Result("" if within_s >= 0.5 else "no time")

    async def run() -> None:
        turned = asyncio.Event()
        monitoring = Monitoring(Rule, turned.set, lambda: 0.0, well)
        running = asyncio.create_task(monitoring.run())
        monitoring.follow([quick], [quick.member])
        while not given:  # noqa: ASYNC110 - the probe is called, and tells nobody
            await asyncio.sleep(0)
        time.sleep(2.2)  # noqa: ASYNC251 - held up for longer than the two seconds that a success counts
        while len(given) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert (monitoring.checks[quick].up, turned.is_set()) == (True, False)
        running.cancel()

    asyncio.run(run())
    assert given[1] == 1


def test_a_namespace_of_slow_pods_holds_up_no_other() -> None:
    """It has its share of the tries, and the rest of it waits; a try ends after a minute, whatever the timeout."""
    slow = Monitor(MonitorProtocol.TCP, 1, 86400)
    many = [Watched("slow", Member(HERE, port), slow) for port in range(1, 2 * AT_ONCE)]
    one = Watched("other", Member(HERE, 65535), slow)
    given: list[float] = []

    async def hanging(monitor: Monitor, member: Member, within_s: float) -> Result:
        given.append(within_s)
        if member.port == one.member.port:
            return Result("")
        await asyncio.Event().wait()
        raise AssertionError

    async def run() -> None:
        up = asyncio.Event()
        monitoring = Monitoring(Rule, up.set, lambda: 0.0, hanging)
        running = asyncio.create_task(monitoring.run())
        monitoring.follow(many, [])
        while len(given) < AT_ONCE // 2:  # noqa: ASYNC110 - the probe is called, and tells nobody
            await asyncio.sleep(0)
        monitoring.follow([*many, one], [])
        async with asyncio.timeout(10):
            await up.wait()
        assert monitoring.checks[one].up is True
        await asyncio.sleep(1.1)
        (problem,) = monitoring.problems()
        assert f"{len(many) - AT_ONCE // 2} monitors of namespace slow wait for their turn" in problem
        assert "85 tries at a time are its share" in problem
        monitoring.follow([], [])
        await asyncio.sleep(0.1)
        assert [*monitoring.problems()] == []
        running.cancel()

    asyncio.run(run())
    assert set(given) == {60.0}


def test_shares_are_equal_and_all_are_used_in_turn() -> None:
    """Whoever ends makes room for the one with fewer; one that is cancelled while it waits takes no place."""

    async def run() -> None:
        shares, order, ends = Shares(6), list[str](), dict[str, asyncio.Event]()

        async def each(name: str) -> None:
            ends[name] = asyncio.Event()
            async with shares.turn(name[0]):
                order.append(name)
                await ends[name].wait()

        shares.among(2)
        assert shares.each == 2
        tasks = {name: asyncio.create_task(each(name)) for name in ("a1", "a2", "a3", "a4", "b1", "b2", "b3")}
        await asyncio.sleep(0.01)
        assert order == ["a1", "a2", "b1", "b2"]
        tasks["a3"].cancel()
        ends["a1"].set()
        ends["b2"].set()
        await asyncio.sleep(0.01)
        assert order[4:] == ["a4", "b3"]
        shares.among(0)
        for name in ("a2", "a4", "b1", "b3"):
            ends[name].set()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        assert shares.late(0.0) == {}

    asyncio.run(run())
