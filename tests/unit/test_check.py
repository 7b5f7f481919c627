"""What `bgpd check` says of a configuration, and what it and its like need not load to say it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from bgpd.cli.main import main
from tests.fabric.service_objects import endpoint, endpoint_slice, service

NODE = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {"name": "worker1"},
    "spec": {"podCIDRs": ["188.188.1.0/24"]},
    "status": {"addresses": [{"type": "InternalIP", "address": "11.8.37.63"}]},
}
CONFIG_MAP_NAME = "kube-system/ip-masq-agent"
DOCUMENT = """\
nonMasqueradeCIDRs:
- 169.254.0.0/16
- 11.8.37.4/32
- 11.11.248.0/21
"""


class Rig:
    """A directory with a configuration, a document beside it, and manifests."""

    def __init__(self, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.file, self.document, self.manifests = (directory / it for it in ("bgpd.yaml", "document", "manifests"))
        self.manifests.mkdir()
        self.config: dict[str, Any] = {
            "node": {"name": "worker1"},
            "paths": {name: str(directory / name) for name in ("run", "state", "bpf")},
            "source": {"manifests": str(self.manifests)},
            "bgp": {
                "localASN": 64512,
                "listenPort": 0,
                "peers": [{"name": "tor-a", "peerAddress": "127.0.0.2", "peerASN": 64512}],
                "advertisements": [{"advertisementType": "PodCIDR"}],
                "export": {"allow": ["188.188.0.0/16"]},
            },
        }
        self.manifest("node", NODE)

    def manifest(self, name: str, value: Any) -> None:
        (self.manifests / f"{name}.yaml").write_text(yaml.safe_dump(value))

    def masquerade(self, **keys: Any) -> None:
        place = {"path": str(self.document)}
        self.config["masquerade"] = {"enabled": True, "config": place, "clusterCIDRs": ["188.188.0.0/16"]} | keys

    def check(self, *words: str) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        self.file.write_text(yaml.safe_dump(self.config))
        code = main(["check", "--config", str(self.file), *words])
        return code, *self._capsys.readouterr()

    def told(self) -> dict[str, Any]:
        return dict(json.loads(self.check("-o", "json")[1]))


@pytest.fixture
def rig(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Rig:
    return Rig(tmp_path, capsys)


def test_a_document_as_it_should_be(rig: Rig) -> None:
    """What it comes to on this node, in the words of `masq list`; nothing to warn of."""
    rig.masquerade()
    rig.document.write_text(DOCUMENT)
    code, out, err = rig.check()
    assert (code, err) == (0, "")
    assert "towards:\nIP PREFIX/ADDRESS\n11.8.37.4/32\n11.11.248.0/21\n169.254.0.0/16\n" in out
    assert out.splitlines()[-1].split() == ["188.188.1.0/24", "uplink", "188.188.0.0/16"]


def test_a_node_that_does_not_masquerade(rig: Rig) -> None:
    """A document that lies about is not looked at."""
    rig.document.write_text("nonsense")
    code, out, _ = rig.check()
    assert code == 0
    assert "would masquerade" not in out
    assert rig.told()["masquerade"] is None


@pytest.mark.parametrize(
    ("entry", "keys", "finding"),
    [
        ("2.2.2.2/16", {"compat": "cilium"}, "it has host bits and counts as 2.2.0.0/16; write 2.2.0.0/16"),
        ("11.11.250.0/24", {}, "it lies in 11.11.248.0/21, which is listed as well; remove it"),
        ("188.188.7.0/24", {}, "it lies in 188.188.0.0/16, where pods live, which keep their addresses among each "
         "other in any case; remove it"),
        ("192.0.2.0/24", {"f5SnatPools": ["11.8.38.0/28"]}, "11.8.38.0/28: nothing of this F5 SNAT pool is listed"),
    ],
)  # fmt: skip
def test_a_finding_is_a_warning(rig: Rig, entry: str, keys: dict[str, Any], finding: str) -> None:
    """The file is fine, the exit code too, and a person is told."""
    rig.masquerade(**keys)
    rig.document.write_text(f"{DOCUMENT}- {entry}\n")
    code, out, err = rig.check()
    assert code == 0
    assert out.startswith(f"{rig.file}: fine\n")
    assert err.startswith("warning: ")
    assert finding in err
    (warning,) = rig.told()["warnings"]
    assert err == f"warning: {warning}\n"


@pytest.mark.parametrize(
    "bgp",
    [{"advertisements": []}, {"export": {"allow": ["10.0.0.0/8"]}}],
    ids=["nothing is advertised", "the brake holds it back"],
)
def test_a_list_that_bgp_makes_no_use_of(rig: Rig, bgp: dict[str, Any]) -> None:
    """Whoever is listed sees pods, and nobody tells the switches where they are."""
    rig.masquerade()
    rig.config["bgp"].update(bgp)
    rig.document.write_text(DOCUMENT)
    code, _, err = rig.check()
    assert code == 0
    place = f"{rig.document}:3: 11.8.37.4/32: whoever is there (as does 1 more) sees pods of 188.188.1.0/24"
    assert f"warning: {place}" in err


def test_every_fault_of_the_document_is_named(rig: Rig) -> None:
    """As those of the configuration are: with line and column, all at once, and exit code 2."""
    rig.masquerade()
    rig.document.write_text(f"{DOCUMENT}- 2.2.2.2/16\n- nonsense\n")
    code, out, err = rig.check()
    assert code == 2
    assert out.startswith(f"{rig.file}: fine, but its masquerade document is not\n")
    assert [line.split(": ")[0] for line in err.splitlines()] == [f"{rig.document}:{line}:3" for line in (5, 6)]
    assert rig.told()["faults"] == err.splitlines()


def test_a_list_that_is_longer_than_its_map_is_a_fault(rig: Rig) -> None:
    """It would never come into force."""
    rig.masquerade(compat="cilium")
    entries = [f"10.{number >> 8}.{number & 255}.0/24" for number in range(16_385)]
    rig.document.write_text(json.dumps({"nonMasqueradeCIDRs": entries}))
    code, _, err = rig.check()
    assert code == 2
    assert "the map holds 16,384" in err


def test_without_a_document_the_default_list_counts(rig: Rig) -> None:
    """A path with a slip in it looks the same, so it is said."""
    rig.masquerade()
    code, out, _ = rig.check()
    assert code == 0
    assert f"{rig.document} gives no list, so the one that compat: agent has for want of one counts\n" in out
    assert [row["prefix"] for row in rig.told()["masquerade"]["keeps"]] == [
        "10.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"
    ]  # fmt: skip


def test_a_config_map_among_the_manifests_is_read(rig: Rig) -> None:
    """By the rules of the daemon's own source."""
    rig.masquerade(config={"configMap": CONFIG_MAP_NAME})
    namespace, _, name = CONFIG_MAP_NAME.partition("/")
    metadata = {"name": name, "namespace": namespace}
    value = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"config": f"{DOCUMENT}- bad\n"}}
    rig.manifest("document", value)
    code, _, err = rig.check()
    assert code == 2
    assert err.startswith(f"ConfigMap {CONFIG_MAP_NAME} data.config:5:3: ")


