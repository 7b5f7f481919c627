"""What our conflist becomes, from what the runtime's directory or an operator's ConfigMap holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bgpd.cni.conflist import Action, Plan, Settings, chained, verbatim
from bgpd.model.attachment import OWN_FILE, ChainingMode

FLANNEL: dict[str, Any] = {
    "name": "cbr0",
    "cniVersion": "0.3.1",
    "plugins": [
        {"type": "flannel", "delegate": {"hairpinMode": True, "isDefaultGateway": True}},
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ],
}
BRIDGE: dict[str, Any] = {"cniVersion": "0.4.0", "name": "mynet", "type": "bridge", "ipam": {"type": "host-local"}}
OURS: dict[str, Any] = {"type": "bgpd-cni"}
# the ConfigMap of the Cilium chain that this replaces, with our plugin's name in it
WRITTEN = """{
  "name": "generic-veth",
  "cniVersion": "0.3.1",
  "plugins": [
    {"type": "flannel", "delegate": {"hairpinMode": true, "isDefaultGateway": true}},
    {"type": "bgpd-cni"}
  ]
}"""


def written(plan: Plan) -> Any:
    assert (plan.action, plan.problem) == (Action.WRITE, "")
    return json.loads(plan.content)


def test_the_first_conflist_with_us_at_its_end() -> None:
    """Flannel's as it ships, with name and order kept."""
    plan = chained({"10-flannel.conflist": json.dumps(FLANNEL).encode(), "README": b"text"}, Settings())
    assert written(plan) == FLANNEL | {"plugins": [*FLANNEL["plugins"], OURS]}
    assert list(written(plan)) == ["name", "cniVersion", "plugins"]
    assert (plan.target, plan.warnings) == ("10-flannel.conflist", ())


def test_the_first_is_the_first_by_name_and_ours_is_not_it() -> None:
    plan = chained(
        {
            "20-other.conflist": json.dumps(FLANNEL | {"name": "other"}).encode(),
            "10-flannel.conflist": json.dumps(FLANNEL).encode(),
            OWN_FILE: WRITTEN.encode(),
            "06-notes.txt": b"no configuration",
        },
        Settings(),
    )
    assert plan.target == "10-flannel.conflist"


@pytest.mark.parametrize("name", ["10-bridge.conf", "10-bridge.json"])
def test_a_configuration_of_one_plugin_becomes_a_list(name: str) -> None:
    """As CNI 1.0.0 wants it; what belongs to the list moves there."""
    plan = chained({name: json.dumps(BRIDGE | {"disableCheck": True}).encode()}, Settings())
    assert written(plan) == {
        "cniVersion": "0.4.0",
        "name": "mynet",
        "disableCheck": True,
        "plugins": [{"type": "bridge", "ipam": {"type": "host-local"}}, OURS],
    }


@pytest.mark.parametrize(
    ("mode", "published"),
    [(None, "vepa"), ("bridge", "vepa"), ("", "vepa"), *((each, each) for each in ("vepa", "private", "passthru"))],
)
def test_macvlans_in_bridge_mode_are_made_in_mode_vepa(mode: str | None, published: str) -> None:
    """In bridge mode the kernel hands frames over where nobody can judge them; other plugins' modes are their own."""
    macvlan = {"type": "macvlan", "master": "eth0"} | ({} if mode is None else {"mode": mode})
    chain = {"cniVersion": "1.0.0", "name": "x", "plugins": [macvlan, {"type": "tuning", "mode": "bridge"}]}
    plan = chained({"10-x.conflist": json.dumps(chain).encode()}, Settings())
    plugins = [macvlan | {"mode": published}, {"type": "tuning", "mode": "bridge"}, OURS]
    assert (written(plan)["plugins"], plan.warnings) == (plugins, ())


def test_an_operator_s_own_chain_keeps_bridge_mode_and_is_told_what_that_means() -> None:
    def warnings(mode: str) -> tuple[str, ...]:
        chain = {"cniVersion": "1.0.0", "name": "x", "plugins": [{"type": "macvlan", "mode": mode}, OURS]}
        plan = verbatim(json.dumps(chain), "ConfigMap x/y", Settings())
        assert written(plan) == chain
        return plan.warnings

    assert warnings("bridge") == (
        "macvlan in mode bridge: what pods of a node send to groups is not judged, and one may pose as another; set "
        '"mode": "vepa"',
    )
    assert warnings("vepa") == ()


