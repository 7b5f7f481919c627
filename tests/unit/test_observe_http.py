"""The HTTP server over real sockets: what it shows, what it refuses, and what it does not let a client do."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from http.client import HTTPConnection, HTTPResponse

import pytest

from bgpd.observe.health import Readiness
from bgpd.observe.http import MOST_CLIENTS, HttpServer, parse_listen
from bgpd.observe.metrics import Metrics

REQUEST_S = 0.3
SCRAPE_OPENMETRICS = {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"}


class Node:
    """What the daemon would tell the server; a test changes it."""

    def __init__(self, request_s: float = REQUEST_S) -> None:
        self.heartbeat_age_s = 0.1
        self.readiness = Readiness()
        self.server = HttpServer(
            "127.0.0.1:0",
            Metrics(("routes",)).registry,
            lambda: self.heartbeat_age_s,
            lambda: self.readiness,
            request_s,
        )

    @property
    def address(self) -> tuple[str, int]:
        assert self.server.address is not None
        return self.server.address

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=3)

    def ask(
        self, path: str, method: str = "GET", headers: Mapping[str, str] | None = None
    ) -> tuple[HTTPResponse, bytes]:
        client = HTTPConnection(*self.address, timeout=3)
        try:
            client.request(method, path, headers=dict(headers or {}))
            response = client.getresponse()
            return response, response.read()
        finally:
            client.close()


@pytest.fixture
def node() -> Iterator[Node]:
    made = Node()
    made.server.start()
    yield made
    made.server.stop()


def test_metrics_in_the_text_format(node: Node) -> None:
    """Without an Accept header a scrape gets the plain text format."""
    response, body = node.ask("/metrics")
    assert (response.status, response.headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert b"\nbgpd_speaker_connected 0.0\n" in body


def test_metrics_in_openmetrics(node: Node) -> None:
    """Prometheus, which prefers OpenMetrics, gets it, with its end mark."""
    response, body = node.ask("/metrics", headers=SCRAPE_OPENMETRICS)
    assert response.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert body.endswith(b"# EOF\n")


def test_metrics_with_an_odd_accept_header(node: Node) -> None:
    """A version that is no number gets the plain format instead of a broken connection."""
    response, _ = node.ask("/metrics", headers={"Accept": "application/openmetrics-text; version=new"})
    assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")


def test_metrics_are_compressed_when_asked(node: Node) -> None:
    """gzip is used where the client takes it."""
    response, body = node.ask("/metrics", headers={"Accept-Encoding": "gzip"})
    assert response.headers["Content-Encoding"] == "gzip"
    assert b"bgpd_build_info" in gzip.decompress(body)


def test_livez_follows_the_event_loop(node: Node) -> None:
    """A heartbeat within ten seconds is life; without one the answer is 503 with its age."""
    assert node.ask("/livez")[1] == b"ok\n"
    node.heartbeat_age_s = 12.34
    response, body = node.ask("/livez")
    assert (response.status, body) == (503, b"the event loop has not run for 12.3 s\n")


def test_readyz_gives_its_reasons(node: Node) -> None:
    """200 with `ok`, or 503 with a line for each reason."""
    assert node.ask("/readyz")[1] == b"ok\n"
    node.readiness = Readiness(("bgp: tor-a: refused",))
    response, body = node.ask("/readyz")
    assert (response.status, body) == (503, b"not ready: bgp: tor-a: refused\n")


def test_readyz_as_json(node: Node) -> None:
    """`?format=json` has the same for programs."""
    node.readiness = Readiness((), ("bgp: tor-a: refused",))
    response, body = node.ask("/readyz?format=json")
    assert (response.status, response.headers["Content-Type"]) == (200, "application/json")
    assert json.loads(body) == {"ready": True, "reasons": [], "degraded": ["bgp: tor-a: refused"]}


def test_the_root_links_to_the_rest(node: Node) -> None:
    """A person who opens the port in a browser finds the pages."""
    assert b'href="/metrics"' in node.ask("/")[1]


def test_head_has_no_body(node: Node) -> None:
    """HEAD gives the length of what GET would give."""
    response, body = node.ask("/livez", "HEAD")
    assert (response.status, response.headers["Content-Length"], body) == (200, "3", b"")


@pytest.mark.parametrize("path", ["/metric", "/metrics/", "//metrics/../livez", "/favicon.ico"])
def test_other_paths_are_not_found(node: Node, path: str) -> None:
    """Only the four paths exist."""
    assert node.ask(path)[0].status == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "BREW"])
def test_other_methods_are_refused(node: Node, method: str) -> None:
    """The port is read-only, and says so."""
    response, body = node.ask("/metrics", method)
    assert (response.status, response.headers["Allow"]) == (405, "GET, HEAD")
    assert body == b"read-only: GET or HEAD\n"


def test_a_slow_client_is_cut_off(node: Node) -> None:
    """A request has a bounded time in all: a byte now and then does not extend it."""
    with node.connect() as slow:
        started = time.monotonic()
        slow.sendall(b"GET /livez HTTP/1.1\r\nX: ")
        slow.settimeout(0.03)
        while time.monotonic() - started < 5 and not _is_closed(slow):
            slow.sendall(b"a")
        assert REQUEST_S <= time.monotonic() - started < REQUEST_S + 2


def test_idle_clients_neither_pile_up_nor_keep_others_out() -> None:
    """With forty connections that say nothing there are eight threads, and a probe need not wait for them."""
    node = Node(request_s=60)
    node.server.start()
    before = threading.active_count()
    idle = [node.connect() for _ in range(40)]
    assert node.ask("/livez")[1] == b"ok\n"
    # one more, because a thread frees its place a moment before it ends
    assert threading.active_count() - before <= MOST_CLIENTS + 1
    for client in idle:
        client.close()
    node.server.stop()


def test_a_port_in_use_is_said_plainly(node: Node) -> None:
    """The error names the setting, the address and what to do."""
    taken = f"127.0.0.1:{node.address[1]}"
    other = HttpServer(taken, Metrics().registry, lambda: 0.0, Readiness)
    with pytest.raises(OSError, match=f"metrics.listen {taken}: another program listens on that port"):
        other.start()


def test_an_empty_address_is_off() -> None:
    """`metrics.listen: ""` opens no port."""
    server = HttpServer("", Metrics().registry, lambda: 0.0, Readiness)
    server.start()
    assert server.address is None
    server.stop()


def test_it_stops_in_spite_of_a_client() -> None:
    """A stop does not wait for a client that dawdles, and a restart finds the port free."""
    node = Node(request_s=60)
    node.server.start()
    address = f"127.0.0.1:{node.address[1]}"
    with node.connect():
        started = time.monotonic()
        node.server.stop()
        assert time.monotonic() - started < 5
    again = HttpServer(address, Metrics().registry, lambda: 0.0, Readiness)
    again.start()
    again.stop()


@pytest.mark.parametrize(
    ("text", "family", "address"),
    [
        ("0.0.0.0:9179", socket.AF_INET, ("0.0.0.0", 9179)),  # noqa: S104
        ("[::]:9179", socket.AF_INET6, ("::", 9179)),
        ("[fd00::63]:80", socket.AF_INET6, ("fd00::63", 80)),
        (":9179", socket.AF_INET6, ("::", 9179)),
    ],
)
def test_addresses(text: str, family: int, address: tuple[str, int]) -> None:
    """IPv4, IPv6 in brackets, or every address."""
    assert parse_listen(text) == (family, address)


@pytest.mark.parametrize(
    "text", ["9179", "127.0.0.1", "::1:9179", "[127.0.0.1]:1", "localhost:9179", "[::]:66000", "1.2.3.4:"]
)
def test_wrong_addresses(text: str) -> None:
    """Anything else is refused with the text it came from."""
    with pytest.raises(ValueError, match="is not an"):
        parse_listen(text)


def test_both_families_on_one_socket() -> None:
    """`[::]:PORT` answers IPv4 too."""
    server = HttpServer("[::]:0", Metrics().registry, lambda: 0.0, Readiness)
    try:
        server.start()
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    assert server.address is not None
    client = HTTPConnection("127.0.0.1", server.address[1], timeout=3)
    client.request("GET", "/livez")
    assert client.getresponse().read() == b"ok\n"
    client.close()
    server.stop()


def _is_closed(channel: socket.socket) -> bool:
    try:
        return channel.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True
