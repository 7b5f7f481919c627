"""What an operator would write instead: follows Services with the official client and rewrites BIRD's routes.

    services_script.py --server HOST:PORT --ca FILE --token FILE --node NAME --file ROUTES --control SOCKET

An honest opponent for `services`: two lists, then two watches of the client that everybody uses, and one `birdc
configure` for each change of what this node is to announce, which is the load balancer addresses of Services with a
ready endpoint here. It does nothing of what a daemon owes besides: no retry, no check, no damping.
"""

from __future__ import annotations

import argparse
import subprocess
import threading
from pathlib import Path
from typing import Any

from kubernetes import client, watch

SERVICE_NAME = "kubernetes.io/service-name"


class Script:
    def __init__(self, options: argparse.Namespace) -> None:
        self._options, self._file = options, Path(options.file)
        self._addresses: dict[tuple[str, str], list[str]] = {}
        self._slices: dict[tuple[str, str], tuple[tuple[str, str], bool]] = {}
        self._announced: set[str] = set()
        self._lock = threading.Lock()

    def run(self) -> None:
        options, configuration = self._options, client.Configuration()
        configuration.host, configuration.ssl_ca_cert = f"https://{options.server}", options.ca
        configuration.api_key = {"authorization": f"Bearer {Path(options.token).read_text().strip()}"}
        core = client.CoreV1Api(client.ApiClient(configuration))
        discovery = client.DiscoveryV1Api(client.ApiClient(configuration))
        lists = core.list_service_for_all_namespaces, discovery.list_endpoint_slice_for_all_namespaces
        takers = self._take_service, self._take_slice
        versions = []
        for collect, take in zip(lists, takers, strict=True):
            found: Any = collect()
            for each in found.items:
                take("ADDED", each)
            versions.append(found.metadata.resource_version)
        self._settle()
        follow = zip(lists, takers, versions, strict=True)
        threads = [threading.Thread(target=self._follow, args=arguments) for arguments in follow]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _follow(self, collect: Any, take: Any, version: str) -> None:
        stream = watch.Watch().stream  # type: ignore[no-untyped-call]
        for event in stream(collect, resource_version=version):  # type: ignore[no-untyped-call]
            with self._lock:
                take(event["type"], event["object"])
                self._settle()

    def _take_service(self, kind: str, each: Any) -> None:
        key = each.metadata.namespace, each.metadata.name
        ingress = each.status.load_balancer.ingress or []
        self._addresses[key] = [it.ip for it in ingress if it.ip] if kind != "DELETED" else []

    def _take_slice(self, kind: str, each: Any) -> None:
        here = any(it.node_name == self._options.node and it.conditions.ready for it in each.endpoints or [])
        owner = each.metadata.namespace, (each.metadata.labels or {}).get(SERVICE_NAME, "")
        self._slices[each.metadata.namespace, each.metadata.name] = owner, here and kind != "DELETED"

    def _settle(self) -> None:
        serving = {owner for owner, here in self._slices.values() if here}
        wanted = {address for key, found in self._addresses.items() if key in serving for address in found}
        if wanted == self._announced:
            return
        temporary = self._file.with_suffix(".new")
        temporary.write_text("".join(f"route {address}/32 blackhole;\n" for address in sorted(wanted)))
        temporary.rename(self._file)
        argv = ["birdc", "-s", self._options.control, "configure"]
        subprocess.run(argv, stdout=subprocess.DEVNULL, check=True)
        self._announced = wanted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in ("server", "ca", "token", "node", "file", "control"):
        parser.add_argument(f"--{name}", required=True)
    Script(parser.parse_args()).run()


if __name__ == "__main__":
    main()
