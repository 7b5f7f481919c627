"""What a container runtime does with a chain of plugins (CNI specification, section 3), as cnitool does it.

It runs the plugins one after the other, hands each the result of the one before, and on DEL goes backwards. Nothing
is done about an error but to tell it.
"""

from __future__ import annotations

import base64
import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bgpd.cni.publish import PROGRAMS
from tests.fabric.process import inside

PLUGIN = PROGRAMS / f"bgpd-cni.{platform.machine()}"
DEBIAN = Path("/usr/lib/cni")  # containernetworking-plugins
TIMEOUT_S = 120.0  # the kubelet's runtimeRequestTimeout; on a busy machine a daemon in a guest takes most of a minute


class PluginError(Exception):
    """A plugin refused; `error` is what it printed."""

    def __init__(self, kind: str, error: Any) -> None:
        super().__init__(f"{kind}: {error}")
        self.error = error


@dataclass
class Answer:
    """One run of one plugin. `printed` None: nothing."""

    status: int
    printed: Any
    said: str

    @property
    def code(self) -> int:
        return int(self.printed["code"])


def call(
    program: Path,
    verb: str,
    configuration: object,
    environment: Mapping[str, str],
    *,
    netns: Path | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Answer:
    """One plugin, once."""
    text = configuration if isinstance(configuration, str) else json.dumps(configuration)
    done = subprocess.run(
        inside(netns, [str(program)]) if netns else [str(program)],
        input=text,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={"PATH": os.environ["PATH"], "CNI_COMMAND": verb, **environment},
        check=False,
    )
    return Answer(done.returncode, json.loads(done.stdout) if done.stdout else None, done.stderr)


@dataclass
class Runtime:
    """Runs the chain `conflist` in the node's network namespace; None: in the caller's.

    `results` are what it caches, by container; `took_s` how long each ADD took, by type of plugin.
    """

    conflist: Mapping[str, Any]
    node: Path | None
    programs: Sequence[Path] = (DEBIAN,)
    results: dict[str, Any] = field(default_factory=dict)
    took_s: dict[str, list[float]] = field(default_factory=dict)

    def add(self, container: str, netns: Path, pod: str = "web-0") -> Any:
        result = None
        for plugin in self.conflist["plugins"]:
            began = time.monotonic()
            result = self._run("ADD", plugin, result, self._variables(container, netns, pod))
            self.took_s.setdefault(plugin["type"], []).append(time.monotonic() - began)
        self.results[container] = result
        return result

    def check(self, container: str, netns: Path, but: Sequence[str] = ()) -> None:
        """All plugins of the chain, but for these types."""
        for plugin in (each for each in self.conflist["plugins"] if each["type"] not in but):
            self._run("CHECK", plugin, self.results[container], self._variables(container, netns))

    def delete(self, container: str, netns: Path | None) -> None:
        """With the cached result, if there is one; from 0.4.0 on."""
        previous = self.results.get(container) if self.conflist["cniVersion"] != "0.3.1" else None
        for plugin in reversed(self.conflist["plugins"]):
            self._run("DEL", plugin, previous, self._variables(container, netns))
        self.results.pop(container, None)

    def cached(self, container: str, netns: Path) -> bytes:
        """The attachment as libcni keeps it, with the configuration that it was made with."""
        value = {
            "kind": "cniCacheV1",
            "containerId": container,
            "config": base64.b64encode(json.dumps(self.conflist).encode()).decode(),
            "ifName": "eth0",
            "networkName": self.conflist["name"],
            "netns": str(netns),
            "result": self.results[container],
        }
        return json.dumps(value).encode()

    @classmethod
    def replaying(cls, cached: bytes, node: Path, programs: Sequence[Path]) -> Runtime:
        """One that deletes a pod with the chain that it was attached with, as CRI-O does."""
        value = json.loads(cached)
        chain = json.loads(base64.b64decode(value["config"]))
        return cls(chain, node, programs, {value["containerId"]: value["result"]})

    def status(self, plugin: Mapping[str, Any]) -> None:
        self._run("STATUS", plugin, None, {"CNI_PATH": self._path})

    def gc(self, plugin: Mapping[str, Any], containers: Sequence[str]) -> None:
        valid = [{"containerID": container, "ifname": "eth0"} for container in containers]
        self._run("GC", {**plugin, "cni.dev/valid-attachments": valid}, None, {"CNI_PATH": self._path})

    @property
    def _path(self) -> str:
        return ":".join(map(str, self.programs))

    def _variables(self, container: str, netns: Path | None, pod: str = "web-0") -> dict[str, str]:
        return {
            "CNI_CONTAINERID": container,
            "CNI_NETNS": str(netns or ""),
            "CNI_IFNAME": "eth0",
            "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME={pod}",
            "CNI_PATH": self._path,
        }

    def _run(self, verb: str, plugin: Mapping[str, Any], previous: Any, variables: Mapping[str, str]) -> Any:
        configuration = {**plugin, "name": self.conflist["name"], "cniVersion": self.conflist["cniVersion"]}
        if previous is not None:
            configuration["prevResult"] = previous
        program = next(each / plugin["type"] for each in self.programs if (each / plugin["type"]).exists())
        answer = call(program, verb, configuration, variables, netns=self.node)
        if answer.status != 0:
            raise PluginError(plugin["type"], answer.printed or answer.said)
        assert verb == "ADD" or answer.printed is None or plugin["type"] != "bgpd-cni"
        return answer.printed
