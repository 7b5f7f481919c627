"""Talks to one API server as one user: credentials, TLS and transport of the Kubernetes client, raw bodies.

Decides when credentials are read again (a file of theirs changed, or the server answered 401) and what a
broken connection or a refusal is called. It decodes nothing but refusals and never retries: `watch` and
`recorder` do.
The only module that imports kubernetes, which costs 40 MB of resident memory: import it when it is needed.

The client's own hook that re-reads a service account's token goes by wall clock, which may jump; it is off.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import tempfile
import weakref
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.client.rest import RESTClientObject
from kubernetes.aio.config import ConfigException, load_kube_config_from_dict
from kubernetes.aio.config.incluster_config import InClusterConfigLoader

from bgpd import __version__
from bgpd.kube.credentials import Kubeconfig, Signature, read_kubeconfig, signature
from bgpd.kube.mirror import RefusedError, refusal
from bgpd.model.fault import Fault, FaultsError

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
CONNECT_S = 10.0  # TCP, TLS and the response's head; a healthy server takes a tenth of a second
PLUGIN_S = 30.0  # an exec plugin asks its cloud for a token; everything else is local files
DEAD_AFTER_S = 20.0  # a silent network: TCP probes go unanswered for so long
_ERROR_BODY = 64 * 1024
_DONE = (200, 201)

Query = Mapping[str, str]
Body = Mapping[str, Any]


class UnreachableError(Exception):
    """No answer, or half of one; the text says from where and why."""


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    path: str
    query: Query = field(default_factory=dict)
    body: Body | None = None
    content_type: str = "application/json"

    @property
    def headers(self) -> dict[str, str]:
        accept = {"Accept": "application/json"}
        return accept | {"Content-Type": self.content_type} if self.body is not None else accept

    def url(self, host: str) -> str:
        return f"{host}{self.path}?{urlencode(self.query)}" if self.query else f"{host}{self.path}"


class ApiServer:
    """The API server of `kubeconfig`, or the one of the cluster this runs in when that is None.

    Any number of readers may share one, each within `async with`; the last to leave closes it.
    `dead_after_s` is how long a peer may leave TCP's probes unanswered before the connection is given up.
    """

    def __init__(
        self,
        kubeconfig: Path | None = None,
        *,
        service_account: Path = SERVICE_ACCOUNT,
        environ: Mapping[str, str] = os.environ,
        connect_s: float = CONNECT_S,
        dead_after_s: float = DEAD_AFTER_S,
    ) -> None:
        self._kubeconfig, self._service_account, self._environ = kubeconfig, service_account, environ
        self._connect_s, self._dead_after_s = connect_s, dead_after_s
        self._login: _Login | None = None
        self._is_refused = False
        self._lock = asyncio.Lock()
        self._readers = 0
        self.faults: tuple[Fault, ...] = ()

    async def __aenter__(self) -> Self:
        self._readers += 1
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._readers -= 1
        if not self._readers and self._login is not None:
            login, self._login = self._login, None
            await login.client.close()

    async def check(self) -> None:
        """Reads the credentials now. Raises `FaultsError`: every fault of the kubeconfig, file and remedy."""
        self._is_refused = True
        async with self:
            await self._current()

    def refused(self) -> None:
        """The server does not accept the credentials (401): read them again before the next request."""
        self._is_refused = True

    async def get(self, path: str, query: Query, timeout_s: float) -> bytes:
        """The body of a whole answer. Raises as `stream` does."""
        async with self._open(_Request("GET", path, query), timeout_s) as response:
            return await response.read()

    async def create(self, path: str, body: Body, timeout_s: float) -> bytes:
        """Adds an object to the collection `path`; it as the server has it. Raises as `stream` does."""
        async with self._open(_Request("POST", path, body=body), timeout_s) as response:
            return await response.read()

    async def patch(self, path: str, body: Body, timeout_s: float) -> bytes:
        """Applies a merge patch (RFC 7386) to the object `path`; it as it is then. Raises as `stream` does."""
        request = _Request("PATCH", path, body=body, content_type="application/merge-patch+json")
        async with self._open(request, timeout_s) as response:
            return await response.read()

    async def apply(self, path: str, body: Body, manager: str, timeout_s: float) -> bytes:
        """Makes the object `path` have what is in `body`, and no more of what `manager` once gave it (server-side
        apply); another's say in it is taken over. It as it is then. Raises as `stream` does.
        """
        query = {"fieldManager": manager, "force": "true"}
        request = _Request("PATCH", path, query, body, "application/apply-patch+yaml")  # of which JSON is a subset
        async with self._open(request, timeout_s) as response:
            return await response.read()

    @asynccontextmanager
    async def stream(self, path: str, query: Query, timeout_s: float) -> AsyncIterator[AsyncIterator[bytes]]:
        """The body of an answer in pieces, each as soon as it is there, for `timeout_s` at most.

        Pieces are no lines: a line may be longer than any buffer that aiohttp would allow.
        Raises, on entering and inside: `UnreachableError`, `RefusedError`, `FaultsError`.
        """
        async with self._open(_Request("GET", path, query), timeout_s) as response:
            yield response.content.iter_any()

    @asynccontextmanager
    async def _open(self, request: _Request, timeout_s: float) -> AsyncIterator[aiohttp.ClientResponse]:
        login = await self._current()
        login.users += 1
        try:
            response = await self._send(login, request, timeout_s)
            try:
                if response.status not in _DONE:
                    await self._refuse(response)
                yield response
            finally:
                response.close()  # of no use any more, unless it was read to its end and went back already
        except TimeoutError:
            text = f"{login.host} fell silent: its answer had no end in {timeout_s:g} s"
            raise UnreachableError(text) from None
        except (aiohttp.ClientError, OSError) as error:
            raise UnreachableError(_reason(login.host, error)) from None
        finally:
            login.users -= 1
            await login.close_if_left()

    async def _send(self, login: _Login, request: _Request, timeout_s: float) -> aiohttp.ClientResponse:
        headers = {**login.client.default_headers, **request.headers}
        await login.client.update_params_for_auth(headers, [], ["BearerToken"], request.path, request.method, None)
        # A frozen server's kernel still accepts connections, so the head needs a bound of its own.
        head_s = min(self._connect_s, timeout_s)
        try:
            async with asyncio.timeout(head_s):
                return await login.send(request, headers, timeout_s)
        except TimeoutError:
            text = f"{login.host} began no answer in {head_s:g} s; is it overloaded or frozen?"
            raise UnreachableError(text) from None

    async def _refuse(self, response: aiohttp.ClientResponse) -> None:
        body = await response.content.read(_ERROR_BODY)
        wait = response.headers.get("Retry-After", "")
        message = refusal(body).message or response.reason or "no reason given"
        raise RefusedError(response.status, message, float(wait) if wait.isdecimal() else None)

    # --- credentials --------------------------------------------------------------------------------------

    async def _current(self) -> _Login:
        """The login to use now. When changed files cannot be read the old one is, and `faults` says so."""
        async with self._lock:
            old = self._login
            if old is not None and not self._is_refused and signature(old.files) == old.signature:
                return old
            try:
                new = await self._read()
            except FaultsError as error:
                self.faults = error.faults
                if old is None or self._is_refused:
                    raise
                return old
            self._login, self._is_refused, self.faults = new, False, ()
            if old is not None:
                old.is_left = True
                await old.close_if_left()
            return new

    async def _read(self) -> _Login:
        configuration = Configuration()
        # What the kubeconfig says counts, not a proxy or a netrc from the environment.
        configuration.client_session_kwargs = {"trust_env": False}
        place = str(self._kubeconfig or self._service_account)
        try:
            if self._kubeconfig is None:
                return self._read_in_cluster(configuration)
            async with asyncio.timeout(PLUGIN_S):
                return await self._read_kubeconfig(self._kubeconfig, configuration)
        except TimeoutError:
            text = f"the credential plugin did not answer in {PLUGIN_S:g} s"
            raise FaultsError((Fault(place, 0, 0, "users.user.exec", text),)) from None
        except (ConfigException, ssl.SSLError, OSError, ValueError) as error:
            text = f"these credentials cannot be used: {error}"
            raise FaultsError((Fault(place, 0, 0, "", text),)) from None

    async def _read_kubeconfig(self, path: Path, configuration: Configuration) -> _Login:
        before = signature([path])
        found = read_kubeconfig(path)
        # Taken first: a file that changes while it is read will be read once more.
        marks = before + signature(found.files[1:])
        with tempfile.TemporaryDirectory(prefix="bgpd-") as scratch:
            await load_kube_config_from_dict(  # type: ignore[no-untyped-call]
                found.as_dict(Path(scratch)), client_configuration=configuration
            )
            _check_exec(path, found, configuration)
            return self._login_with(configuration, found.files, marks)

    def _read_in_cluster(self, configuration: Configuration) -> _Login:
        token, authority = self._service_account / "token", self._service_account / "ca.crt"
        files = (token, authority)
        marks = signature(files)
        loader: Any = InClusterConfigLoader(  # type: ignore[no-untyped-call]
            str(token), str(authority), try_refresh_token=False, environ=self._environ
        )
        try:
            loader.load_and_set(configuration)
        except ConfigException as error:
            text = f"{error} Outside a pod, give source.kubernetes.kubeconfig"
            raise FaultsError((Fault(str(self._service_account), 0, 0, "", text),)) from None
        return self._login_with(configuration, files, marks)

    def _login_with(self, configuration: Configuration, files: tuple[Path, ...], marks: Signature) -> _Login:
        # A token file may end in a newline, which the client would put into the header.
        if token := configuration.api_key.get("BearerToken"):
            configuration.api_key["BearerToken"] = token.strip()
        client = ApiClient(configuration)
        client.rest_client = _Transport(configuration, self._dead_after_s)
        client.user_agent = f"bgpd/{__version__}"
        return _Login(client, files, marks)


class _Login:
    """A client made from one state of the credentials; closed once it is replaced and nobody reads from it.

    `client` is an ApiClient, whose annotations are too few to check against.
    """

    def __init__(self, client: Any, files: tuple[Path, ...], marks: Signature) -> None:
        self.client, self.files, self.signature = client, files, marks
        self.host = str(client.configuration.host)
        self.users = 0
        self.is_left = False

    async def send(self, request: _Request, headers: dict[str, str], timeout_s: float) -> aiohttp.ClientResponse:
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        answer = await self.client.rest_client.request(
            request.method, request.url(self.host), headers=headers, body=request.body, _request_timeout=timeout
        )
        response: aiohttp.ClientResponse = answer.response
        return response

    async def close_if_left(self) -> None:
        if self.is_left and not self.users:
            await self.client.close()


class _Transport(RESTClientObject):
    """Makes connections that notice when the other end is gone without a word (tcp(7))."""

    def __init__(self, configuration: Configuration, dead_after_s: float) -> None:
        super().__init__(configuration)
        self._dead_after_s = dead_after_s
        self._made: weakref.WeakSet[socket.socket] = weakref.WeakSet()

    async def close(self) -> None:
        """Ends every connection at once. A TLS goodbye would wait for a server that may be frozen."""
        await super().close()
        for left in self._made:
            with contextlib.suppress(OSError):
                left.shutdown(socket.SHUT_RDWR)

    def _create_connector(self) -> aiohttp.TCPConnector:
        return aiohttp.TCPConnector(limit=self.maxsize, ssl=self.ssl_context, socket_factory=self._socket)

    def _socket(self, info: Any) -> socket.socket:
        family, kind, protocol = info[:3]
        made = socket.socket(family, kind, protocol)
        self._made.add(made)
        probe_s = max(1, round(self._dead_after_s / 4))
        made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, probe_s)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, probe_s)
        # Bounds unanswered probes as well, and takes the place of TCP_KEEPCNT.
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(self._dead_after_s * 1000))
        return made


def _check_exec(path: Path, found: Kubeconfig, configuration: Configuration) -> None:
    """The client logs a failed plugin and goes on as nobody."""
    if found.has_exec and not configuration.api_key and not configuration.cert_file:
        raise FaultsError((Fault(str(path), 0, 0, "users.user.exec", "the plugin gave no credential"),))


def _reason(host: str, error: Exception) -> str:
    """aiohttp's texts name its own options; the cause below them is what helps."""
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
    text = getattr(error, "strerror", None) or str(cause) or type(cause).__name__
    return f"{host}: {text}"
