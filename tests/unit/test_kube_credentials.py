"""What is wrong with a kubeconfig is said in full, and what changes in its files is noticed."""

from __future__ import annotations

import asyncio
import base64
import os
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from bgpd.kube.client import ApiServer, UnreachableError
from bgpd.kube.credentials import read_kubeconfig, signature
from bgpd.kube.files import mark_of, read_regular
from bgpd.model.fault import FaultsError

SERVER = "https://127.0.0.1:1"


def kubeconfig(directory: Path, cluster: Any = None, user: Any = None, **extra: Any) -> Path:
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": SERVER} if cluster is None else cluster}],
        "users": [{"name": "u", "user": user or {}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path = directory / "kubeconfig"
    path.write_text(yaml.safe_dump({**content, **extra}))
    return path


def faults(path: Path) -> list[str]:
    with pytest.raises(FaultsError) as refused:
        read_kubeconfig(path)
    return [str(fault).removeprefix(f"{path}:") for fault in refused.value.faults]


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await scenario()

    asyncio.run(main())


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate and its key, PEM files."""
    directory = tmp_path_factory.mktemp("pki")
    made, key = directory / "it.crt", directory / "it.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-subj", "/CN=it", "-days", "2", "-keyout", str(key), "-out", str(made)]
    subprocess.run(command, check=True, capture_output=True)
    return made, key


def test_missing_file_names_the_setting(tmp_path: Path) -> None:
    """File, cause and remedy in one line."""
    text = " cannot be read: No such file or directory; is source.kubernetes.kubeconfig right?"
    assert faults(tmp_path / "kubeconfig") == [text]


def test_all_faults_at_once_with_their_places(tmp_path: Path) -> None:
    """A wrong server and three unusable files are four faults, each with line, column and key."""
    (tmp_path / "empty").write_text("\n")
    cluster = {"server": "127.0.0.1:6443", "certificate-authority-data": "%%%"}
    user = {"client-certificate": "/nowhere/it.crt", "tokenFile": "empty"}
    found = faults(kubeconfig(tmp_path, cluster, user))
    assert [fault.partition(": ")[2] for fault in found] == [
        "clusters[0].cluster.certificate-authority-data: is not base64",
        "users[0].user.client-certificate: /nowhere/it.crt cannot be read: No such file or directory",
        f"users[0].user.tokenFile: {tmp_path}/empty is empty",
        "clusters[0].cluster.server: must be the API server's URL, such as https://192.0.2.1:6443",
    ]
    assert all(fault[0].isdigit() for fault in found)


@pytest.mark.parametrize(
    ("extra", "fault"),
    [
        ({"current-context": "y"}, "contexts: has no entry named 'y'"),
        ({"current-context": ""}, "current-context: must name an entry; this part of the kubeconfig is missing"),
        ({"contexts": [{"name": "x", "context": {"user": "u"}}]}, "contexts[0].context.cluster: must name an entry"),
        ({"contexts": None}, "contexts: has no entry named 'x'"),
        ({"clusters": []}, "clusters: has no entry named 'c'"),
        ({"clusters": [{"name": "c", "cluster": 5}]}, "clusters[0].cluster: must be a mapping"),
        ({"users": []}, "users: has no entry named 'u'"),
    ],
)
def test_broken_reference(tmp_path: Path, extra: Any, fault: str) -> None:
    """Whatever the current context leads to has to be there."""
    found = faults(kubeconfig(tmp_path, **extra))
    assert len(found) == 1
    assert found[0].partition(": ")[2].startswith(fault)


@pytest.mark.parametrize("text", ["", "[]", "a: b: c", "\x00"])
def test_no_kubeconfig_at_all(tmp_path: Path, text: str) -> None:
    """Any other file is refused without a traceback."""
    path = tmp_path / "kubeconfig"
    path.write_text(text)
    assert faults(path)


def test_file_names_are_relative_to_the_kubeconfig(tmp_path: Path) -> None:
    """As kubectl has it; every file named belongs to what is looked at for changes."""
    (tmp_path / "token").write_text("secret")
    found = read_kubeconfig(kubeconfig(tmp_path, user={"tokenFile": "token"}))
    assert found.user["tokenFile"] == str(tmp_path / "token")
    assert found.files == (tmp_path / "kubeconfig", tmp_path / "token")


@pytest.mark.parametrize("change", ["write", "rename", "keep times", "remove", "swap link"])
def test_signature_notices(tmp_path: Path, change: str) -> None:
    """Written, replaced, replaced with time and size kept, removed, or a link that leads elsewhere."""
    (tmp_path / "one").write_text("1")
    (tmp_path / "two").write_text("2")
    token = tmp_path / "token"
    if change == "swap link":
        token.symlink_to("one")
    else:
        token.write_text("0")
    before = signature([token])
    assert signature([token]) == before
    if change == "write":
        token.write_text("00")
    elif change == "rename":
        (tmp_path / "one").rename(token)
    elif change == "keep times":
        stat = token.stat()
        os.utime(tmp_path / "one", ns=(stat.st_atime_ns, stat.st_mtime_ns))
        (tmp_path / "one").rename(token)
    elif change == "remove":
        token.unlink()
    else:
        (tmp_path / "new").symlink_to("two")
        (tmp_path / "new").rename(token)
    assert signature([token]) != before


def test_pipe_is_not_waited_for(tmp_path: Path) -> None:
    """A named pipe where a file should be is refused; opening it would wait for ever."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        read_regular(tmp_path / "pipe", 10)
    assert mark_of(tmp_path / "none") is None


def test_embedded_certificates_leave_no_file(
    tmp_path: Path, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Certificates and keys inside the kubeconfig are used, and nothing of them stays on disk."""
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    authority, key = (base64.b64encode(path.read_bytes()).decode() for path in certificate)
    user = {"client-certificate-data": authority, "client-key-data": key}
    path = kubeconfig(tmp_path, {"server": SERVER, "certificate-authority-data": authority}, user)

    async def scenario() -> None:
        async with ApiServer(path) as server:
            for _ in range(2):
                server.refused()
                with pytest.raises(UnreachableError, match="Connect call failed"):
                    await server.get("/api/v1/nodes", {}, 1)
                assert list(place.iterdir()) == []

    run(scenario)


def test_certificate_that_is_none(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    """A PEM file with rubbish in it is a fault of the kubeconfig, found by `check` before any connection."""
    (tmp_path / "ca.crt").write_text("rubbish")
    path = kubeconfig(tmp_path, {"server": SERVER, "certificate-authority": "ca.crt"})

    async def scenario() -> None:
        with pytest.raises(FaultsError, match="these credentials cannot be used") as refused:
            await ApiServer(path).check()
        assert refused.value.faults[0].file == str(path)

    run(scenario)


def test_half_written_kubeconfig_does_not_take_the_good_one_away(tmp_path: Path) -> None:
    """While the new content cannot be read, the old credentials are used and the faults are there to show."""
    path = kubeconfig(tmp_path)

    async def scenario() -> None:
        async with ApiServer(path) as server:
            await server.check()
            path.write_text("clusters: [")
            with pytest.raises(UnreachableError):
                await server.get("/", {}, 1)
            assert "not YAML" in str(server.faults[0])
            kubeconfig(tmp_path)
            with pytest.raises(UnreachableError):
                await server.get("/", {}, 1)
            assert server.faults == ()

    run(scenario)


def test_exec_plugin_that_fails_is_a_fault(tmp_path: Path) -> None:
    """The Kubernetes client would go on as nobody."""
    plugin = {"apiVersion": "client.authentication.k8s.io/v1", "command": "/bin/false"}
    path = kubeconfig(tmp_path, user={"exec": plugin})

    async def scenario() -> None:
        with pytest.raises(FaultsError, match="the plugin gave no credential"):
            await ApiServer(path).check()

    run(scenario)


def test_outside_a_pod_there_is_no_service_account(tmp_path: Path) -> None:
    """Without a kubeconfig and outside a cluster the fault says which setting to give."""

    async def scenario() -> None:
        with pytest.raises(FaultsError, match=r"give source\.kubernetes\.kubeconfig"):
            await ApiServer(service_account=tmp_path, environ={}).check()

    run(scenario)


def test_service_account_is_read_from_its_directory(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    """In a pod: address from the environment, token and authority from the mounted volume."""
    (tmp_path / "token").write_text("secret\n")
    (tmp_path / "ca.crt").write_bytes(certificate[0].read_bytes())
    environ = {"KUBERNETES_SERVICE_HOST": "::1", "KUBERNETES_SERVICE_PORT": "1"}

    async def scenario() -> None:
        async with ApiServer(service_account=tmp_path, environ=environ) as server:
            with pytest.raises(UnreachableError, match=r"https://\[::1\]:1"):
                await server.get("/", {}, 1)

    run(scenario)
