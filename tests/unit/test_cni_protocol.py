"""What a runtime asks for, and what it is told when that cannot be meant."""

from __future__ import annotations

import json
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgpd.cni import protocol
from bgpd.cni.frame import Frame
from bgpd.cni.protocol import VERSIONS, CniError, Code, Request, Verb
from bgpd.cni.result import release
from bgpd.model.attachment import AttachmentKey, ChainingMode, InterfaceKind, PodName
from tests.unit.cni_requests import CONTAINER, NETNS, configuration, frame, previous

KEY = AttachmentKey("cluster", CONTAINER, "eth0")
VALID = [{"containerID": CONTAINER, "ifname": "eth0"}]


def refused(asked: Frame) -> tuple[int, str]:
    with pytest.raises(CniError) as refusal:
        request = protocol.parse(asked)
        protocol.attachment(request)
        protocol.result(request)
    return int(refusal.value.code), str(refusal.value)


@pytest.mark.parametrize("version", VERSIONS)
def test_an_add_tells_the_pod_and_its_interface(version: str) -> None:
    """The same in every version."""
    request = protocol.parse(frame("ADD", configuration(version)))
    assert (request.verb, request.version, request.deadline_s) == (Verb.ADD, version, 5)
    found = protocol.attachment(request)
    assert (found.key, found.netns, found.mode) == (KEY, NETNS, ChainingMode.AUTO)
    assert found.pod == PodName("shop", "web-0", "11-22")
    assert found.addresses == (ip_address("10.244.1.7"), ip_address("fd00::7"))
    assert (found.mac, found.host_interfaces) == ("02:00:00:00:00:0a", ("cni0", "veth3f"))


@pytest.mark.parametrize("version", VERSIONS)
def test_an_add_passes_the_previous_result_on(version: str) -> None:
    """Unknown keys included: a plugin must not lose what it does not know."""
    assert json.loads(protocol.result(protocol.parse(frame("ADD", configuration(version))))) == previous(version)


@pytest.mark.parametrize("theirs", VERSIONS)
@pytest.mark.parametrize("ours", VERSIONS)
def test_a_result_of_another_version_is_converted(theirs: str, ours: str) -> None:
    """The answer is in the configuration's version, whatever the plugin before us wrote."""
    asked = frame("ADD", configuration(ours, prevResult=previous(theirs)))
    assert json.loads(protocol.result(protocol.parse(asked))) == previous(ours)


def test_what_1_1_0_brought_is_left_out_for_an_older_version() -> None:
    """Interfaces' and routes' new keys; everything else of them stays."""
    newest = previous("1.1.0")
    newest["interfaces"][2] |= {"mtu": 1450, "socketPath": "/x", "pciID": "0"}
    newest["routes"] = [{"dst": "0.0.0.0/0", "mtu": 1400, "advmss": 1, "priority": 2, "table": 3, "scope": 4}]
    asked = frame("ADD", configuration("1.0.0", prevResult=newest))
    assert json.loads(protocol.result(protocol.parse(asked))) == previous("1.0.0")


@pytest.mark.parametrize(
    ("interfaces", "index", "wanted"),
    [
        (None, None, ""),  # a plugin that lists none
        ([{"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": NETNS}], None, "02:00:00:00:00:01"),
        ([{"name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": "/proc/9/ns/net"}], 0, "02:00:00:00:00:02"),
        ([{"name": "eth0", "mac": "02:00:00:00:00:03"}], None, ""),  # the node's own eth0
        (
            [
                {"name": "eth0", "mac": "02:00:00:00:00:04", "sandbox": "/run/netns/another"},
                {"name": "eth0", "mac": "02:00:00:00:00:05", "sandbox": NETNS},
            ],
            1,
            "02:00:00:00:00:05",
        ),
    ],
)
def test_the_pod_s_interface_is_found_in_what_plugins_leave_out(
    interfaces: object, index: int | None, wanted: str
) -> None:
    ip: dict[str, Any] = {"address": "10.0.0.9/24"} | ({} if index is None else {"interface": index})
    result = {"cniVersion": "1.0.0", "interfaces": interfaces, "ips": [ip]}
    found = protocol.attachment(protocol.parse(frame("ADD", configuration(prevResult=result))))
    assert (found.mac, found.addresses) == (wanted, (ip_address("10.0.0.9"),))


def test_addresses_of_other_interfaces_are_not_the_pod_s() -> None:
    result = previous()
    result["ips"].append({"address": "10.244.1.1/24", "interface": 0})
    found = protocol.attachment(protocol.parse(frame("ADD", configuration(prevResult=result))))
    assert ip_address("10.244.1.1") not in found.addresses
    assert len(found.addresses) == 2


