"""What the API server's source does when a real server, the way to it, or its own rights fail.

Each test ends with the source in step again, and checks that nothing was forgotten meanwhile. Times are the
constructor's, so that a minute's silence takes a second.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from bgpd.kube.feed import SourceState
from bgpd.kube.watch import Timing
from bgpd.runtime.backoff import Backoff
from tests.contract.test_source_contract import run

from .controlplane import ControlPlane
from .following import Admin, aside, following
from .rest import ApiError

FIRST, SECOND = "10.1.2.0/24", "10.9.9.0/24"
PATIENT = Timing(watch_s=60, slack_s=5, steady_s=0.2, backoff=Backoff(0.05, 0.2))

LIST_ONLY = """
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {{name: {name}}}
rules:
- {{apiGroups: [""], resources: [nodes], verbs: [{verbs}]}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {{name: {name}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: {name}}}
subjects: [{{apiGroup: rbac.authorization.k8s.io, kind: User, name: {name}}}]
"""


@pytest.fixture
def name() -> str:
    return f"worker-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def admin(control_plane: ControlPlane, name: str) -> Iterator[Admin]:
    """The Node of this test, there at its begin and gone after it."""
    it = Admin(control_plane, name)
    it.make(FIRST)
    yield it
    with suppress(ApiError):
        it.unmake()


@pytest.fixture
def kubeconfig(control_plane: ControlPlane) -> Path:
    return control_plane.kubeconfig("admin", "system:masters")


def test_restart_of_the_server(control_plane: ControlPlane, kubeconfig: Path, name: str, admin: Admin) -> None:
    """A crash and a new start: what was known stays, and what changes afterwards arrives."""

    async def scenario() -> None:
        async with following(kubeconfig, name, PATIENT) as it:
            await it.published(FIRST)
            await aside(control_plane.kill_apiserver)
            await it.state(SourceState.RETRYING)
            await aside(control_plane.start_apiserver)
            await it.state(SourceState.SYNCED)
            await it.published(FIRST)
            await aside(admin.remake, SECOND)
            await it.arrived(SECOND)

    run(scenario)


def test_long_outage(control_plane: ControlPlane, kubeconfig: Path, name: str, admin: Admin) -> None:
    """However often it fails, what was known stays, and the status says since when and why."""

    async def scenario() -> None:
        async with following(kubeconfig, name) as it:
            await it.published(FIRST)
            await aside(control_plane.kill_apiserver)
            try:
                await it.state(SourceState.RETRYING)
                since = it.status.since
                await it.failures(20)
                assert it.status.state is SourceState.RETRYING
                assert it.status.since == since
                assert control_plane.url in it.status.last_error
                assert "Connect call failed" in it.status.last_error
            finally:
                await aside(control_plane.start_apiserver)
            await it.published(FIRST)

    run(scenario)


def test_start_while_the_server_is_down(
    control_plane: ControlPlane, kubeconfig: Path, name: str, admin: Admin
) -> None:
    """A node that boots first waits, unsynced, and is in step soon after the server is there."""
    control_plane.kill_apiserver()

    async def scenario() -> None:
        async with following(kubeconfig, name) as it:
            await it.failures(3)
            assert it.seen == []
            assert it.status.state is SourceState.STARTING
            await aside(control_plane.start_apiserver)
            await it.published(FIRST)

    run(scenario)


def test_history_that_is_gone(control_plane: ControlPlane, kubeconfig: Path, name: str, admin: Admin) -> None:
    """410 Gone after a compaction: a new list replaces the old state in one step, never by way of nothing."""

    async def scenario() -> None:
        async with following(kubeconfig, name, PATIENT) as it:
            await it.published(FIRST)
            await aside(admin.others)
            await aside(control_plane.forget_history)
            await it.error("410")
            await it.published(FIRST)
            await aside(admin.remake, SECOND)
            await it.arrived(SECOND)

    run(scenario)


def test_node_recreated_while_nobody_looked(
    control_plane: ControlPlane, name: str, admin: Admin, tmp_path: Path
) -> None:
    """Deleted and made again out of sight, history gone: one step from the old CIDRs to the new ones."""
    token = _token_with_rights(control_plane, name, tmp_path)

    def recreated() -> None:
        admin.remake(SECOND)
        control_plane.forget_history()

    async def scenario() -> None:
        async with following(control_plane.token_kubeconfig(token), name) as it:
            await it.published(FIRST)
            await aside(token.write_text, control_plane.expiring_token("default", name, 0))
            await it.error("(401)")
            await aside(recreated)
            await aside(token.write_text, control_plane.service_account_token("default", name))
            await it.published(FIRST, SECOND)

    run(scenario)


def test_frozen_server(control_plane: ControlPlane, kubeconfig: Path, name: str, admin: Admin) -> None:
    """A stopped process answers TCP and nothing else: found at the watch's own end, and left in peace after."""

    async def scenario() -> None:
        timing = Timing(watch_s=2, slack_s=0.5, steady_s=0.2, backoff=Backoff(0.05, 0.2))
        async with following(kubeconfig, name, timing) as it:
            await it.published(FIRST)
            await aside(admin.remake, SECOND)
            await it.arrived(SECOND)  # so the watch is open
            before = list(it.seen)
            await aside(control_plane.pause_apiserver)
            started = asyncio.get_running_loop().time()
            try:
                await it.error("fell silent")
                assert asyncio.get_running_loop().time() - started < 3.5  # two and a half, rounded up by aiohttp
                assert it.status.state is SourceState.RETRYING
                await it.error("began no answer in 1 s")
            finally:
                await aside(control_plane.resume_apiserver)
            await it.published(*before)
            await aside(admin.remake, FIRST)
            await it.arrived(FIRST)

    run(scenario)


def test_token_that_is_rotated(control_plane: ControlPlane, name: str, admin: Admin, tmp_path: Path) -> None:
    """A token file is read when it changes; an expired one is said, and a fresh one ends the trouble."""
    path = _token_with_rights(control_plane, name, tmp_path)

    async def scenario() -> None:
        async with following(control_plane.token_kubeconfig(path), name) as it:
            await it.published(FIRST)
            await aside(path.write_text, control_plane.expiring_token("default", name, 0))
            await it.error("the API server does not accept the credentials (401)")
            assert it.status.state is SourceState.RETRYING
            await aside(admin.remake, SECOND)
            await it.failures(2)
            assert it.seen == [FIRST]
            await aside(path.write_text, control_plane.service_account_token("default", name) + "\n")
            await it.arrived(SECOND)

    run(scenario)


def test_token_that_expires_by_itself(control_plane: ControlPlane, name: str, admin: Admin, tmp_path: Path) -> None:
    """The file was renewed in time, and the server refuses the old token: the new one is read at once."""
    path = _token_with_rights(control_plane, name, tmp_path)
    path.write_text(control_plane.expiring_token("default", name, 0))

    async def scenario() -> None:
        async with following(control_plane.token_kubeconfig(path), name) as it:
            await it.failures(2)
            assert it.status.state is SourceState.STARTING
            assert "401" in it.status.last_error
            fresh = tmp_path / "fresh"
            fresh.write_text(control_plane.service_account_token("default", name))
            fresh.rename(path)
            await it.published(FIRST)

    run(scenario)


def test_missing_right_to_list(control_plane: ControlPlane, name: str, admin: Admin, tmp_path: Path) -> None:
    """Without any role the status names the rule that is missing; once granted it is in step by itself."""

    async def scenario() -> None:
        async with following(control_plane.kubeconfig(name), name) as it:
            await it.error('the role lacks apiGroups: [""], resources: ["nodes"], verbs: ["list"] (403)')
            assert it.seen == []
            await aside(_grant, control_plane, tmp_path, name, "list, watch")
            await it.published(FIRST)

    run(scenario)


def test_missing_right_to_watch(control_plane: ControlPlane, name: str, admin: Admin, tmp_path: Path) -> None:
    """A role that lists and may not watch gives the state once, and the status names the other verb."""
    _grant(control_plane, tmp_path, name, "list")

    async def scenario() -> None:
        async with following(control_plane.kubeconfig(name), name) as it:
            await it.error('the role lacks apiGroups: [""], resources: ["nodes"], verbs: ["watch"] (403)')
            assert it.now == FIRST
            await aside(_grant, control_plane, tmp_path, name, "list, watch")
            await it.published(FIRST)

    run(scenario)


def _token_with_rights(control_plane: ControlPlane, name: str, directory: Path) -> Path:
    """A file with a token of a service account of this name, which may do what the daemon needs."""
    control_plane.admin.create("/api/v1/namespaces/default/serviceaccounts", {"metadata": {"name": name}})
    _grant(control_plane, directory, f"system:serviceaccount:default:{name}", "list, watch")
    path = directory / "token"
    path.write_text(control_plane.service_account_token("default", name))
    return path


def _grant(control_plane: ControlPlane, directory: Path, user: str, verbs: str) -> None:
    """A cluster role with these verbs on nodes, named like the user."""
    path = directory / "role.yaml"
    text = LIST_ONLY.format(name="NAME", verbs=verbs)
    path.write_text(text.replace("name: NAME}]", f'name: "{user}"}}]').replace("NAME", user.replace(":", "-")))
    control_plane.apply_file(path)


# --- a link that can be cut ---------------------------------------------------------------------------------


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def remote(control_plane_binaries: Path, tmp_path: Path) -> Iterator[tuple[ControlPlane, str]]:
    """A control plane behind a veth link, and the namespace that it is in; its end of the link is `there`."""
    if os.geteuid() != 0:
        pytest.skip("no right to make a network namespace")
    suffix = uuid.uuid4().hex[:6]
    namespace, here = f"cp-{suffix}", f"cp{suffix}"
    ip("netns", "add", namespace)
    try:
        ip("link", "add", here, "type", "veth", "peer", "name", "there", "netns", namespace)
        ip("addr", "add", "198.18.77.1/30", "dev", here)
        ip("link", "set", here, "up")
        ip("-n", namespace, "addr", "add", "198.18.77.2/30", "dev", "there")
        ip("-n", namespace, "link", "set", "lo", "up")
        ip("-n", namespace, "link", "set", "there", "up")
        with ControlPlane(tmp_path, control_plane_binaries, address="198.18.77.2", network=namespace) as running:
            yield running, namespace
    finally:
        ip("netns", "delete", namespace)


def test_cut_link(remote: tuple[ControlPlane, str], name: str) -> None:
    """A peer that is gone without a word is found by TCP's probes, long before the watch would have ended."""
    control_plane, namespace = remote
    admin = Admin(control_plane, name)
    admin.make(FIRST)

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        kubeconfig = control_plane.kubeconfig("admin", "system:masters")
        async with following(kubeconfig, name, PATIENT, dead_after_s=2) as it:
            await it.published(FIRST)
            await aside(ip, "-n", namespace, "link", "set", "there", "down")
            started = loop.time()
            await it.state(SourceState.RETRYING)
            assert loop.time() - started < 6
            await it.failures(2)
            await aside(ip, "-n", namespace, "link", "set", "there", "up")
            await it.published(FIRST)
            await aside(admin.remake, SECOND)
            await it.arrived(SECOND)

    run(scenario)
