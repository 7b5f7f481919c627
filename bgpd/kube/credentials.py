"""Reads a kubeconfig, names every file that its credentials come from, and tells when one of them changed.

Decides what is wrong with a kubeconfig, in words for its operator, before the Kubernetes client sees it: the
client stops at the first fault and calls it by its own terms. It does not connect, and does not decide how a
credential is used; `client` does.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from bgpd.config import document
from bgpd.config.document import Document
from bgpd.kube.files import Mark, mark_of, read_regular
from bgpd.model.fault import Fault, FaultsError

Signature: TypeAlias = tuple[Mark | None, ...]

# In the cluster's and in the user's section; each may be given as KEY-data instead.
_CLUSTER_FILES = ("certificate-authority",)
_USER_FILES = ("client-certificate", "client-key", "tokenFile")
_REMEDY = "is source.kubernetes.kubeconfig right?"


@dataclass(frozen=True, slots=True)
class Kubeconfig:
    """The `cluster` and `user` of the current context, file names made absolute.

    `files` are the kubeconfig and all that it refers to. `has_exec`: a plugin hands out the credential.
    """

    cluster: Mapping[str, Any]
    user: Mapping[str, Any]
    files: tuple[Path, ...]

    @property
    def has_exec(self) -> bool:
        return "exec" in self.user

    def as_dict(self, scratch: Path) -> dict[str, Any]:
        """What the Kubernetes client takes, with every embedded certificate and key put into `scratch`.

        The client would write them to files as well, and keep those until the process ends.
        """
        cluster, user = _unpacked(self.cluster, scratch), _unpacked(self.user, scratch)
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "it", "cluster": cluster}],
            "users": [{"name": "it", "user": user}],
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
            "current-context": "it",
        }


def signature(files: Iterable[Path]) -> Signature:
    """Differs when one of the files was written, replaced, or is gone."""
    return tuple(map(mark_of, files))


def read_kubeconfig(path: Path) -> Kubeconfig:
    """Raises `FaultsError` with everything that is wrong with it and with the files it names."""
    try:
        data = read_regular(path, document.MAX_BYTES + 1)
    except OSError as error:
        problem = f"cannot be read: {error.strerror}; {_REMEDY}"
        raise FaultsError((Fault(str(path), 0, 0, "", problem),)) from None
    documents = document.parse(data, str(path))
    if documents.faults:
        raise FaultsError(documents.faults)
    if len(documents.values) != 1 or not isinstance(documents.values[0].value, dict):
        raise FaultsError((Fault(str(path), 0, 0, "", f"is not a kubeconfig; {_REMEDY}"),))
    return _Reader(path, documents.values[0]).read()


class _Reader:
    """Walks one kubeconfig and gathers faults on the way."""

    def __init__(self, path: Path, source: Document) -> None:
        self._path, self._source = path, source
        self._faults: list[Fault] = []
        self._files = [path]

    def read(self) -> Kubeconfig:
        assert isinstance(self._source.value, dict)
        current = self._text((), "current-context", self._source.value)
        context, where = self._named("contexts", "context", current)
        cluster, cluster_at = self._named("clusters", "cluster", self._text(where, "cluster", context))
        # A context without a user is allowed: an API server may let anybody in.
        name = context.get("user") if context is not None else None
        user, user_at = self._named("users", "user", name) if name else ({}, ())
        result = Kubeconfig(
            self._checked(cluster or {}, cluster_at, _CLUSTER_FILES),
            self._checked(user or {}, user_at, _USER_FILES),
            tuple(self._files),
        )
        if cluster is not None:
            self._check_server(cluster, cluster_at)
        if self._faults:
            raise FaultsError(tuple(self._faults))
        return result

    def _fault(self, path: document.Path, problem: str) -> None:
        line, column = self._source.place(path)
        self._faults.append(Fault(str(self._path), line, column, document.spell(path), problem))

    def _text(self, at: document.Path, key: str, inside: Mapping[str, Any] | None) -> str | None:
        """A text that has to be there; None after a fault, or when what should hold it is missing itself."""
        if inside is None:
            return None
        value = inside.get(key)
        if isinstance(value, str) and value:
            return value
        self._fault((*at, key), "must name an entry; this part of the kubeconfig is missing")
        return None

    def _named(self, section: str, key: str, name: str | None) -> tuple[dict[str, Any] | None, document.Path]:
        """The `key` of the entry called `name` in a section, and where it stands."""
        if name is None:
            return None, ()
        assert isinstance(self._source.value, dict)
        entries = self._source.value.get(section)
        for index, entry in enumerate(entries if isinstance(entries, list) else ()):
            if isinstance(entry, dict) and entry.get("name") == name:
                value = entry.get(key)
                if isinstance(value, dict):
                    return value, (section, index, key)
                self._fault((section, index, key), "must be a mapping")
                return None, ()
        self._fault((section,), f"has no entry named {name!r}")
        return None, ()

    def _check_server(self, cluster: Mapping[str, Any], at: document.Path) -> None:
        server = cluster.get("server")
        if not isinstance(server, str) or not server.startswith(("https://", "http://")):
            self._fault((*at, "server"), "must be the API server's URL, such as https://192.0.2.1:6443")

    def _checked(self, section: Mapping[str, Any], at: document.Path, keys: tuple[str, ...]) -> Mapping[str, Any]:
        """The section with absolute file names; each file must be readable, each embedded one be base64."""
        result = dict(section)
        for key in keys:
            if _is_embedded(result, key):
                self._check_embedded(result, at, key)
            elif isinstance(name := result.get(key), str) and name:
                path = self._path.parent / name
                result[key] = str(path)
                self._files.append(path)
                for problem in _unreadable(path):
                    self._fault((*at, key), problem)
        return result

    def _check_embedded(self, section: Mapping[str, Any], at: document.Path, key: str) -> None:
        if key == "tokenFile":
            return
        try:
            base64.b64decode(section[f"{key}-data"], validate=True)
        except (binascii.Error, ValueError, TypeError):
            self._fault((*at, f"{key}-data"), "is not base64")


def _is_embedded(section: Mapping[str, Any], key: str) -> bool:
    """Whether the content itself is given, which then wins over a file's name."""
    return ("token" if key == "tokenFile" else f"{key}-data") in section


def _unpacked(section: Mapping[str, Any], scratch: Path) -> dict[str, Any]:
    result = dict(section)
    for key in (*_CLUSTER_FILES, "client-certificate", "client-key"):
        data = result.pop(f"{key}-data", None)
        if data is not None:
            path = scratch / key
            path.write_bytes(base64.b64decode(data))
            result[key] = str(path)
    return result


def _unreadable(path: Path) -> Iterator[str]:
    try:
        content = read_regular(path, document.MAX_BYTES)
    except OSError as error:
        yield f"{path} cannot be read: {error.strerror}"
    else:
        if not content.strip():
            yield f"{path} is empty"
