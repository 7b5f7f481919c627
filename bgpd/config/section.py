"""What all sections of the configuration have in common: frozen, closed, keys in camelCase. Pure."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

_CAPITALS = {"asn": "ASN", "cidrs": "CIDRs", "id": "ID", "mac": "MAC", "rib": "RIB"}


def spelled(name: str) -> str:
    """A field's key in the file, after the API conventions of Kubernetes: `peer_asn` is `peerASN`."""
    first, *rest = name.split("_")
    return first + "".join(_CAPITALS.get(word, word.capitalize()) for word in rest)


def _or_empty(value: Any) -> Any:
    return {} if value is None else value


class Section(BaseModel):
    """A section whose lines are all commented out (`metrics:` and nothing below it) has its defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=spelled)

    @model_validator(mode="before")
    @classmethod
    def _without_lines(cls, data: Any) -> Any:
        return _or_empty(data)


# For a section that may be left out: `kubernetes:` with nothing below it is there, with its defaults.
PRESENT = BeforeValidator(_or_empty)