@pytest.mark.parametrize(
    ("network", "given", "mode", "kind"),
    [
        ("cluster", None, ChainingMode.AUTO, None),
        ("generic-veth", None, ChainingMode.GENERIC_VETH, InterfaceKind.VETH),
        ("cbr0", None, ChainingMode.CBR0, InterfaceKind.VETH),
        ("portmap", None, ChainingMode.PORTMAP, InterfaceKind.VETH),
        ("terway-chainer", None, ChainingMode.TERWAY_CHAINER, None),
        ("spidernet-chainer", "auto", ChainingMode.SPIDERNET_CHAINER, None),
        ("cbr0", "macvlan", ChainingMode.MACVLAN, InterfaceKind.MACVLAN),
        ("cluster", "ipvlan", ChainingMode.IPVLAN, InterfaceKind.IPVLAN),
    ],
)
def test_the_mode_is_the_key_s_else_the_network_name_s(
    network: str, given: str | None, mode: ChainingMode, kind: InterfaceKind | None
) -> None:
    request = protocol.parse(frame("ADD", configuration(name=network) | ({"chaining-mode": given} if given else {})))
    assert (request.mode, request.mode.kind) == (mode, kind)


@pytest.mark.parametrize(
    ("values", "changes", "code", "text"),
    [
        (None, {"CNI_COMMAND": "NO"}, 4, "CNI_COMMAND is 'NO'; it must be one of ADD, DEL, CHECK, GC, STATUS"),
        (None, {"CNI_COMMAND": None}, 4, "CNI_COMMAND is ''; it must be one of ADD, DEL, CHECK, GC, STATUS"),
        (None, {"CNI_CONTAINERID": "a/b", "CNI_IFNAME": "a" * 16, "CNI_NETNS": None}, 4,
         "CNI_CONTAINERID must be letters, digits, '_', '.' and '-', and start with a letter or digit; "
         "CNI_IFNAME must be the name of an interface, of at most 15 characters; "
         "CNI_NETNS must be the absolute path of a network namespace"),
        (None, {"CNI_IFNAME": ".."}, 4, "CNI_IFNAME must be the name of an interface, of at most 15 characters"),
        (None, {"CNI_IFNAME": "a b"}, 4, "CNI_IFNAME must be the name of an interface, of at most 15 characters"),
        (None, {"CNI_ARGS": "FOO=1;BAR"}, 4, "CNI_ARGS has 'BAR' where KEY=value is expected"),
        ([], {}, 6, "the network configuration on stdin is no JSON object"),
        (configuration("0.2.0"), {}, 1, "cniVersion is '0.2.0'; give one of 0.3.1, 0.4.0, 1.0.0, 1.1.0"),
        (configuration(cniVersion=None), {}, 1, "cniVersion is missing; give one of 0.3.1, 0.4.0, 1.0.0, 1.1.0"),
        (configuration(cniVersion=[1]), {}, 1, "cniVersion is [1]; give one of 0.3.1, 0.4.0, 1.0.0, 1.1.0"),
        (configuration(name="a/b"), {}, 7,
         "name: found 'a/b'; give letters, digits, '_', '.' and '-', first a letter or digit"),
        (configuration() | {"chaining-mode": "veth"}, {}, 2,
         "chaining-mode: 'veth' is not supported; give one of auto, generic-veth, macvlan, ipvlan, cbr0, portmap, "
         "terway-chainer, spidernet-chainer, or leave it out"),
        (configuration() | {"deadline-seconds": True}, {}, 7,
         "deadline-seconds: found True; give a whole number from 1 to 600"),
        (configuration(prevResult=None), {}, 7,
         "there is no prevResult; put bgpd-cni behind the main plugin, in the list 'plugins'"),
        (configuration(prevResult="x"), {}, 6, "prevResult is no JSON object"),
        (configuration(prevResult={"ips": [{"address": "10.0.0.300/8"}]}), {}, 6,
         "prevResult.ips[0].address: '10.0.0.300' is not an IP address; write it like 192.0.2.1 or 2001:db8::1"),
        (configuration(prevResult={"ips": [{"address": "10.0.0.3/8", "interface": "x"}]}), {}, 6,
         "prevResult.ips[0].interface: 'x' is no index into interfaces"),
        (configuration(prevResult={"interfaces": [3]}), {}, 6, "prevResult.interfaces: must be a list of objects"),
        (configuration(prevResult={"ips": []}), {}, 7,
         "prevResult has no address for eth0; put bgpd-cni behind the plugin that gives it one"),
    ],
)  # fmt: skip
def test_a_request_that_cannot_be_meant_is_refused_in_one_sentence(
    values: object, changes: dict[str, str | None], code: int, text: str
) -> None:
    """The codes are the specification's."""
    assert refused(frame("ADD", values, **changes)) == (code, text)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "the network configuration on stdin is no JSON at line 1, column 1: Expecting value"),
        (b'{"a":\n 1,}', "the network configuration on stdin is no JSON at line 2, column 4: "),
        (b"\xff", "the network configuration on stdin is not UTF-8"),
        (b"[" * 100_000, "the network configuration on stdin is nested too deeply"),
    ],
)
def test_what_is_no_json_is_refused_with_its_place(data: bytes, text: str) -> None:
    code, said = refused(Frame(frame("ADD").environment, data))
    assert (code, said[: len(text)]) == (Code.DECODE, text)


