"""Makes the certificates and the token key of one throwaway control plane, with the openssl command.

Decides key types, lifetimes and extensions. Does not decide which names a certificate carries or who is an
administrator: the callers say so (`controlplane.py`). Everything is written below one directory and belongs
to one test run; nothing here is fit for a cluster that outlives it.
"""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

DAYS: Final = "30"
# Given as the whole configuration, so that the machine's openssl.cnf adds no extension of its own.
CONFIG: Final = "[req]\ndistinguished_name=dn\n[dn]\n"


@dataclass(frozen=True, slots=True)
class Identity:
    """A certificate and its private key, both PEM files."""

    certificate: Path
    key: Path


class Authority:
    """A certificate authority in `directory`, which signs what it is asked to."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._config = directory / "openssl.cnf"
        self._config.write_text(CONFIG)
        self._clients: dict[str, Identity] = {}
        usage = ["basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign"]
        self._ca = self._issue("ca", "/CN=bgpd-tests", usage, signer=None)

    @property
    def certificate(self) -> Path:
        """The authority's own certificate, a PEM file."""
        return self._ca.certificate

    def server(self, name: str, addresses: Sequence[str], hosts: Sequence[str]) -> Identity:
        """A serving certificate for IP addresses and DNS names."""
        alternatives = ",".join([*(f"IP:{ip}" for ip in addresses), *(f"DNS:{host}" for host in hosts)])
        usage = [*_leaf("serverAuth"), f"subjectAltName={alternatives}"]
        return self._issue(name, f"/CN={_escaped(name)}", usage, signer=self._ca)

    def client(self, user: str, groups: Sequence[str]) -> Identity:
        """A client certificate: Kubernetes reads the user from CN and the groups from O.

        Asked again for the same user and groups, the same certificate.
        """
        subject = "".join(f"/O={_escaped(group)}" for group in groups) + f"/CN={_escaped(user)}"
        # Readable, and distinct for one user with other groups: an earlier file must not change.
        readable = "".join(char if char.isalnum() else "-" for char in user)
        name = f"client-{readable}-{hashlib.sha256(subject.encode()).hexdigest()[:8]}"
        if name not in self._clients:
            self._clients[name] = self._issue(name, subject, _leaf("clientAuth"), signer=self._ca)
        return self._clients[name]

    def _issue(self, name: str, subject: str, extensions: Sequence[str], signer: Identity | None) -> Identity:
        identity = Identity(self._directory / f"{name}.crt", self._directory / f"{name}.key")
        command = ["req", "-x509", "-config", str(self._config), "-days", DAYS, "-subj", subject]
        command += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        command += ["-keyout", str(identity.key), "-out", str(identity.certificate)]
        for extension in extensions:
            command += ["-addext", extension]
        if signer is not None:
            command += ["-CA", str(signer.certificate), "-CAkey", str(signer.key)]
        openssl(command)
        return identity


def rsa_key(path: Path) -> Path:
    """Write a new RSA key for signing service account tokens (RS256, so that openssl can sign them too)."""
    openssl(["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", str(path)])
    return path


def rs256(key: Path, message: bytes) -> bytes:
    """The RS256 signature of `message` (RFC 7518 section 3.3)."""
    return openssl(["dgst", "-sha256", "-sign", str(key)], message)


def openssl(arguments: Sequence[str], data: bytes = b"") -> bytes:
    """Run one openssl command and return its output; its own words are in the error when it fails."""
    done = subprocess.run(["openssl", *arguments], input=data, capture_output=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"openssl {' '.join(arguments)}:\n{done.stderr.decode()}")
    return done.stdout


def _leaf(purpose: str) -> list[str]:
    # Python 3.13's strict verification refuses a leaf without these.
    return [
        "basicConstraints=critical,CA:FALSE",
        "keyUsage=critical,digitalSignature",
        f"extendedKeyUsage={purpose}",
        "subjectKeyIdentifier=hash",
        "authorityKeyIdentifier=keyid",
    ]


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("/", "\\/")
