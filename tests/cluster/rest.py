"""A small client for the Kubernetes API: what the tests do to the cluster, apart from the daemon they test.

Decides how a request is sent and how an error answer becomes an exception. Holds no knowledge of any kind of
object, retries nothing, caches nothing: a test that wants a retry says so. Deliberately not the daemon's own
client, so that a mistake in that one cannot hide itself.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import urlencode

from . import netns

JsonObject = dict[str, Any]

MERGE_PATCH: Final = "application/merge-patch+json"  # RFC 7386
STRATEGIC_PATCH: Final = "application/strategic-merge-patch+json"
JSON_PATCH: Final = "application/json-patch+json"  # RFC 6902
APPLY_PATCH: Final = "application/apply-patch+yaml"

# A frozen server must not hang the test run; a healthy one answers within milliseconds.
REQUEST_TIMEOUT_S: Final = 10.0


class ApiError(Exception):
    """The server answered, and the answer was an error: the HTTP status and the server's own words."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message


class Rest:
    """One user of one API server. A connection per request; safe to share between threads.

    `tls` None speaks plain HTTP. Every method raises `ApiError` for an error answer and `OSError` (a
    `TimeoutError` after `timeout_s`) when there is none.
    """

    def __init__(
        self,
        address: str,
        port: int,
        *,
        tls: ssl.SSLContext | None = None,
        token: str | None = None,
        network: str | None = None,
        timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> None:
        self._address = address
        self._port = port
        self._tls = tls
        self._network = network
        self._timeout_s = timeout_s
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}

    def get(self, path: str, **query: str | int) -> JsonObject:
        """One object, or a list; `query` holds parameters such as `resourceVersion` or `labelSelector`."""
        return _object(self._request("GET", _with(path, query)))

    def text(self, path: str) -> str:
        """An answer that is not JSON, such as /readyz or /metrics."""
        return self._request("GET", path).decode()

    def create(self, path: str, body: Mapping[str, Any]) -> JsonObject:
        """Create an object; `path` is the collection's, or a subresource such as `.../token`."""
        return _object(self._request("POST", path, body))

    def replace(self, path: str, body: Mapping[str, Any]) -> JsonObject:
        """Replace the whole object; a `resourceVersion` that is not the newest is a 409."""
        return _object(self._request("PUT", path, body))

    def patch(self, path: str, body: object, kind: str = MERGE_PATCH) -> JsonObject:
        """Patch an object; `kind` is the patch's media type."""
        return _object(self._request("PATCH", path, body, kind))

    def delete(self, path: str, body: Mapping[str, Any] | None = None) -> JsonObject:
        """Delete an object or a collection; `body` is a DeleteOptions."""
        return _object(self._request("DELETE", path, body))

    def watch(self, path: str, *, seconds: int = 5, **query: str | int) -> Iterator[JsonObject]:
        """The events of a watch, each `{"type": ..., "object": ...}`.

        Ends when the server ends it, after `seconds`, or the connection is lost. The request is sent when the
        first event is asked for: give it the `resourceVersion` to begin after. A refusal by status code
        raises `ApiError`; a refusal inside the stream is an event of type ERROR, as the API has it. Closing
        the iterator closes the connection.
        """
        target = _with(path, {"watch": "true", "timeoutSeconds": seconds, **query})
        connection, response = self._send("GET", target, None, "", seconds + self._timeout_s)
        try:
            while line := response.readline():
                yield _object(line)
        finally:
            connection.close()

    def _request(
        self, method: str, path: str, body: object = None, content_type: str = "application/json"
    ) -> bytes:
        connection, response = self._send(method, path, body, content_type, self._timeout_s)
        try:
            return response.read()
        finally:
            connection.close()

    def _send(
        self, method: str, path: str, body: object, content_type: str, timeout_s: float
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection = http.client.HTTPConnection(self._address, self._port, timeout=timeout_s)
        try:
            connection.sock = self._connected(timeout_s)
            data = None if body is None else json.dumps(body).encode()
            headers = self._headers if data is None else {**self._headers, "Content-Type": content_type}
            connection.request(method, path, data, headers)
            response = connection.getresponse()
            if response.status >= 400:
                raise ApiError(response.status, _message(response.read()))
        except BaseException:
            connection.close()
            raise
        return connection, response

    def _connected(self, timeout_s: float) -> socket.socket:
        plain = netns.connect(self._network, self._address, self._port, timeout_s)
        # A body follows its headers in a packet of its own: Nagle's algorithm would hold it back for 40 ms.
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is None:
            return plain
        try:
            return self._tls.wrap_socket(plain, server_hostname=self._address)
        except BaseException:
            plain.close()
            raise


def _with(path: str, query: Mapping[str, str | int]) -> str:
    return f"{path}?{urlencode(query)}" if query else path


def _object(data: bytes) -> JsonObject:
    value = json.loads(data)
    if not isinstance(value, dict):
        raise ValueError(f"the answer is not a JSON object: {data[:200]!r}")
    return value


def _message(data: bytes) -> str:
    """The `message` of a Status object, or the answer itself: /readyz answers its failures as text."""
    try:
        return str(_object(data)["message"])
    except (ValueError, KeyError):
        return data.decode(errors="replace")
