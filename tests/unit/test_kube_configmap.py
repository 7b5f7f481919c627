"""A ConfigMap as one more kind of object, up to the document in it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from bgpd.kube.feed import Feed
from bgpd.kube.manifests import ManifestSource
from bgpd.kube.parse import CONFIG_MAP, NODE, Malformed
from bgpd.masq.source import ConfigMapSource
from bgpd.model.configmap import ConfigMap
from bgpd.model.masq import Compat, Reading, Rules
from bgpd.runtime.store import Store
from tests.contract.test_source_contract import running

NAME = "kube-system/ip-masq-agent"
SOON_S = 5.0
SEED = """
apiVersion: v1
data:
  config: |
    nonMasqueradeCIDRs:
    - 11.8.37.252/32
    - 11.11.248.0/21
    masqLinkLocal: false
kind: ConfigMap
metadata:
  creationTimestamp: "2020-10-22T03:43:14Z"
  name: ip-masq-agent
  namespace: kube-system
  uid: d53fc4d9-df3b-4243-9bf0-9e53209932ff
"""


def test_a_config_map_is_its_texts() -> None:
    """The same from the API server and from a file; what is binary is not in it."""
    at = "2020-10-22T03:43:14Z"
    metadata = {"name": "a", "namespace": "x", "creationTimestamp": at}
    content = {"metadata": metadata, "data": {"k": "v"}, "binaryData": {"b": "AA=="}}
    assert CONFIG_MAP.to_model(CONFIG_MAP.convert(content)) == ConfigMap("x/a", {"k": "v"}, at)
    assert CONFIG_MAP.to_model(CONFIG_MAP.decode(json.dumps(content).encode())) == ConfigMap("x/a", {"k": "v"}, at)


@pytest.mark.parametrize("data", [{}, {"data": None}])
def test_a_config_map_may_be_empty(data: dict[str, None]) -> None:
    """And without a namespace it is in the default one, as kubectl has it."""
    content = {"metadata": {"name": "a"}, **data}
    assert CONFIG_MAP.to_model(CONFIG_MAP.convert(content)) == ConfigMap("default/a", {})


def test_a_document_that_is_not_a_text_is_named() -> None:
    """Somebody forgot the bar after `config:`."""
    with pytest.raises(Malformed) as caught:
        CONFIG_MAP.convert({"metadata": {"name": "a"}, "data": {"config": {"nonMasqueradeCIDRs": []}}})
    assert (caught.value.key, caught.value.path) == ("default/a", ("data",))
    assert caught.value.problem == "expected a string, got a mapping"


def test_the_path_is_of_one_namespace() -> None:
    """With the field selector for the name, a Role with resourceNames is enough."""
    assert CONFIG_MAP.path("kube-system") == "/api/v1/namespaces/kube-system/configmaps"
    assert CONFIG_MAP.group == ""


def test_a_manifest_feeds_the_document(tmp_path: Path) -> None:
    """Beside Nodes, from the file to the list, and through a change; another ConfigMap is nobody's."""

    async def scenario() -> None:
        config_maps = Store[Mapping[str, ConfigMap]]({})
        store = Store(Reading())
        feeds: list[Feed[Any]] = [Feed(NODE, Store({})), Feed(CONFIG_MAP, config_maps, NAME)]
        manifests = ManifestSource(tmp_path, feeds, settle_s=0.02)
        document = ConfigMapSource(NAME, Rules(Compat.AGENT, ipv6=False), config_maps, store, settle_s=0.02)

        async def until(*cidrs: str) -> None:
            async with asyncio.timeout(SOON_S):
                while shown() != list(cidrs):
                    await store.newer_than(store.newest.revision)

        def shown() -> list[str]:
            found = store.newest.value.document
            return [str(entry) for entry in found.entries] if found else []

        (tmp_path / "other.yaml").write_text(SEED.replace("ip-masq-agent", "other").replace("11.8", "12.8"))
        (tmp_path / "cm.yaml").write_text(SEED)
        async with running(manifests), running(document):  # type: ignore[arg-type]
            await until("11.8.37.252/32", "11.11.248.0/21")
            assert set(config_maps.newest.value) == {NAME}
            (tmp_path / "cm.yaml").write_text(SEED.replace("11.8.37.252", "11.8.37.4"))
            await until("11.8.37.4/32", "11.11.248.0/21")
            (tmp_path / "cm.yaml").unlink()
            await until("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")

    asyncio.run(scenario())
