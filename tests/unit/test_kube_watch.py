"""How list and watch get over whatever a server or the way to it does."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bgpd.kube.ciliumbgp import PEER_CONFIG
from bgpd.kube.feed import SourceState
from bgpd.kube.watch import Timing
from tests.contract.test_source_contract import run

from .scripted_api import Answer, End, line, listed, node, reading, refused


def test_request_asks_for_one_name_and_bookmarks(tmp_path: Path) -> None:
    """The list is paged and for the newest version, both are for the one Node, the watch asks to be ended."""

    async def scenario() -> None:
        async with reading(tmp_path, listed(node("a"))) as it:
            await it.requests(2)
            assert it.server.asked == [
                {"limit": "500", "fieldSelector": "metadata.name=a"},
                {
                    "watch": "true",
                    "allowWatchBookmarks": "true",
                    "resourceVersion": "5",
                    "timeoutSeconds": "1",
                    "fieldSelector": "metadata.name=a",
                },
            ]

    run(scenario)


def test_watch_that_ends_is_resumed_where_it_was(tmp_path: Path) -> None:
    """The server's own timeout is no trouble: no list, no pause, the newest version, bookmarks included."""
    script = [listed(node("a")), Answer([line("BOOKMARK", node("", version=80))], End.WELL)]

    async def scenario() -> None:
        timing = Timing(watch_s=1, slack_s=0.2, steady_s=0)
        async with reading(tmp_path, *script, timing=timing) as it:
            await it.requests(3)
            assert it.verbs == ["list", "watch 5", "watch 80"]
            assert it.pauses == []
            assert (it.status.state, it.status.reconnects) == (SourceState.SYNCED, 0)

    run(scenario)


def test_events_may_be_cut_anywhere(tmp_path: Path) -> None:
    """An event that comes byte by byte is one event."""
    stream = line("MODIFIED", node("a", "10.9.9.0/24"))
    script = [listed(node("a")), Answer([bytes([byte]) for byte in stream], End.OPEN)]

    async def scenario() -> None:
        async with reading(tmp_path, *script) as it:
            await it.until(lambda: str(it.store.newest.value.get("a")).find("10.9.9.0") > 0)

    run(scenario)


def test_event_larger_than_any_buffer(tmp_path: Path) -> None:
    """Five megabytes in one line, beyond every limit that aiohttp's own line reader has."""
    stream = line("MODIFIED", node("a", "10.9.9.0/24", annotations={"big": "x" * 5_000_000}))
    script = [listed(node("a")), Answer([stream], End.OPEN)]

    async def scenario() -> None:
        async with reading(tmp_path, *script) as it:
            await it.until(lambda: str(it.store.newest.value.get("a")).find("10.9.9.0") > 0)

    run(scenario)


def test_list_is_published_when_its_last_page_is_there(tmp_path: Path) -> None:
    """Pages are asked for with the token of the one before; half a list is never seen."""
    script = [listed(node("a"), more="next"), listed(node("b"), version=6)]

    async def scenario() -> None:
        async with reading(tmp_path, *script) as it:
            await it.requests(3)
            assert it.server.asked[1]["continue"] == "next"
            assert it.seen == [{"a", "b"}]
            assert it.verbs[2] == "watch 6"

    run(scenario)


@pytest.mark.parametrize(
    "trouble",
    [
        pytest.param(Answer([line("ERROR", {"code": 410, "message": "too old"})], End.OPEN), id="event"),
        pytest.param(refused(410), id="answer"),
    ],
)
def test_gone_leads_to_a_list_and_nothing_is_forgotten_meanwhile(tmp_path: Path, trouble: Answer) -> None:
    """410 lists anew at once; until that list is whole, also across a failing one, what was known stays."""
    script = [listed(node("a")), trouble, refused(500), listed(node("a"), node("b"), version=90)]

    async def scenario() -> None:
        async with reading(tmp_path, *script) as it:
            await it.requests(5)
            assert it.verbs == ["list", "watch 5", "list", "list", "watch 90"]
            assert it.seen == [{"a"}, {"a", "b"}]
            assert it.pauses == [0.4]  # none after the 410, the second failure's after the 500

    run(scenario)