@pytest.mark.parametrize(("verb", "since"), [("CHECK", "0.4.0"), ("GC", "1.1.0"), ("STATUS", "1.1.0")])
@pytest.mark.parametrize("version", VERSIONS)
def test_a_verb_is_refused_before_the_version_that_brought_it(verb: str, since: str, version: str) -> None:
    asked = frame(verb, configuration(version) | {"cni.dev/valid-attachments": []})
    if release(version) < release(since):
        assert refused(asked) == (1, f"cniVersion {version} has no {verb}; it came with {since}")
    else:
        assert protocol.parse(asked).verb == verb


@pytest.mark.parametrize("previous_result", [None, "x", {"ips": 3}])
def test_a_del_takes_what_it_can_get(previous_result: object) -> None:
    """The namespace may be gone, the result lost and the arguments be anything."""
    asked = frame("DEL", configuration(prevResult=previous_result), CNI_NETNS=None, CNI_ARGS="garbage")
    request = protocol.parse(asked)
    assert (request.verb, request.key, request.netns, request.pod) == (Verb.DEL, KEY, "", None)


@pytest.mark.parametrize("name", ["cni.dev/valid-attachments", "cni.dev/attachments"])
def test_gc_tells_what_is_valid(name: str) -> None:
    asked = frame("GC", configuration("1.1.0") | {name: VALID}, CNI_CONTAINERID=None, CNI_IFNAME=None)
    assert protocol.parse(asked).valid == {KEY}


@pytest.mark.parametrize(
    ("valid", "text"),
    [
        ({}, "cni.dev/valid-attachments is missing, and without it GC would remove every attachment"),
        ({"cni.dev/valid-attachments": None}, "cni.dev/valid-attachments: must be a list"),
        ({"cni.dev/valid-attachments": [{"containerID": "a"}]},
         "cni.dev/valid-attachments: {'containerID': 'a'} must have the texts containerID and ifname"),
    ],
)  # fmt: skip
def test_gc_without_a_list_removes_nothing(valid: dict[str, object], text: str) -> None:
    assert refused(frame("GC", configuration("1.1.0") | valid)) == (7, text)


def test_an_error_has_the_version_of_the_configuration() -> None:
    """Of one that cannot be parsed as well, if it can be told."""
    told = json.loads(protocol.error("0.4.0", CniError(Code.TRY_AGAIN, "later")))
    assert told == {"cniVersion": "0.4.0", "code": 11, "msg": "later"}
    assert json.loads(protocol.error("", CniError(Code.DECODE, "no")))["cniVersion"] == "1.1.0"
    assert protocol.version_of(b'{"cniVersion": "0.4.0", "name": 3}') == "0.4.0"
    assert [protocol.version_of(data) for data in (b"{", b"[]", b'{"cniVersion": 3}', b"3")] == [""] * 4


def test_a_check_tells_what_has_changed_since_the_add() -> None:
    then = protocol.attachment(protocol.parse(frame("ADD")))
    result = previous()
    result["ips"][0]["address"] = "10.244.1.8/24"
    result["interfaces"][2]["mac"] = "02:00:00:00:00:0b"
    now = protocol.attachment(protocol.parse(frame("CHECK", configuration(prevResult=result))))
    assert protocol.differences(then, then) == ()
    assert protocol.differences(then, now) == (
        "MAC address: was 02:00:00:00:00:0a, is 02:00:00:00:00:0b",
        "addresses: was 10.244.1.7, fd00::7, is 10.244.1.8, fd00::7",
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "ips", "address", "interface", "interfaces", "mac", "sandbox"]), inner
        )
    ),
    max_leaves=12,
)


@given(values=st.dictionaries(st.sampled_from(sorted(configuration())) | st.text(max_size=3), JSON), previous=JSON)
def test_whatever_comes_is_understood_or_refused(values: dict[str, Any], previous: Any) -> None:
    """Nothing else than CniError leaves the parser, for any JSON in any place."""
    for tried in (values, configuration() | values, configuration(prevResult=previous)):
        asked = frame("ADD", tried)
        try:
            request = protocol.parse(asked)
            assert isinstance(request, Request)
            protocol.attachment(request)
            json.loads(protocol.result(request))
        except CniError as refusal:
            assert str(refusal)
