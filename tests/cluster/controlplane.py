"""A real control plane for one test run: etcd and kube-apiserver, alone, on one address.

Decides the flags, the files and the life of the two servers, and who may talk to them with which credential.
It does not build them (`build.py`), and runs no controller: nothing makes default service accounts, empties a
namespace that is being deleted, updates Endpoints or marks a silent Node as not ready. A test that needs one
of those writes the object itself.

What is switched off, and why: the ServiceAccount admission plugin (without a controller no pod would find
its default account), the reconciler of the `kubernetes` Endpoints (it refuses a loopback address), and the
periodic compaction of etcd (a test that wants history gone asks for it).
"""

from __future__ import annotations

import base64
import json
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import yaml

from . import netns, pki
from .apply import apply_file
from .process import Server
from .rest import REQUEST_TIMEOUT_S, ApiError, JsonObject, Rest

ETCD_ADDRESS: Final = "127.0.0.1"
ISSUER: Final = "https://kubernetes.default.svc"
SERVICE_RANGE_V4: Final = "10.96.0.0/16"
SERVICE_RANGE_V6: Final = "fd00:10:96::/112"
READY_DEADLINE_S: Final = 60.0
POLL_INTERVAL_S: Final = 0.05
STORE_BATCH: Final = 100  # etcd takes 128 operations at once
# kube-apiserver accepts a token this long after its `exp`: the default leeway of the JWT library it uses.
TOKEN_LEEWAY_S: Final = 60.0


