"""A thin client of nf_tables: messages in one transaction, dumps, and news of what others commit.

This speaks netlink itself. libnftables cannot write the one expression that the masquerade rule needs, a match of
xtables (`xt_bpf`), and pyroute2's nftables costs the daemon 30 MB for what is packing of attributes. What the
messages say is up to `netlink.nftmessage` and the caller; nothing here knows of masquerading.

Everything is synchronous: a commit waits for an RCU grace period inside the kernel (some 20 ms), so the event loop
calls it in a thread. A connection serves one call at a time.

Sources: linux/netfilter/nf_tables.h, nfnetlink.h; libmnl's and nft's own traffic.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence

from bgpd.netlink.message import ACK, DONE, DUMP, DUMP_INTERRUPTED, ERROR, REQUEST, messages, of_one_moment, pack
from bgpd.netlink.nftmessage import NFPROTO_INET, NFPROTO_IPV4, Attributes, Kind, Message, attribute, attributes

_NETLINK_NETFILTER = 12
_SOL_NETLINK, _ADD_MEMBERSHIP, _CAP_ACK = 270, 1, 10
_ATTACH_FILTER = 26  # SO_ATTACH_FILTER, not in `socket`
_GROUP_NFTABLES = 7
_SUBSYSTEM, _COMPAT_SUBSYSTEM = 10, 11
_BATCH_BEGIN, _BATCH_END = 16, 17
_FAMILY_HEADER = struct.Struct(">BBH")  # family, version, resource
_TIMEOUT_S = 10.0
_ROOM = 1 << 18


class NftablesError(Exception):
    """The kernel refused; the text names the step. `errno` as in `errno`."""

    def __init__(self, code: int, step: str) -> None:
        super().__init__(f"nftables: {step}: {os.strerror(code)}")
        self.errno = code


class Connection:
    """A socket to nf_tables of the network namespace it was opened in. OSError: the kernel knows none."""

    def __init__(self, opened: socket.socket | None = None) -> None:
        self._socket = opened or open_socket()
        self._socket.settimeout(_TIMEOUT_S)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 21)
        self._socket.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)  # a refusal need not repeat what was refused
        self._socket.bind((0, 0))
        self.port: int = self._socket.getsockname()[0]
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def commit(self, messages: Sequence[Message]) -> None:
        """All of it or, with NftablesError, nothing."""
        first = self._sequence + 1
        parts = [_pack(_BATCH_BEGIN, REQUEST, 0, b"", first, _SUBSYSTEM)]
        for sequence, each in enumerate(messages, first + 1):
            kind, flags = _SUBSYSTEM << 8 | each.kind, REQUEST | ACK | each.flags
            parts.append(_pack(kind, flags, each.family, each.body, sequence))
        self._sequence = first + len(messages) + 1
        parts.append(_pack(_BATCH_END, REQUEST, 0, b"", self._sequence, _SUBSYSTEM))
        self._socket.send(b"".join(parts))
        self._acknowledged(messages, first)

    def _acknowledged(self, messages: Sequence[Message], first: int) -> None:
        """Reads what became of each message; the first refusal is the cause, later ones follow from it."""
        waiting = set(range(first + 1, first + 1 + len(messages)))
        refused: NftablesError | None = None
        while waiting:
            for kind, _, sequence, body in self._receive():
                if kind != ERROR or not first <= sequence <= self._sequence:
                    continue
                (code,) = struct.unpack_from("=i", body)
                if code and refused is None:
                    step = messages[sequence - first - 1].what if sequence in waiting else "the transaction"
                    refused = NftablesError(-code, step)
                waiting.discard(sequence)
                if sequence == first:  # the batch as a whole was refused
                    waiting.clear()
        if refused is not None:
            raise refused

    def get(self, kind: Kind, body: bytes, family: int = NFPROTO_INET) -> Attributes | None:
        """One object; None: there is none."""
        answers = self._ask(_SUBSYSTEM << 8 | kind, REQUEST | ACK, family, body)
        return attributes(answers[0]) if answers else None

    def dump(self, kind: Kind, body: bytes = b"", family: int = NFPROTO_INET) -> list[Attributes]:
        """All objects that `body` selects, as of one moment. InterruptedError: they never stood still."""
        answers = of_one_moment(lambda: self._ask(_SUBSYSTEM << 8 | kind, REQUEST | ACK | DUMP, family, body))
        return [attributes(answer) for answer in answers]

    def has_match(self, name: str, revision: int) -> bool:
        """Whether rules may use this match of xtables; its module is loaded if need be.

        An inet table cannot load it: the kernel derives the module's name from the family, and inet has none.
        """
        body = attribute(1, name) + attribute(2, revision) + attribute(3, 0)
        try:
            return bool(self._ask(_COMPAT_SUBSYSTEM << 8, REQUEST | ACK, NFPROTO_IPV4, body))
        except NftablesError as error:
            if error.errno in (errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT):
                return False  # no nft_compat
            raise

    def _ask(self, kind: int, flags: int, family: int, body: bytes) -> list[bytes]:
        """The bodies of all answers. InterruptedError: a dump was overtaken by a change and says nothing reliable."""
        self._sequence += 1
        self._socket.send(_pack(kind, flags, family, body, self._sequence))
        answers: list[bytes] = []
        interrupted = False
        while True:
            for answer, marks, sequence, content in self._receive():
                if sequence != self._sequence:
                    continue
                interrupted = interrupted or bool(marks & DUMP_INTERRUPTED)
                if answer in (ERROR, DONE):
                    (code,) = struct.unpack_from("=i", content)
                    if code and code != -errno.ENOENT:
                        raise NftablesError(-code, "reading")
                    if interrupted:
                        raise InterruptedError
                    return answers
                answers.append(content[_FAMILY_HEADER.size :])

    def _receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Type, flags, sequence number and body of each message in the next datagram."""
        yield from ((each.kind, each.flags, each.sequence, each.body) for each in messages(self._socket.recv(_ROOM)))


class Watch:
    """Wakes whoever polls `fileno` when somebody commits to nf_tables of this network namespace."""

    def __init__(self, opened: socket.socket | None = None) -> None:
        self._socket = opened or open_socket()
        self._socket.setblocking(False)
        self._socket.bind((0, 0))
        _only_generations(self._socket)
        self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _GROUP_NFTABLES)

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def others(self, port: int) -> bool:
        """Takes what is waiting: whether anybody but the connection with this `port` has committed."""
        found = False
        while True:
            try:
                data = self._socket.recv(_ROOM)
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                found = True  # news were lost
                continue
            found = found or any(each.port != port for each in messages(data))


def open_socket() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)


def _only_generations(opened: socket.socket) -> None:
    """Lets the kernel drop all news but "a transaction was committed", one per transaction.

    kube-proxy replaces thousands of rules at a time, and each of them would be told.
    """
    load_type, equal, accept, drop = (0x28, 0, 0, 4), 0x15, (0x06, 0, 0, 0xFFFFFFFF), (0x06, 0, 0, 0)
    wanted = socket.htons(_SUBSYSTEM << 8 | Kind.NEWGEN)  # netlink is in host order, the load in network order
    code = b"".join(struct.pack("=HBBI", *each) for each in (load_type, (equal, 0, 1, wanted), accept, drop))
    program = ctypes.create_string_buffer(code, len(code))
    opened.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, struct.pack("HL", 4, ctypes.addressof(program)))


def _pack(kind: int, flags: int, family: int, body: bytes, sequence: int, resource: int = 0) -> bytes:
    return pack(kind, flags, sequence, _FAMILY_HEADER.pack(family, 0, resource) + body)