def test_page_that_expired_begins_the_list_anew(tmp_path: Path) -> None:
    """A continue token lives five minutes; a list that took longer starts from its first page."""
    script = [listed(node("a"), more="next"), refused(410), listed(node("b"))]

    async def scenario() -> None:
        async with reading(tmp_path, *script) as it:
            await it.requests(4)
            assert "continue" not in it.server.asked[2]
            assert it.seen == [{"b"}]

    run(scenario)


@pytest.mark.parametrize("garbage", [b"<html>\n", b'{"type": "ADDED", "object": {}}\n', b"\xff\xfe\n"])
def test_garbage_in_a_watch_leads_to_a_list(tmp_path: Path, garbage: bytes) -> None:
    """What came before the garbage counts, what was known stays, a list makes sure of the rest."""
    script = [
        listed(node("a")),
        Answer([line("ADDED", node("b")) + garbage], End.OPEN),
        listed(node("a"), version=90),
    ]

    async def scenario() -> None:
        async with reading(tmp_path, *script) as it:
            await it.requests(4)
            assert it.verbs == ["list", "watch 5", "list", "watch 90"]
            assert it.seen == [{"a"}, {"a", "b"}, {"a"}]

    run(scenario)


@pytest.mark.parametrize("end", [End.CUT, End.WELL])
def test_half_an_event_is_asked_for_again(tmp_path: Path, end: End) -> None:
    """A connection lost inside an event resumes after the last whole one, without a list."""
    whole, half = line("ADDED", node("b", version=8)), line("DELETED", node("a", version=9))[:30]
    script = [listed(node("a")), Answer([whole, half], end)]

    async def scenario() -> None:
        async with reading(tmp_path, *script) as it:
            await it.requests(3)
            assert it.verbs == ["list", "watch 5", "watch 8"]
            assert it.seen == [{"a"}, {"a", "b"}]
            assert it.pauses == [0.2]
            await it.until(lambda: it.status.state is SourceState.SYNCED)
            assert it.status.reconnects == 1

    run(scenario)


def test_silent_watch_is_given_up_in_time(tmp_path: Path) -> None:
    """A server that neither sends nor ends the watch when asked to is left `slack_s` later."""

    async def scenario() -> None:
        async with reading(tmp_path, listed(node("a")), Answer(end=End.OPEN)) as it:
            await it.requests(2)
            started = asyncio.get_running_loop().time()
            await it.requests(3)
            assert 1.0 <= asyncio.get_running_loop().time() - started < 2.5
            assert it.verbs[2] == "watch 5"
            assert "fell silent" in it.status.last_error
            assert it.seen == [{"a"}]

    run(scenario)


def test_pauses_grow_to_a_limit_and_start_over(tmp_path: Path) -> None:
    """Doubling up to the limit while it fails; a watch that held makes the next failure a first one."""
    script = [refused(500)] * 10 + [listed(node("a")), Answer(end=End.CUT, hold_s=0.1)]

    async def scenario() -> None:
        async with reading(tmp_path, *script) as it:
            await it.requests(13)
            assert it.pauses == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30, 30, 0.2]
            await it.until(lambda: it.status.state is SourceState.SYNCED)
            assert it.status.reconnects == 11

    run(scenario)


def test_server_that_ends_every_watch_is_not_hammered(tmp_path: Path) -> None:
    """A watch that ends well but at once is followed by growing pauses, and is no trouble otherwise."""
    script = [listed(node("a"))] + [Answer()] * 3

    async def scenario() -> None:
        async with reading(tmp_path, *script) as it:
            await it.requests(5)
            assert it.pauses == [0.2, 0.4, 0.8]
            assert (it.status.state, it.status.reconnects) == (SourceState.SYNCED, 0)

    run(scenario)


def test_server_says_how_long_to_wait(tmp_path: Path) -> None:
    """429 and 503 with Retry-After are obeyed, up to the limit of our own pauses."""
    script = [refused(429, headers="Retry-After: 7\r\n"), refused(503, headers="Retry-After: 999\r\n"), listed()]

    async def scenario() -> None:
        async with reading(tmp_path, *script) as it:
            await it.requests(4)
            assert it.pauses == [7, 30]

    run(scenario)


def test_overload_does_not_cost_a_list(tmp_path: Path) -> None:
    """A watch refused with 429 or 500 is tried again where it was: a list would be more load."""
    script = [listed(node("a")), refused(429), refused(500)]

    async def scenario() -> None:
        async with reading(tmp_path, *script) as it:
            await it.requests(4)
            assert it.verbs == ["list", "watch 5", "watch 5", "watch 5"]

    run(scenario)