def test_a_config_map_at_the_api_server_is_not_known_here(rig: Rig) -> None:
    """No credentials, no network: it says what it cannot tell."""
    rig.masquerade(config={"configMap": CONFIG_MAP_NAME})
    rig.config["source"] = {"kubernetes": {}}
    code, out, err = rig.check()
    assert (code, err) == (0, "")
    assert f"the ConfigMap {CONFIG_MAP_NAME} is not known here, only to the API server\n" in out


def test_a_rule_that_cannot_be_made(rig: Rig) -> None:
    """The node does not show the address that its configuration wants to masquerade with."""
    rig.masquerade(snatAddress={"ipv4": "InternalIP"})
    rig.config["bgp"]["peers"][0]["localAddress"] = rig.config["bgp"]["routerID"] = "11.8.37.63"
    rig.manifest("node", NODE | {"status": {}})
    rig.document.write_text(DOCUMENT)
    assert "would not masquerade:\nWHY\nmasquerade.snatAddress.ipv4 is InternalIP" in rig.check()[1]


WEB = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "web", "namespace": "shop", "labels": {"app": "web"}},
    "spec": {"nodeName": "worker1"},
    "status": {"podIPs": [{"ip": "188.188.1.7"}]},
}
CLOSED = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "NetworkPolicy",
    "metadata": {"name": "closed", "namespace": "shop"},
    "spec": {"podSelector": {"matchLabels": {"app": "web"}}},
}


