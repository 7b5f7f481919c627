"""The contract of a source, kept with a real API server; and the rights it needs there, no more and no less."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from bgpd.kube.client import ApiServer
from bgpd.kube.feed import Feed, SourceState
from bgpd.kube.parse import CONFIG_MAP, NODE
from bgpd.kube.sources import Source
from bgpd.kube.watch import ApiSource
from bgpd.model.configmap import ConfigMap
from bgpd.model.node import Node
from bgpd.runtime.store import Store
from tests.contract.test_source_contract import SOON_S, Nodes, Origin, SourceContract, node, run, running, until

from .controlplane import ControlPlane
from .rest import ApiError

NODES = "/api/v1/nodes"
RBAC = Path(__file__).parents[2] / "config" / "rbac.yaml"


class Cluster:
    """Nodes of a real API server, as their administrator makes them."""

    def __init__(self, control_plane: ControlPlane, kubeconfig: Path) -> None:
        self._admin = control_plane.admin
        self._kubeconfig = kubeconfig
        self._made: set[str] = set()

    def source(self, feed: Feed[Node]) -> Source:
        return ApiSource(ApiServer(self._kubeconfig), feed)

    def put(
        self,
        name: str,
        pod_cidrs: Sequence[str] = (),
        labels: Mapping[str, str] | None = None,
        addresses: Sequence[str] = (),
    ) -> None:
        content = node(name, pod_cidrs, labels or {}, addresses)
        assert isinstance(content, dict)
        if name in self._made:
            self._admin.patch(f"{NODES}/{name}", content)
        else:
            self._admin.create(NODES, content)
            self._made.add(name)

    def touch(self, name: str) -> None:
        self._admin.patch(f"{NODES}/{name}", {"metadata": {"annotations": {"touched": "yes"}}})

    def delete(self, name: str) -> None:
        self._made.discard(name)
        self._admin.delete(f"{NODES}/{name}")

    def clear(self) -> None:
        for name in list(self._made):
            with suppress(ApiError):
                self.delete(name)


class TestApiServer(SourceContract):
    """A real API server keeps the contract."""

    @pytest.fixture
    def origin(self, control_plane: ControlPlane) -> Iterator[Origin]:
        cluster = Cluster(control_plane, control_plane.kubeconfig("admin", "system:masters"))
        yield cluster
        cluster.clear()


def test_rbac_grants_what_is_used(control_plane: ControlPlane, tmp_path: Path) -> None:
    """With config/rbac.yaml and nothing else, the service account's token syncs the own Node and sees a change."""
    control_plane.apply_file(RBAC)
    token = tmp_path / "token"
    token.write_text(control_plane.service_account_token("kube-system", "bgpd") + "\n")
    kubeconfig = control_plane.token_kubeconfig(token)
    name = f"worker-{uuid.uuid4().hex[:8]}"

    async def scenario() -> None:
        store = Nodes({})
        source = ApiSource(ApiServer(kubeconfig), Feed(NODE, store, name))
        async with running(source):
            await until(store, lambda nodes: not nodes)
            await asyncio.to_thread(
                control_plane.admin.create, NODES, {"metadata": {"name": name}, "spec": {"podCIDR": "10.1.2.0/24"}}
            )
            await until(store, bool)
            assert source.status.newest.value.state is SourceState.SYNCED
        await asyncio.to_thread(control_plane.admin.delete, f"{NODES}/{name}")

    run(scenario)


def test_rbac_grants_the_one_config_map(control_plane: ControlPlane, tmp_path: Path) -> None:
    """The document is listed and watched with the field selector that its Role asks for, and followed."""
    control_plane.apply_file(RBAC)
    token = tmp_path / "token"
    token.write_text(control_plane.service_account_token("kube-system", "bgpd") + "\n")
    kubeconfig = control_plane.token_kubeconfig(token)
    path, name = "/api/v1/namespaces/kube-system/configmaps", "ip-masq-agent"

    async def scenario() -> None:
        store: Store[Mapping[str, ConfigMap]] = Store({})
        source = ApiSource(ApiServer(kubeconfig), Feed(CONFIG_MAP, store, f"kube-system/{name}"))

        async def has(data: dict[str, str] | None) -> None:
            async with asyncio.timeout(SOON_S):
                newest = store.newest
                while not newest.synced or [found.data for found in newest.value.values()] != (
                    [data] if data else []
                ):
                    newest = await store.newer_than(newest.revision)

        async with running(source):
            await has(None)
            content = {"metadata": {"name": name}, "data": {"config": "nonMasqueradeCIDRs: []"}}
            await asyncio.to_thread(control_plane.admin.create, path, content)
            await has({"config": "nonMasqueradeCIDRs: []"})
            await asyncio.to_thread(
                control_plane.admin.patch, f"{path}/{name}", {"data": {"config": "masqLinkLocal: true"}}
            )
            await has({"config": "masqLinkLocal: true"})
            await asyncio.to_thread(control_plane.admin.delete, f"{path}/{name}")
            await has(None)
            assert source.status.newest.value.reconnects == 0

    run(scenario)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("get", f"{NODES}/worker1"),
        ("delete", f"{NODES}/worker1"),
        ("get", "/api/v1/namespaces/default/services/kubernetes"),
        ("get", "/api/v1/namespaces/kube-system/pods/any"),
        ("get", "/api/v1/secrets"),
        ("get", "/api/v1/namespaces/kube-system/secrets"),
        ("get", "/api/v1/namespaces/kube-system/configmaps"),
        ("get", "/api/v1/namespaces/kube-system/configmaps/ip-masq-agent"),
        ("get", "/api/v1/namespaces/kube-system/configmaps?fieldSelector=metadata.name=other"),
        ("get", "/api/v1/namespaces/default/configmaps?fieldSelector=metadata.name=ip-masq-agent"),
    ],
)
def test_rbac_grants_nothing_else(control_plane: ControlPlane, method: str, path: str) -> None:
    """The service account is refused whatever the daemon does not do."""
    control_plane.apply_file(RBAC)
    client = control_plane.token_client(control_plane.service_account_token("kube-system", "bgpd"))
    deadline = time.monotonic() + 5
    while True:  # the authorizer sees a new role a moment later, and a Node that is not there is a 404 then
        try:
            client.get(NODES)
            break
        except ApiError as error:
            assert error.status == 403
            assert time.monotonic() < deadline
    with pytest.raises(ApiError) as refused:
        getattr(client, method)(path)
    assert refused.value.status == 403
