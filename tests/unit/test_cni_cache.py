"""The result cache of libcni, read as the ADDs that it stands for."""

from __future__ import annotations

import base64
import json
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgpd.cni.cache import CacheError, add_request
from bgpd.cni.protocol import CniError, attachment, parse
from bgpd.model.attachment import AttachmentKey, PodName
from tests.unit.cni_requests import CONTAINER, NETNS, previous


def cached(**changes: Any) -> dict[str, Any]:
    """As libcni 1.2 writes it for containerd; a change of None leaves the key out."""
    conflist = {"cniVersion": "1.0.0", "name": "cluster", "plugins": [{"type": "bridge"}, {"type": "portmap"}]}
    usual = {
        "kind": "cniCacheV1",
        "containerId": CONTAINER,
        "config": base64.b64encode(json.dumps(conflist).encode()).decode(),
        "ifName": "eth0",
        "networkName": "cluster",
        "netns": NETNS,
        "cniArgs": [["IgnoreUnknown", "1"], ["K8S_POD_NAMESPACE", "shop"], ["K8S_POD_NAME", "web-0"]],
        "capabilityArgs": {"portMappings": [], "dns": {"Servers": ["10.96.0.10"]}},
        "result": previous(),
    }
    return {name: value for name, value in (usual | changes).items() if value is not None}


def read(value: object) -> Any:
    frame = add_request(json.dumps(value).encode())
    assert frame is not None
    return attachment(parse(frame))


def test_a_pod_from_before_us() -> None:
    found = read(cached())
    assert found.key == AttachmentKey("cluster", CONTAINER, "eth0")
    assert (found.netns, found.pod, found.mac) == (NETNS, PodName("shop", "web-0"), "02:00:00:00:00:0a")
    assert found.addresses == (ip_address("10.244.1.7"), ip_address("fd00::7"))
    assert found.host_interfaces == ("cni0", "veth3f")


def test_before_libcni_1_2_the_result_says_where_it_is() -> None:
    """As Debian 12's containerd writes it."""
    assert read(cached(netns=None)).netns == NETNS


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_every_version_of_a_result(version: str) -> None:
    assert len(read(cached(result=previous(version))).addresses) == 2


def test_loopback_is_nobody_s_business() -> None:
    """containerd attaches every pod to it as a network of its own."""
    loopback = cached(ifName="lo", networkName="cni-loopback", result={"cniVersion": "0.3.1"})
    assert add_request(json.dumps(loopback).encode()) is None


def test_whoever_is_no_kubelet_names_no_pod() -> None:
    for arguments in (
        None,
        [],
        [["K8S_POD_NAME", "web-0"]],
        [["K8S_POD_NAMESPACE", "a;b"], ["K8S_POD_NAME", "x"]],
        "x",
    ):
        assert read(cached(cniArgs=arguments)).pod is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b"", "it is no JSON"),
        (b"\xff", "it is no JSON"),
        (b"[" * 100_000, "it is no JSON"),
        (b"[]", "it is no JSON object"),
        (json.dumps(previous()).encode(), 'it is not of the kind "cniCacheV1"'),
        (json.dumps(cached(result=None)).encode(), "it has no result"),
        (json.dumps(cached(ifName=7)).encode(), "ifName is no text"),
        (json.dumps(cached(netns="/run/\0x")).encode(), "netns is no text"),
        (
            json.dumps(cached(netns=None, result=previous() | {"interfaces": []})).encode(),
            "it does not say in which network namespace eth0 is",
        ),
    ],
)
def test_a_file_that_is_none(value: bytes, text: str) -> None:
    with pytest.raises(CacheError) as raised:
        add_request(value)
    assert str(raised.value) == text


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"containerId": "../x"}, "CNI_CONTAINERID must be"),
        ({"netns": "run/netns/x"}, "CNI_NETNS must be"),
        ({"networkName": None}, "name: found ''"),
        ({"result": {"cniVersion": "0.2.0", "ip4": {"ip": "10.251.0.193/25"}}}, "cniVersion is '0.2.0'"),
        ({"result": previous() | {"ips": []}}, "prevResult has no address for eth0"),
    ],
)
def test_what_no_add_could_say_is_refused_as_an_add_s(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(CniError) as raised:
        read(cached(**changes))
    assert str(raised.value).startswith(text)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda it: st.lists(it) | st.dictionaries(st.text(), it)
)


@given(key=st.sampled_from(sorted(cached())), value=_JSON)
def test_nothing_in_a_file_is_a_mistake_of_ours(key: str, value: object) -> None:
    data = json.dumps(cached() | {key: value}).encode()
    try:
        frame = add_request(data)
        if frame is not None:
            attachment(parse(frame))
    except (CacheError, CniError) as error:
        assert str(error)