def test_addresses_of_pods_among_the_manifests(rig: Rig) -> None:
    """What would be announced of them, and of what is not which pod has it instead."""
    rig.config["bgp"]["advertisements"] = [{"advertisementType": "PodIP"}]
    for name, node, address in (("a", "worker1", 7), ("b", "worker1", 8), ("c", "worker2", 8)):
        meta = {"name": name, "uid": name, "creationTimestamp": "2026-01-01T00:00:00Z"}
        status = {"phase": "Running", "podIPs": [{"ip": f"188.188.200.{address}"}]}
        rig.manifest(
            name, {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {"nodeName": node}, "status": status}
        )
    _, out, _ = rig.check("-o", "json")
    shown = json.loads(out)
    assert [row["prefix"] for row in shown["routes"]] == ["188.188.200.7/32"]
    (withheld,) = shown["withheld"]
    assert withheld["why"].startswith("Pod default/c on worker2, which has the higher uid")


def test_policies_that_count_on_this_node(rig: Rig) -> None:
    """Read where policy is on; null where it is off, whatever lies about."""
    rig.manifest("web", WEB)
    rig.manifest("closed", CLOSED)
    assert rig.told()["policies"] is None
    rig.config["policy"] = {"enabled": True}
    (row,) = rig.told()["policies"]
    assert (row["policy"], row["pods"], row["ingress"], row["egress"]) == ("shop/closed", ["shop/web"], [], None)
    assert rig.check()[1].splitlines()[-1].split() == ["shop/closed", "0", "shop/web"]


def test_a_policy_that_does_not_fit_is_a_warning(rig: Rig) -> None:
    """In the words of `policy list`, before a daemon has to hold its pods back; the file itself is fine."""
    all_but_ends = [{"port": 1, "endPort": 65534, "protocol": each} for each in ("TCP", "UDP", "SCTP")]
    blocks = ({"ipBlock": {"cidr": f"10.{each >> 8}.{each & 255}.0/24"}} for each in range(750))
    rig.manifest("web", WEB)
    spec = {"podSelector": {}, "ingress": [{"from": [each], "ports": all_but_ends} for each in blocks]}
    rig.manifest("closed", CLOSED | {"spec": spec})
    rig.config["policy"] = {"enabled": True}
    code, out, err = rig.check("-o", "json")
    (row,), (warning,) = json.loads(out)["policies"], json.loads(out)["warnings"]
    assert (code, err) == (0, "")
    assert "NetworkPolicy shop/closed does not fit" in warning
    assert "policy_ranges" in warning and "shop/web is closed" in warning
    assert (row["problems"], row["blocked"]["map"]) == ([warning], "policy_ranges")


def test_services_are_shown_as_they_would_be_announced(rig: Rig) -> None:
    """With what is not announced now and why; without such an entry they are not looked at."""
    rig.manifest("web", service("web", ingress=["188.188.255.1"]))
    rig.manifest("slice", endpoint_slice("web", [endpoint("188.188.1.7", "worker1")]))
    rig.manifest("quiet", service("quiet", ingress=["188.188.255.2"]))
    assert {row["prefix"] for row in rig.told()["routes"]} == {"188.188.1.0/24"}
    entry = {"advertisementType": "Service", "service": {"addresses": ["LoadBalancerIP"]}, "selector": {}}
    rig.config["bgp"]["advertisements"].append(entry)
    told = rig.told()
    assert {row["prefix"] for row in told["routes"]} == {"188.188.1.0/24", "188.188.255.1/32"}
    why = "Service shop/quiet has no endpoint"
    assert told["withheld"] == [{"prefix": "188.188.255.2/32", "peer": "tor-a", "why": why}]
    rig.config["source"] = {"kubernetes": {}}
    assert "nor are Services" in rig.check()[1]


