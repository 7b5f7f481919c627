"""Services and EndpointSlices as `kubectl get -o yaml` shows them, without what nobody reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def service(
    name: str,
    *,
    ingress: Sequence[str] = (),
    cluster_ips: Sequence[str] = (),
    labels: Mapping[str, str] | None = None,
    **spec: Any,
) -> dict[str, Any]:
    """A LoadBalancer Service of namespace `shop`; `spec` as in the API."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "shop", "labels": dict(labels or {})},
        "spec": {
            "type": "LoadBalancer",
            "clusterIPs": list(cluster_ips),
            "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
            **spec,
        },
        "status": {"loadBalancer": {"ingress": [{"ip": address} for address in ingress]}},
    }


def endpoint_slice(owner: str, endpoints: Sequence[Mapping[str, Any]], suffix: str = "a") -> dict[str, Any]:
    """A slice of the Service `owner`, of the family that its first endpoint has."""
    is_ipv6 = any(":" in address for each in endpoints[:1] for address in each["addresses"])
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{owner}-{suffix}",
            "namespace": "shop",
            "labels": {"kubernetes.io/service-name": owner},
        },
        "addressType": "IPv6" if is_ipv6 else "IPv4",
        "endpoints": list(endpoints),
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    }


def endpoint(address: str, node: str, *, ready: bool = True, serving: bool | None = None) -> dict[str, Any]:
    """One that is not ready but serving is on its way out."""
    conditions = {"ready": ready, "serving": ready if serving is None else serving}
    return {
        "addresses": [address],
        "nodeName": node,
        "conditions": conditions | {"terminating": bool(serving and not ready)},
    }