def test_a_list_in_a_conf_file_is_a_list() -> None:
    """Some installers name it so."""
    plan = chained({"10-flannel.conf": json.dumps(FLANNEL).encode()}, Settings())
    assert written(plan)["plugins"][-1] == OURS


def test_our_entry_says_what_is_not_the_plugin_s_default() -> None:
    settings = Settings(ChainingMode.GENERIC_VETH, Path("/run/n1/cni.sock"), Path("/var/n1/cni-queue"), 9)
    plan = chained({"10-flannel.conflist": json.dumps(FLANNEL).encode()}, settings)
    assert written(plan)["plugins"][-1] == {
        "type": "bgpd-cni",
        "chaining-mode": "generic-veth",
        "socket": "/run/n1/cni.sock",
        "queue": "/var/n1/cni-queue",
        "deadline-seconds": 9,
    }
    assert plan.warnings == ()


def test_a_chain_that_has_us_in_it_needs_no_file_of_ours() -> None:
    with_us = FLANNEL | {"plugins": [*FLANNEL["plugins"], OURS]}
    plan = chained({"10-flannel.conflist": json.dumps(with_us).encode()}, Settings())
    assert (plan.action, plan.target, plan.problem) == (Action.REMOVE, "10-flannel.conflist", "")


@pytest.mark.parametrize("there", [{}, {OWN_FILE: WRITTEN.encode()}, {"x.txt": b""}])
def test_nothing_to_chain_to_is_told(there: dict[str, bytes]) -> None:
    plan = chained(there, Settings())
    assert plan.action is Action.REMOVE
    assert plan.problem == (
        "no .conf, .conflist, .json file to chain to; install the main CNI plugin, or set cni.configMap"
    )


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'{"name": "cb', "it is no JSON: Unterminated string starting at: line 1 column 10 (char 9)"),
        (b"", "it is no JSON: Expecting value: line 1 column 1 (char 0)"),
        (b"[]", "it is no JSON object"),
        (b"{}", "it has no list 'plugins'"),
        (json.dumps(BRIDGE).encode(), "it has no list 'plugins'"),
        (b'{"plugins": []}', "'plugins' must be a list of objects that have a 'type'"),
        (b'{"plugins": [{"type": 3}]}', "'plugins' must be a list of objects that have a 'type'"),
        (json.dumps(FLANNEL | {"name": ""}).encode(), "it has no 'name'"),
        (json.dumps(FLANNEL | {"cniVersion": "0.2.0"}).encode(),
         "cniVersion is '0.2.0'; bgpd-cni can be chained in 0.3.1, 0.4.0, 1.0.0, 1.1.0"),
        (json.dumps({"name": "x", "plugins": [{"type": "bridge"}]}).encode(),
         "cniVersion is missing; bgpd-cni can be chained in 0.3.1, 0.4.0, 1.0.0, 1.1.0"),
    ],
)  # fmt: skip
def test_what_cannot_be_chained_to_leaves_ours_as_it_was(content: bytes, problem: str) -> None:
    """A file that is being written comes good; until then the chain from before goes on to work."""
    plan = chained({"10-x.conflist": content, "20-flannel.conflist": json.dumps(FLANNEL).encode()}, Settings())
    assert (plan.action, plan.problem) == (Action.KEEP, f"10-x.conflist: {problem}; 05-bgpd.conflist stays as it is")


def test_0_3_0_is_raised_to_its_twin_and_unknown_versions_are_not_promised() -> None:
    old = chained({"10-terway.conflist": json.dumps(FLANNEL | {"cniVersion": "0.3.0"}).encode()}, Settings())
    assert written(old)["cniVersion"] == "0.3.1"
    several = FLANNEL | {"cniVersion": "1.0.0", "cniVersions": ["1.2.0", "1.1.0", "1.0.0"]}
    newer = chained({"10-x.conflist": json.dumps(several).encode()}, Settings())
    assert written(newer)["cniVersions"] == ["1.0.0", "1.1.0"]


def test_a_file_before_ours_is_not_chained_to_but_told() -> None:
    """Runtimes would use it and not ours; multus is the one that may be there on purpose."""
    there = {"00-multus.conf": b'{"type": "multus"}', "10-flannel.conflist": json.dumps(FLANNEL).encode()}
    plan = chained(there, Settings())
    assert plan.target == "10-flannel.conflist"
    assert plan.warnings == (
        "00-multus.conf comes before 05-bgpd.conflist, and runtimes use it instead; rename it unless it delegates to "
        "05-bgpd.conflist, as multus does",
    )