def test_a_policy_that_cannot_be_read_whole(rig: Rig) -> None:
    """It counts, and closes: exit 2 says so before the daemon does."""
    rig.manifest("closed", CLOSED | {"spec": {"podSelector": {}, "ingress": [{"form": []}]}})
    rig.config["policy"] = {"enabled": True}
    code, out, err = rig.check()
    assert (code, out.splitlines()[0]) == (2, f"{rig.file}: fine, but its manifests are not")
    assert "closed.yaml:8:5: spec.ingress[0].form: NetworkPolicy shop/closed: is no field that is known here" in err


@pytest.mark.parametrize("command", ["version", "check", "doctor", "the daemon"])
def test_a_node_that_neither_masquerades_nor_polices_loads_none_of_it(rig: Rig, command: str) -> None:
    """A command is to start fast, a daemon to be small, and both to work without libbpf and nf_tables."""
    rig.check()
    does = "import bgpd.daemon" if command == "the daemon" else "main(sys.argv[1:])"
    loaded = "[it for it in sys.modules if it.startswith(('bgpd.masq', 'bgpd.datapath', 'bgpd.policy', 'bgpd.cni'))]"
    program = f"import sys\nfrom bgpd.cli.main import main\n{does}\nprint(*{loaded}, file=sys.stderr)"
    argv = [sys.executable, "-c", program, command, "--config", str(rig.file)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.stderr.split() == []


def test_what_cannot_be_used_of_the_node_is_a_fault(rig: Rig) -> None:
    """A daemon would run without that pod CIDR, and nobody would know why it is not announced."""
    rig.manifest("node", NODE | {"spec": {"podCIDRs": ["188.188.1.0/33"]}})
    code, _, err = rig.check()
    assert (code, "spec.podCIDRs[0]: '188.188.1.0/33' is not a CIDR" in err) == (2, True)


def test_the_verdict_speaks_of_several_as_several(rig: Rig) -> None:
    rig.config["virtualServers"] = {"enabled": True}
    rig.config["bgp"]["advertisements"].append({"advertisementType": "VirtualServer"})
    name = {"name": "broken", "namespace": "shop", "labels": {"f5type": "virtual-server"}}
    rig.manifest("vs", {"apiVersion": "v1", "kind": "ConfigMap", "metadata": name, "data": {"data": "{"}})
    _, out, err = rig.check()
    assert out.startswith(f"{rig.file}: fine, but its virtual servers are not\n")
    assert f"{rig.manifests}/vs.yaml:2:1: data.schema: ConfigMap shop/broken: is missing" in err


def test_sessions_that_an_unreadable_file_leaves_open(rig: Rig) -> None:
    rig.config["bgp"] = {"peersFrom": "cilium", "export": {"allow": ["188.188.0.0/16"]}}
    rig.config["virtualServers"] = {"enabled": True}
    (rig.manifests / "broken.yaml").write_text("{")
    code, out, err = rig.check()
    assert (code, "sessions are not known while a file cannot be read" in out) == (2, True)
    assert "announced to nobody; Cilium's objects know none of this kind" in err


def test_what_only_the_api_server_knows_is_said(rig: Rig) -> None:
    rig.config["source"] = {"kubernetes": {}}
    rig.config |= {"virtualServers": {"enabled": True}, "nodeRoutes": "auto"}
    rig.config["bgp"]["advertisements"] += [{"advertisementType": kind} for kind in ("PodIP", "VirtualServer")]
    out = rig.check()[1]
    assert [command for command in ("routes", "virtualservers list", "noderoutes list") if command not in out] == []
