"""What the users of the cluster are to be told of one of its objects, which shows there as an Event of that object.

Values only: `policy.report` says what there is to tell, `kube.event` what becomes of it, `kube.recorder` writes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Why there is a notice, in the one word that Events are searched by."""

    POLICY_BLOCKED = "PolicyBlocked"


@dataclass(frozen=True, slots=True)
class Reference:
    """One object of a namespace. `uid` tells it from another one of its name."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class Notice:
    """A warning. `action` is what was to be done with the object `regarding`; `note` is for people, of any length."""

    regarding: Reference
    reason: Reason
    action: str
    note: str
