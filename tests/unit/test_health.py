"""Health checks: when a verdict changes, and what each probe says of a real server or program."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgpd.bgp.health import Check, combined, judged, probe
from bgpd.config.bgp import HealthCheck


def rule(**fields: Any) -> HealthCheck:
    probed = {"httpGet", "tcpSocket", "exec"} & fields.keys()
    return HealthCheck.model_validate({"name": "cni", **({} if probed else {"exec": ["/bin/true"]}), **fields})


def after(results: str, **fields: Any) -> Check:
    """The check after a row of results: `.` for success, `x` for failure."""
    check = Check()
    for result in results:
        check = judged(check, "down" if result == "x" else "", rule(**fields))
    return check


@pytest.mark.parametrize(
    ("results", "failing"),
    [
        ("", None),
        (".", False),
        ("x", None),
        ("xx", None),
        ("xxx", True),
        ("x.", False),
        (".xx", False),
        (".xxx", True),
        (".xx.xx", False),
        ("xxx.", True),
        ("xxx.x.", True),
        ("xxx..", False),
    ],
)
def test_a_verdict_needs_its_threshold(results: str, failing: bool | None) -> None:
    """Three failures in a row are unhealthy, two successes healthy; the first success counts at once."""
    assert after(results).failing is failing


@given(st.text(".x", max_size=30))
def test_a_verdict_only_changes_on_its_own_evidence(results: str) -> None:
    """Unhealthy follows a failure, healthy a success, and once known it stays known."""
    check = Check()
    for result in results:
        next_check = judged(check, "down" if result == "x" else "", rule())
        if next_check.failing is not check.failing:
            assert next_check.failing is (result == "x")
        check = next_check


def test_one_failing_check_makes_the_node_unhealthy() -> None:
    """And all reasons are told, by the names of the checks."""
    health = combined({"cni": after("xxx"), "kubelet": after(".")})
    assert (health.known, health.reason) == (True, "health check cni: down")


def test_without_a_first_result_the_verdict_is_unknown() -> None:
    """A daemon that has just started must not act on nothing."""
    assert not combined({"cni": Check(), "kubelet": after(".")}).known
    assert combined({}).known


@contextmanager
def web_server(status: int) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/healthz"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(("status", "said"), [(200, ""), (503, "answers 503")])
def test_http_counts_by_its_status(status: int, said: str) -> None:
    """As a kubelet probe: 200 to 399 is a success."""
    with web_server(status) as url:
        assert asyncio.run(probe(rule(httpGet=url))).endswith(said)


def test_tcp_must_be_accepted() -> None:
    """A listener is enough; nobody there is named."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert asyncio.run(probe(rule(tcpSocket=f"127.0.0.1:{port}"))) == ""
    assert f"port {port}" in asyncio.run(probe(rule(tcpSocket=f"127.0.0.1:{port}")))


def test_a_program_must_end_with_zero() -> None:
    """Otherwise its own words are the reason; a missing one is named."""
    assert asyncio.run(probe(rule(exec=["/bin/true"]))) == ""
    assert asyncio.run(probe(rule(exec=["/bin/sh", "-c", "echo broken; exit 3"]))) == "/bin/sh ends with 3: broken"
    assert asyncio.run(probe(rule(exec=["/nowhere"]))) == "/nowhere: No such file or directory"


def test_a_probe_that_hangs_has_failed() -> None:
    """It is killed at its timeout."""
    assert asyncio.run(probe(rule(exec=["/bin/sleep", "30"], timeoutSeconds=1))) == "no answer in 1 s"


def test_what_a_hanging_program_has_started_goes_with_it() -> None:
    """A child that holds the pipe keeps nobody waiting: the probe ends while that would still sleep."""
    with TemporaryDirectory() as directory:
        ended = Path(directory, "ended")
        command = ["/bin/sh", "-c", f"sleep 5; touch {ended}"]
        assert asyncio.run(probe(rule(exec=command, timeoutSeconds=1))) == "no answer in 1 s"
        assert not ended.exists()


def test_http_towards_something_else_has_failed() -> None:
    """A port that speaks another protocol is a failure with a reason, as one that answers nothing is."""
    for words in (b"SSH-2.0-OpenSSH_9.2\r\n", b""):
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def answer(listener: socket.socket = listener, words: bytes = words) -> None:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(words)

            thread = threading.Thread(target=answer)
            thread.start()
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
            said = asyncio.run(probe(rule(httpGet=url)))
            thread.join()
        assert said.startswith(f"{url}: ") and len(said) > len(url) + 2
