"""Serves `/metrics`, `/livez` and `/readyz`: read-only, for Prometheus and the kubelet.

It runs in threads of its own, so that `/livez` can still say that the event loop hangs. What it shows comes from
functions that must be safe to call from another thread (they read one immutable value). It decides how a client
is bounded, not what is healthy (`health`) and not what is measured (`metrics`).

Anybody who reaches the port may connect. A request has `REQUEST_S` in all, from accept to the last byte, and
there are at most `MOST_CLIENTS` at a time: one more takes the place of the oldest. Real requests take
milliseconds, so the oldest is the one that does not mean to finish.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import json
import socket
import sys
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder, gzip_accepted

from bgpd.observe import log
from bgpd.observe.health import Readiness

REQUEST_S = 5.0
MOST_CLIENTS = 8
STALE_HEARTBEAT_S = 10.0

_TEXT = "text/plain; charset=utf-8"
_LOG = log.get("bgpd.http")


class HttpServer:
    """`heartbeat_age_s` tells how long ago the event loop last said that it runs."""

    def __init__(
        self,
        listen: str,
        registry: CollectorRegistry,
        heartbeat_age_s: Callable[[], float],
        readiness: Callable[[], Readiness],
        request_s: float = REQUEST_S,
    ) -> None:
        self._listen = listen
        self._pages = _Pages(registry, heartbeat_age_s, readiness)
        self._request_s = request_s
        self._server: _Server | None = None

    @property
    def address(self) -> tuple[str, int] | None:
        """Where it listens; None: it does not."""
        return self._server.server_address[:2] if self._server else None  # type: ignore[return-value]

    def start(self) -> None:
        """Binds and serves; an empty `listen` is off. ValueError: not an address. OSError: what is in the way."""
        if not self._listen:
            return
        family, address = parse_listen(self._listen)
        try:
            self._server = _Server(family, address, self._pages, self._request_s)
        except OSError as error:
            raise OSError(error.errno, f"metrics.listen {self._listen}: {_remedy(error)}") from None
        threading.Thread(target=self._server.serve_forever, name="http", daemon=True).start()

    def stop(self) -> None:
        """Closes the port and returns when it is closed; requests under way may still be answered."""
        if self._server is not None:
            self._server.stop()
            self._server = None


def parse_listen(text: str) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """`0.0.0.0:9179`, `[::]:9179` (both families) or `:9179` (the same). ValueError: none of them."""
    host, colon, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    family = socket.AF_INET6 if ":" in bare or not bare else socket.AF_INET
    number = int(port) if port.isascii() and port.isdigit() else -1
    if not colon or not 0 <= number <= 65535 or (":" in bare) != (host != bare):
        raise ValueError(f"{text!r} is not an address to listen on; write it like 0.0.0.0:9179 or [::]:9179")
    try:
        socket.inet_pton(family, bare or "::")
    except OSError:
        raise ValueError(f"{text!r}: {bare!r} is not an IP address; names are not looked up") from None
    return family, (bare or "::", number)


def _remedy(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "another program listens on that port; stop it or choose another port"
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine has no such address"
    if error.errno == errno.EACCES:
        return "ports below 1024 need CAP_NET_BIND_SERVICE; choose a higher one"
    return error.strerror or str(error)


# --- pages ------------------------------------------------------------------------------------------------


class _Page:
    """A complete answer."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, body: str | bytes, status: int = 200, content_type: str = _TEXT, **headers: str) -> None:
        self.body = body.encode() if isinstance(body, str) else body
        self.status = status
        self.headers = {"Content-Type": content_type, **{k.replace("_", "-"): v for k, v in headers.items()}}


