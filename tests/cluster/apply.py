"""Brings the objects of a YAML file into the cluster, as the file has them.

Decides which API path an object belongs to, by asking the server's discovery, and whether it is created or
replaced. An object that is gone from the file is not deleted. `controlplane.py` calls it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from .rest import ApiError, JsonObject, Rest

# A custom resource definition is served within a second of its creation; a slow machine gets more.
SERVED_DEADLINE_S: Final = 15.0
POLL_INTERVAL_S: Final = 0.1


def apply_file(admin: Rest, path: Path) -> list[JsonObject]:
    """Create or replace every object of a YAML file, in its order, and return them as the server has them.

    Idempotent. A `CustomResourceDefinition` may stand before its own objects: they wait until it is served.
    Raises `ApiError`, also for a kind the server does not come to know within fifteen seconds.
    """
    documents = yaml.safe_load_all(path.read_text())
    return [apply(admin, document) for document in documents if document is not None]


def apply(admin: Rest, manifest: Mapping[str, Any]) -> JsonObject:
    """Create the object, or replace the one that has its name."""
    collection = collection_of(admin, manifest)
    path = f"{collection}/{manifest['metadata']['name']}"
    try:
        existing = admin.get(path)
    except ApiError as error:
        if error.status != 404:
            raise
        return admin.create(collection, manifest)
    metadata = {**manifest["metadata"], "resourceVersion": existing["metadata"]["resourceVersion"]}
    return admin.replace(path, {**manifest, "metadata": metadata})


def collection_of(admin: Rest, manifest: Mapping[str, Any]) -> str:
    """The path that objects of this kind and namespace are created at."""
    version = str(manifest["apiVersion"])
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    resource = _served(admin, root, str(manifest["kind"]))
    if not resource["namespaced"]:
        return f"{root}/{resource['name']}"
    return f"{root}/namespaces/{manifest['metadata'].get('namespace', 'default')}/{resource['name']}"


def _served(admin: Rest, root: str, kind: str) -> Mapping[str, Any]:
    deadline = time.monotonic() + SERVED_DEADLINE_S
    while True:
        found = _find(_resources(admin, root), kind)
        if found is not None:
            return found
        if time.monotonic() > deadline:
            raise ApiError(404, f"the server knows no {kind} in {root}")
        time.sleep(POLL_INTERVAL_S)


def _resources(admin: Rest, root: str) -> Iterable[Mapping[str, Any]]:
    try:
        return list(admin.get(root)["resources"])
    except ApiError as error:
        if error.status in (404, 503):  # 503 while the group of a new definition is being set up
            return []
        raise


def _find(resources: Iterable[Mapping[str, Any]], kind: str) -> Mapping[str, Any] | None:
    """The resource of that kind; a subresource has a slash in its name."""
    return next((each for each in resources if each["kind"] == kind and "/" not in each["name"]), None)