class ControlPlane:
    """etcd and kube-apiserver, with their data, logs, keys and kubeconfigs below `directory`.

    `binaries` holds `etcd` and `kube-apiserver`. The API is served with TLS on `address` and `port` (0 takes
    a free one) inside the network namespace `network` (None is the caller's own); the namespace's loopback
    must be up, since etcd listens there. `extra_args` are added to kube-apiserver's command line, last, so
    that they win. `admin`, `client` and `token_client` reach the server from outside its namespace; whoever
    reads a kubeconfig must be able to route to `address`.

    Both servers die with the thread that starts them. Use it in a `with`, or call `start` and `stop`.
    """

    def __init__(
        self,
        directory: Path,
        binaries: Path,
        *,
        address: str = "127.0.0.1",
        port: int = 0,
        network: str | None = None,
        extra_args: Sequence[str] = (),
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.address = address
        self.port = port or netns.free_port(network, address)
        self._directory = directory
        self._network = network
        self._authority = pki.Authority(directory / "pki")
        self._token_key = pki.rsa_key(directory / "pki" / "service-accounts.key")
        etcd_port = netns.free_port(network, ETCD_ADDRESS)
        etcd_command = [str(binaries / "etcd"), *self._etcd_flags(etcd_port)]
        apiserver_command = [str(binaries / "kube-apiserver"), *self._apiserver_flags(etcd_port), *extra_args]
        apiserver_log = directory / "kube-apiserver.log"
        self.etcd = Server("etcd", etcd_command, directory / "etcd.log", network)
        self.apiserver = Server("kube-apiserver", apiserver_command, apiserver_log, network)
        self._etcd_client = Rest(ETCD_ADDRESS, etcd_port, network=network)
        self.admin = self.client("admin", "system:masters")

    @property
    def url(self) -> str:
        """Where the API is served."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"https://{host}:{self.port}"

    @property
    def certificate_authority(self) -> Path:
        """The PEM file that the server's certificate is verified with."""
        return self._authority.certificate

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start both servers and return when the API is ready. After a failure neither is left running.

        Raises `StartError` with the end of the log. Data of an earlier start in this directory is kept.
        """
        try:
            self.etcd.start()
            self._wait_ready(self.etcd, lambda: self._etcd_client.text("/health"))
            self.start_apiserver()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End both servers; their files stay. Does nothing when they are not running."""
        # Nothing is read back from a server that a test run is done with: no graceful end to wait for.
        self.apiserver.kill()
        self.etcd.stop()

    def start_apiserver(self) -> None:
        """Start kube-apiserver, which must not be running, on the same port, and wait until it is ready."""
        self.apiserver.start()
        # The namespace is made after readiness, and nearly every test writes into it.
        self._wait_ready(self.apiserver, lambda: self.admin.text("/readyz"))
        self._wait_ready(self.apiserver, lambda: self.admin.get("/api/v1/namespaces/default"))

    def stop_apiserver(self) -> None:
        """End kube-apiserver as an upgrade does (SIGTERM).

        Its port refuses connections at once, while watches that are open stay open and silent until the
        client ends them; with one open it is killed after ten seconds. With none it is gone in 50 ms.
        """
        self.apiserver.stop()

    def kill_apiserver(self) -> None:
        """End kube-apiserver as a crash does; etcd goes on. Its port refuses connections afterwards."""
        self.apiserver.kill()

    def pause_apiserver(self) -> None:
        """Freeze kube-apiserver: connections are accepted by the kernel, and nothing answers."""
        self.apiserver.pause()

    def resume_apiserver(self) -> None:
        """Let a frozen kube-apiserver run on."""
        self.apiserver.resume()

    def client(self, user: str, *groups: str, timeout_s: float = REQUEST_TIMEOUT_S) -> Rest:
        """The API as a user with a client certificate; RBAC decides what the user may do."""
        tls = self._tls(self._authority.client(user, groups))
        return Rest(self.address, self.port, tls=tls, network=self._network, timeout_s=timeout_s)

    def token_client(self, token: str) -> Rest:
        """The API as the bearer of a token."""
        return Rest(self.address, self.port, tls=self._tls(None), token=token, network=self._network)

    def kubeconfig(self, user: str, *groups: str) -> Path:
        """A kubeconfig file whose credential is a client certificate of this user and these groups."""
        identity = self._authority.client(user, groups)
        credential = {"client-certificate": str(identity.certificate), "client-key": str(identity.key)}
        return self._write_kubeconfig(identity.certificate.stem, credential)

    def token_kubeconfig(self, token_file: Path) -> Path:
        """A kubeconfig file whose credential is read from `token_file`; the test writes and rewrites that."""
        return self._write_kubeconfig(f"token-{token_file.stem}", {"tokenFile": str(token_file)})

    def service_account_token(
        self, namespace: str, name: str, seconds: int = 3600, *, bound_to: JsonObject | None = None
    ) -> str:
        """A token of an existing service account, from the TokenRequest API; `seconds` is 600 or more.

        Bound to a Secret or Pod of the same namespace, given as the API server returned it, it is refused
        (401) once that is deleted; bound to none, once the account is. Either takes up to ten seconds to be
        seen, if the token was used just before: kube-apiserver remembers a token that it has accepted for
        that long.
        """
        spec: dict[str, Any] = {"expirationSeconds": seconds}
        if bound_to is not None:
            which = {key: bound_to["metadata"][key] for key in ("name", "uid")}
            spec["boundObjectRef"] = {"apiVersion": "v1", "kind": bound_to["kind"], **which}
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        return str(self.admin.create(path, {"spec": spec})["status"]["token"])

    def expiring_token(self, namespace: str, name: str, seconds: float) -> str:
        """A token that the server starts to refuse after `seconds`, zero or less being at once.

        The TokenRequest API grants no less than ten minutes, so this is signed here with the server's own
        key, its `exp` put back by the server's leeway. It may be accepted for ten seconds more if it was
        used before it expired, as with `service_account_token`.
        """
        account = self.admin.get(f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}")
        now = int(time.time())
        claims = {
            "iss": ISSUER,
            "aud": [ISSUER],
            "sub": f"system:serviceaccount:{namespace}:{name}",
            "iat": now - 3600,
            "nbf": now - 3600,
            "exp": int(time.time() + seconds - TOKEN_LEEWAY_S),
            "kubernetes.io": {
                "namespace": namespace,
                "serviceaccount": {"name": name, "uid": account["metadata"]["uid"]},
            },
        }
        signed = f"{_segment({'alg': 'RS256', 'typ': 'JWT'})}.{_segment(claims)}"
        return f"{signed}.{_base64url(pki.rs256(self._token_key, signed.encode()))}"

    def apply_file(self, path: Path) -> list[JsonObject]:
        """Create or replace every object of a YAML file, as the administrator."""
        return apply_file(self.admin, path)

    def store(self, objects: Mapping[str, JsonObject]) -> None:
        """Write whole objects, status included, straight into etcd: thousands a second, where the API takes two
        requests for a Pod that runs. Keys are etcd's, `/registry/pods/NAMESPACE/NAME`.

        Nothing is checked or filled in: what the API server would have added has to be there.
        """
        puts = [
            {"requestPut": {"key": _base64(key.encode()), "value": _base64(json.dumps(value).encode())}}
            for key, value in objects.items()
        ]
        for first in range(0, len(puts), STORE_BATCH):
            self._etcd_client.create("/v3/kv/txn", {"success": puts[first : first + STORE_BATCH]})

    def compact(self) -> int:
        """Remove etcd's history up to now, and return the revision that is the oldest one left.

        A client seldom notices: kube-apiserver answers old revisions from its watch cache, except for
        resources taken out of that (`--watch-cache-sizes=nodes#0` in `extra_args`), where an older watch or
        list is now 410 Gone. For every resource: `forget_history`.
        """
        key = _base64(b"/")
        revision = int(self._etcd_client.create("/v3/kv/range", {"key": key})["header"]["revision"])
        self._etcd_client.create("/v3/kv/compaction", {"revision": str(revision), "physical": True})
        return revision

    def forget_history(self) -> int:
        """Make every older revision 410 Gone, for lists and watches; return the oldest one that is left.

        Compacts etcd, and restarts kube-apiserver to empty its watch cache: all connections are lost.
        """
        revision = self.compact()
        self.kill_apiserver()
        self.start_apiserver()
        return revision

    def _wait_ready(self, server: Server, probe: Callable[[], object]) -> None:
        deadline = time.monotonic() + READY_DEADLINE_S
        while True:
            server.check()
            try:
                probe()
                return
            except (OSError, ApiError) as error:
                if time.monotonic() > deadline:
                    raise server.failure(f"was not ready after {READY_DEADLINE_S:.0f} s ({error})") from error
            time.sleep(POLL_INTERVAL_S)

    def _tls(self, identity: pki.Identity | None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self._authority.certificate))
        if identity is not None:
            context.load_cert_chain(identity.certificate, identity.key)
        return context

    def _write_kubeconfig(self, name: str, credential: dict[str, str]) -> Path:
        cluster = {"server": self.url, "certificate-authority": str(self._authority.certificate)}
        path = self._directory / f"{name}.kubeconfig"
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "test", "user": credential}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "current-context": "test",
        }
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    def _etcd_flags(self, port: int) -> list[str]:
        url = f"http://{ETCD_ADDRESS}:{port}"
        return [
            f"--data-dir={self._directory / 'etcd'}",
            f"--listen-client-urls={url}",
            f"--advertise-client-urls={url}",
            f"--listen-peer-urls=http://{ETCD_ADDRESS}:0",  # never used, and must not clash with another etcd
            "--unsafe-no-fsync",  # the data need not outlive the machine
        ]

    def _apiserver_flags(self, etcd_port: int) -> list[str]:
        hosts = ["localhost", "kubernetes.default.svc"]
        serving = self._authority.server("kube-apiserver", [self.address], hosts)
        ranges = [SERVICE_RANGE_V4, SERVICE_RANGE_V6]
        if ":" in self.address:
            ranges.reverse()  # the first range must be of the server's own family
        return [
            f"--etcd-servers=http://{ETCD_ADDRESS}:{etcd_port}",
            "--etcd-compaction-interval=0",
            f"--bind-address={self.address}",
            f"--advertise-address={self.address}",
            f"--secure-port={self.port}",
            f"--tls-cert-file={serving.certificate}",
            f"--tls-private-key-file={serving.key}",
            f"--client-ca-file={self._authority.certificate}",
            "--authorization-mode=RBAC",
            f"--service-account-issuer={ISSUER}",
            f"--service-account-key-file={self._token_key}",
            f"--service-account-signing-key-file={self._token_key}",
            f"--service-cluster-ip-range={','.join(ranges)}",
            "--allow-privileged=true",
            "--disable-admission-plugins=ServiceAccount",
            "--endpoint-reconciler-type=none",
        ]


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _segment(content: dict[str, Any]) -> str:
    return _base64url(json.dumps(content).encode())


def _base64url(data: bytes) -> str:
    """Base64 without padding, as a JWT is written (RFC 7515 section 2)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
