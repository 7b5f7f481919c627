"""What the plugin and the daemon say to each other, as bytes. Pure; `plugin/plugin.h` is the other end.

    bgpd-cni/1 <bytes of environment> <bytes of configuration>\\n   NAME=value\\0 of every CNI_ variable, then stdin
    bgpd-cni/1 <exit status> <bytes>\\n                              what goes to the plugin's stdout

A queued DEL and a remembered ADD are such requests too, each in a file: what understands one understands the others.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

LONGEST_HEAD = 64
LONGEST_ENVIRONMENT = 64 << 10
LONGEST_CONFIGURATION = 1 << 20

_MAGIC = b"bgpd-cni/1"
_HEAD = re.compile(rb"bgpd-cni/1 ([0-9]{1,7}) ([0-9]{1,7})\n")


class FrameError(ValueError):
    """These bytes are no request; the text says what is wrong with them."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One request as it came."""

    environment: bytes
    configuration: bytes

    def encode(self) -> bytes:
        head = b"%s %d %d\n" % (_MAGIC, len(self.environment), len(self.configuration))
        return head + self.environment + self.configuration


def lengths(head: bytes) -> tuple[int, int]:
    """How many bytes of environment and of configuration follow this line."""
    found = _HEAD.fullmatch(head)
    if found is None:
        raise FrameError(f"a request starts with a line like 'bgpd-cni/1 120 900', not with {head[:40]!r}")
    environment, configuration = int(found[1]), int(found[2])
    if environment > LONGEST_ENVIRONMENT or configuration > LONGEST_CONFIGURATION:
        longest = f"{LONGEST_ENVIRONMENT} bytes of environment and {LONGEST_CONFIGURATION} of configuration"
        raise FrameError(f"a request has at most {longest}")
    return environment, configuration


def decode(data: bytes) -> Frame:
    """A whole request, as a file holds it."""
    head, _, rest = data.partition(b"\n")
    environment, configuration = lengths(head[:LONGEST_HEAD] + b"\n")
    if len(rest) != environment + configuration:
        raise FrameError(f"it has {len(rest)} bytes instead of {environment + configuration}")
    return Frame(rest[:environment], rest[environment:])


def encode_answer(status: int, output: bytes) -> bytes:
    """`status` is what the plugin exits with."""
    return b"%s %d %d\n" % (_MAGIC, status, len(output)) + output