class _Pages:
    """What each path shows."""

    def __init__(
        self,
        registry: CollectorRegistry,
        heartbeat_age_s: Callable[[], float],
        readiness: Callable[[], Readiness],
    ) -> None:
        self._registry, self._heartbeat_age_s, self._readiness = registry, heartbeat_age_s, readiness

    def get(self, target: str, accept: str, encodings: str) -> _Page:
        url = urlsplit(target)
        match url.path:
            case "/metrics":
                return self._metrics(accept, encodings)
            case "/livez":
                return self._livez()
            case "/readyz":
                return self._readyz(as_json="json" in parse_qs(url.query).get("format", []))
            case "/":
                return _index()
            case _:
                return _Page("not found; there are /metrics, /livez and /readyz\n", HTTPStatus.NOT_FOUND)

    def _metrics(self, accept: str, encodings: str) -> _Page:
        try:
            encoder, content_type = choose_encoder(accept)
        except (TypeError, ValueError):
            encoder, content_type = choose_encoder("")  # an Accept with a version that is no number
        body = encoder(self._registry)
        if gzip_accepted(encodings):
            return _Page(gzip.compress(body, 1), 200, content_type, Content_Encoding="gzip")
        return _Page(body, 200, content_type)

    def _livez(self) -> _Page:
        age_s = self._heartbeat_age_s()
        if age_s < STALE_HEARTBEAT_S:
            return _Page("ok\n")
        return _Page(f"the event loop has not run for {age_s:.1f} s\n", HTTPStatus.SERVICE_UNAVAILABLE)

    def _readyz(self, *, as_json: bool) -> _Page:
        found = self._readiness()
        status = HTTPStatus.OK if found.ready else HTTPStatus.SERVICE_UNAVAILABLE
        if not as_json:
            return _Page(found.text, status)
        body = {"ready": found.ready, "reasons": found.reasons, "degraded": found.degraded}
        return _Page(json.dumps(body) + "\n", status, "application/json")


def _index() -> _Page:
    links = "".join(f'<li><a href="{path}">{path}</a></li>' for path in ("/metrics", "/livez", "/readyz"))
    return _Page(f"<!doctype html><title>bgpd</title><ul>{links}</ul>\n", 200, "text/html; charset=utf-8")


# --- the server -------------------------------------------------------------------------------------------


class _Handler(BaseHTTPRequestHandler):
    """One request; HTTP/1.0, so the connection ends with it."""

    server_version = "bgpd"
    sys_version = ""

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def __getattr__(self, name: str) -> Any:
        """Every other method: the standard library would say 501, that it is unknown, where 405 is meant."""
        if name.startswith("do_"):
            return self._refuse
        raise AttributeError(name)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: probes come every few seconds."""

    def _answer(self, *, with_body: bool) -> None:
        pages = cast(_Server, self.server).pages
        accept, encodings = self.headers.get("Accept", ""), self.headers.get("Accept-Encoding", "")
        self._send(pages.get(self.path, accept, encodings), with_body=with_body)

    def _refuse(self) -> None:
        self._send(_Page("read-only: GET or HEAD\n", HTTPStatus.METHOD_NOT_ALLOWED, Allow="GET, HEAD"))

    def _send(self, page: _Page, *, with_body: bool = True) -> None:
        self.send_response(page.status)
        for name, value in page.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(page.body)))
        self.end_headers()
        if with_body:
            self.wfile.write(page.body)


class _Server(ThreadingHTTPServer):
    """A thread per request, a bounded number of them, each for a bounded time."""

    daemon_threads = True
    block_on_close = False  # a client that dawdles must not hold up the daemon's end
    request_queue_size = 128  # a burst must not cost a probe the second after which TCP tries again

    def __init__(
        self, family: socket.AddressFamily, address: tuple[str, int], pages: _Pages, request_s: float
    ) -> None:
        self.address_family = family
        self.pages = pages
        self._request_s = request_s
        self._accepted: dict[socket.socket, float] = {}  # when, the oldest first
        self._lock = threading.Lock()
        self._slots = threading.Semaphore(MOST_CLIENTS)
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Without the parent's look-up of the host's name, which takes seconds where DNS does not answer."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def stop(self) -> None:
        """Ends `serve_forever` at once: a listening socket that is shut down wakes its poll."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.shutdown()
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            crowded = len(self._accepted) >= MOST_CLIENTS
            if crowded:
                _hang_up(next(iter(self._accepted)))
        if not self._slots.acquire(timeout=self._request_s):
            self.shutdown_request(request)
            return
        with self._lock:
            self._accepted[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Called once for each connection, after its thread is done with it."""
        with self._lock:
            known = self._accepted.pop(request, None) is not None
        if known:
            self._slots.release()
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Called twice a second: a timeout of the socket would start anew with each byte."""
        with self._lock:
            late = [it for it, at in self._accepted.items() if time.monotonic() - at > self._request_s]
            for request in late:
                _hang_up(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is nobody's fault; anything else is a fault of ours, and it is shown."""
        if not isinstance(sys.exc_info()[1], OSError):
            _LOG.error("a request failed", client=str(client_address[0]), exc_info=True)


def _hang_up(request: socket.socket) -> None:
    """Wakes the thread that reads from it or writes to it; that thread closes it."""
    with contextlib.suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)