def test_unauthorized_reads_the_token_again(tmp_path: Path) -> None:
    """After 401 the token file is read anew and tried at once; when that fails too, pauses begin."""
    token = tmp_path / "token"
    token.write_text("one\n")

    async def scenario() -> None:
        user = {"tokenFile": str(token)}
        script = [refused(401), refused(401), listed(node("a")), Answer(hold_s=0.2)]
        async with reading(tmp_path, *script, user=user) as it:
            await it.requests(4)
            assert it.pauses == [0.4]
            assert it.server.authorizations[0] == "Bearer one"
            assert it.status.last_error.startswith("the API server does not accept the credentials (401)")
            token.write_text("two")
            await it.requests(5)
            assert it.server.authorizations[-1] == "Bearer two"

    run(scenario)


def test_forbidden_names_the_missing_rule(tmp_path: Path) -> None:
    """The status says verb and resource as an RBAC rule has them, for list and for watch."""
    script = [refused(403, "no, you"), listed(node("a")), refused(403, "no, you")]

    async def scenario() -> None:
        errors = list[str]()
        async with reading(tmp_path, *script) as it:
            it.source.status.on_change(lambda: errors.append(it.status.last_error))
            await it.requests(4)
        rule = 'the role lacks apiGroups: [""], resources: ["nodes"], verbs: ["{}"] (403): no, you'
        assert f"not allowed to list nodes; {rule.format('list')}" in errors
        assert f"not allowed to watch nodes; {rule.format('watch')}" in errors

    run(scenario)


def test_kind_that_the_server_does_not_know(tmp_path: Path) -> None:
    """It is as if there were no such object, with the remedy; once it is known its objects are there, and stay if it
    goes again.
    """
    peer = {"metadata": {"name": "a", "resourceVersion": "7"}, "spec": {}}
    script = [refused(404), refused(404), listed(peer), refused(404), refused(404)]

    async def scenario() -> None:
        async with reading(tmp_path, *script, kind=PEER_CONFIG) as it:
            await it.until(lambda: it.store.newest.synced)
            warning = next(filter(None, it.warned))
            assert warning.startswith("there is no CiliumBGPPeerConfig: ")
            assert "kubectl apply -f config/crds" in warning
            await it.requests(5)
            await it.until(lambda: it.status.state is SourceState.RETRYING)
            assert set(it.store.newest.value) == {"a"}
            assert it.status.warning == ""
            assert max(it.pauses) > min(it.pauses)

    run(scenario)


def test_proxy_page_is_no_list(tmp_path: Path) -> None:
    """HTML with status 200 is shown, and never taken for an empty cluster."""

    async def scenario() -> None:
        async with reading(tmp_path, Answer([b"<html>login here</html>"]), listed(node("a"))) as it:
            await it.requests(3)
            assert "not a list of Kubernetes objects" in it.status.last_error
            assert "login here" in it.status.last_error
            assert it.seen == [{"a"}]

    run(scenario)


def test_periodic_list_finds_what_a_watch_would_never_say(tmp_path: Path) -> None:
    """After `relist_s` the end of a watch is followed by a list; its result replaces everything."""
    script = [listed(node("a")), Answer(), listed(node("a", "10.9.9.0/24"), version=3)]

    async def scenario() -> None:
        timing = Timing(watch_s=1, slack_s=0.2, steady_s=0, relist_s=0)
        async with reading(tmp_path, *script, timing=timing) as it:
            await it.requests(4)
            assert it.verbs == ["list", "watch 5", "list", "watch 3"]
            assert str(it.store.newest.value["a"].pod_cidrs[0]) == "10.9.9.0/24"

    run(scenario)


def test_snapshot_carries_the_time_of_its_arrival(tmp_path: Path) -> None:
    """`at` is on the monotonic clock, and no later than the publication."""
    script = [listed(node("a")), Answer([line("MODIFIED", node("a", "10.9.9.0/24"))], End.OPEN)]

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        begin = loop.time()
        async with reading(tmp_path, *script) as it:
            await it.until(lambda: len(it.seen) == 2)
            assert begin <= it.store.newest.at <= loop.time()

    run(scenario)