def test_what_an_operator_wrote_counts_to_the_letter() -> None:
    plan = verbatim(WRITTEN, "ConfigMap kube-system/cni-configuration", Settings(ChainingMode.GENERIC_VETH))
    assert (plan.action, plan.content, plan.warnings) == (Action.WRITE, WRITTEN.encode(), ())


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "there is no key cni-config; give the whole conflist in it, or drop cni.configMap"),
        (WRITTEN[:-1], "it is no JSON: Expecting ',' delimiter: line 8 column 1 (char 183)"),
        (WRITTEN.replace("bgpd-cni", "cilium-cni"),
         'no plugin has the type bgpd-cni; add {"type": "bgpd-cni"} as the last, in the place of cilium-cni'),
        (json.dumps(FLANNEL), 'no plugin has the type bgpd-cni; add {"type": "bgpd-cni"} as the last'),
    ],
)  # fmt: skip
def test_what_an_operator_wrote_wrongly_leaves_ours_as_it_was(text: str | None, problem: str) -> None:
    plan = verbatim(text, "ConfigMap x/y", Settings())
    assert (plan.action, plan.problem) == (Action.KEEP, f"ConfigMap x/y: {problem}; 05-bgpd.conflist stays as it is")


@pytest.mark.parametrize(
    ("mode", "chain", "warning"),
    [
        ("macvlan", {"name": "generic-veth"},
         "the network's name generic-veth means veth, chaining-mode macvlan means macvlan; they must agree"),
        ("auto", {"name": "macvlan"},
         "the network's name macvlan means macvlan, but the main plugin flannel makes veth; they must agree"),
        ("ipvlan", {"name": "x"}, "chaining-mode ipvlan means ipvlan, but the main plugin flannel makes veth; "
         "they must agree"),
        ("generic-veth", {"name": "cbr0"}, None),
        ("auto", {"name": "terway-chainer"}, None),
        ("terway-chainer", {"name": "terway-chainer"}, None),
        ("terway-chainer", {"name": "ipvlan-ens192"},
         "the network's name is ipvlan-ens192, and chaining-mode terway-chainer: who chains by that mode finds its "
         "network by the same name, so they must agree"),
        ("macvlan", {"name": "x", "plugins": [{"type": "sriov"}]}, None),
    ],
)  # fmt: skip
def test_name_mode_and_main_plugin_must_agree(mode: str, chain: dict[str, Any], warning: str | None) -> None:
    """The last is what a wrong guess costs most: pods that start and are refused."""
    there = {"10-x.conflist": json.dumps(FLANNEL | chain).encode()}
    plan = chained(there, Settings(ChainingMode(mode)))
    assert plan.action is Action.WRITE
    assert warning in plan.warnings if warning else plan.warnings == ()


@pytest.mark.parametrize(
    ("entry", "warning"),
    [
        ({"chaining-mode": "veth"}, "chaining-mode is 'veth'; give one of auto, generic-veth, macvlan, ipvlan, cbr0, "
         "portmap, terway-chainer, spidernet-chainer"),
        ({"socket": "/run/x.sock"}, "socket of bgpd-cni is /run/x.sock, but bgpd's is /run/bgpd/cni.sock; "
         "they must agree"),
    ],
)  # fmt: skip
def test_an_entry_that_does_not_reach_us_is_told(entry: dict[str, str], warning: str) -> None:
    text = json.dumps(FLANNEL | {"plugins": [*FLANNEL["plugins"], OURS | entry]})
    assert verbatim(text, "ConfigMap x/y", Settings()).warnings == (warning,)
    twice = json.dumps(FLANNEL | {"plugins": [*FLANNEL["plugins"], OURS, OURS]})
    assert verbatim(twice, "ConfigMap x/y", Settings()).warnings == (
        "bgpd-cni is 2 times in 'plugins'; leave it in once",
    )


def test_a_plan_is_its_own_fixed_point() -> None:
    """With our file written, the same is planned."""
    there = {"10-flannel.conflist": json.dumps(FLANNEL).encode()}
    first = chained(there, Settings())
    assert chained(there | {OWN_FILE: first.content}, Settings()) == first
