"""What happens while nobody asks: routes that are lost for a moment, messages that nobody should have sent.

This decides how a test watches: `RouteSampler` asks a BIRD every 10 ms whether it still has usable routes,
`BgpCapture` reads every frame of an interface. It does not decide what is wrong (the test does) nor how BGP
reads (`bgp_wire`). Both run in threads of their own inside the test process, and say how well they could
watch.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import struct
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.fabric.bgp_wire import BgpMessage, BgpType, Reassembly
from tests.fabric.bird_control import BirdControl, BirdError
from tests.fabric.netns import Namespace
from tests.fabric.process import poll

_ETH_P_ALL = 3
_ETH_P_IP, _ETH_P_IPV6 = 0x0800, 0x86DD
_SO_TIMESTAMPNS = 35
_SO_RCVBUFFORCE = 33
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_FRAME_MAX = 1 << 17  # a TSO frame may be 64 KiB and more


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """What a sampler saw. A loss lasts from the last sample that had the route to the next that has it.

    `losses` counts the times a prefix went away, all prefixes together; `longest_loss_ms` is the longest of
    them, up to now for one that is not back. `longest_blind_ms` is the longest time between two samples: a
    loss shorter than that may have gone unseen, so a test that asserts "no loss" has seen nothing if this
    is large.
    """

    count: int
    losses: int
    longest_loss_ms: float
    longest_blind_ms: float
    lost: frozenset[str]


class _Watcher(ABC):
    """A thread for a `with` block. If it dies, whoever asks for its result is told: silence is not peace."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._problem: Exception | None = None
        self._thread = threading.Thread(target=self._guarded, name=type(self).__name__, daemon=True)

    def __enter__(self) -> Self:
        self._open()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._close()

    def _guarded(self) -> None:
        try:
            self._run()
        except Exception as problem:  # noqa: BLE001 - raised again where the result is asked for
            self._problem = problem

    def _check(self) -> None:
        if self._problem is not None:
            raise RuntimeError(f"{type(self).__name__} stopped watching") from self._problem

    @abstractmethod
    def _open(self) -> None: ...

    @abstractmethod
    def _run(self) -> None: ...

    @abstractmethod
    def _close(self) -> None: ...


class RouteSampler(_Watcher):
    """Watch that BIRD keeps usable routes for `prefixes`, within a `with` block.

    A prefix counts from the first sample that has it. BIRD not answering at all is a loss of every prefix.
    """

    def __init__(self, control_path: Path, prefixes: Sequence[str], interval_s: float = 0.01) -> None:
        super().__init__()
        self._control_path = control_path
        self._prefixes = tuple(prefixes)
        self._interval_s = interval_s
        self._control: BirdControl | None = None
        self._count = self._losses = 0
        self._longest_loss = self._longest_blind = 0.0
        self._had_at: dict[str, float] = {}  # when each prefix was last seen
        self._away: set[str] = set()

    def result(self) -> Samples:
        """What was seen so far; may be asked inside the block and after it."""
        self._check()
        with self._lock:
            now = time.monotonic()
            open_losses = [now - self._had_at[prefix] for prefix in self._away]
            return Samples(
                count=self._count,
                losses=self._losses,
                longest_loss_ms=max([self._longest_loss, *open_losses]) * 1000,
                longest_blind_ms=self._longest_blind * 1000,
                lost=frozenset(self._away),
            )

    def wait_samples(self, count: int = 10, timeout_s: float = 10.0) -> None:
        """Wait for so many more samples: before the first event, so that every route is known."""
        target = self.result().count + count
        poll(
            lambda: self.result().count >= target, timeout_s, lambda: f"the sampler stands at {self.result()}"
        )

    def _open(self) -> None:
        """BIRD is connected to by the thread, and again whenever it comes back."""

    def _close(self) -> None:
        if self._control is not None:
            self._control.close()

    def _run(self) -> None:
        before = due = time.monotonic()
        while not self._stop.is_set():
            held = {prefix for prefix in self._prefixes if self._has(prefix)}
            now = time.monotonic()
            with self._lock:
                self._note(held, now)
                self._longest_blind = max(self._longest_blind, now - before)
            before = now
            due = max(due + self._interval_s, now)
            self._stop.wait(due - now)

    def _note(self, held: set[str], now: float) -> None:
        self._count += 1
        for prefix in held:
            if prefix in self._away:
                self._away.discard(prefix)
                self._longest_loss = max(self._longest_loss, now - self._had_at[prefix])
            self._had_at[prefix] = now
        for prefix in self._had_at.keys() - held - self._away:
            self._away.add(prefix)
            self._losses += 1

    def _has(self, prefix: str) -> bool:
        try:
            if self._control is None:
                self._control = BirdControl(self._control_path, timeout_s=1.0)
            lines = self._control.ask(f"show route {prefix} primary")
        except BirdError:
            return False
        except OSError:
            if self._control is not None:
                with contextlib.suppress(OSError):
                    self._control.close()
            self._control = None
            return False
        return any(" unicast [" in line for line in lines)


class BgpCapture(_Watcher):
    """Capture the BGP messages on one interface of a namespace, both directions, within a `with` block.

    Reads the interface by a packet socket, so nothing has to be installed and nothing has to be flushed.
    Leaving the block waits until what is on its way has been read. `dropped` frames are counted: assert
    that it is 0 before believing a count.
    """

    def __init__(self, namespace: Namespace, interface: str, port: int = 179) -> None:
        super().__init__()
        self._namespace = namespace
        self._interface = interface
        self._reassembly = Reassembly(port)
        self._messages: list[BgpMessage] = []
        self._dropped = 0

    def _open(self) -> None:
        self._socket = self._namespace.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 32 << 20)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self._socket.bind((self._interface, _ETH_P_ALL))

    def _close(self) -> None:
        self._socket.close()

    @property
    def dropped(self) -> int:
        """Frames the kernel could not hand to us."""
        with self._lock:
            return self._dropped

    def messages(self, *types: BgpType, src: str | None = None, dst: str | None = None) -> list[BgpMessage]:
        """The messages so far in the order of capture: of these types (none named: all), from and to."""
        self._check()
        with self._lock:
            return [
                it
                for it in self._messages
                if (not types or it.type in types) and src in (None, it.src) and dst in (None, it.dst)
            ]

    def besides_keepalives(self, src: str | None = None, dst: str | None = None) -> list[BgpMessage]:
        """All but KEEPALIVEs: what a test that wants silence asserts to be empty."""
        return [it for it in self.messages(src=src, dst=dst) if it.type is not BgpType.KEEPALIVE]

    def counts(self) -> Counter[str]:
        """How many messages of each type were seen, by the type's name."""
        return Counter(it.type.name for it in self.messages())

    def notifications(self) -> list[tuple[int, int]]:
        """Code and subcode of every NOTIFICATION seen, in order."""
        return [it.notification for it in self.messages(BgpType.NOTIFICATION) if it.notification is not None]

    def wait(
        self, wanted: Callable[[BgpMessage], bool], timeout_s: float = 10.0, what: str = "such message"
    ) -> BgpMessage:
        """The first message, from the beginning of the capture, for which `wanted` holds; waits for it."""

        def probe() -> BgpMessage | None:
            return next((it for it in self.messages() if wanted(it)), None)

        def failure() -> str:
            return f"no {what} on {self._interface}; seen: {[str(it) for it in self.messages()[-20:]]}"

        return poll(probe, timeout_s, failure)

    def _run(self) -> None:
        while True:
            readable = select.select([self._socket], [], [], 0.05)[0]
            if not readable and self._stop.is_set():
                break
            if readable:
                self._read()
        packets_and_drops = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        with self._lock:
            self._dropped += struct.unpack("=II", packets_and_drops)[1]

    def _read(self) -> None:
        try:
            packet, ancillary, _, address = self._socket.recvmsg(_FRAME_MAX, 64)
        except OSError as problem:
            if problem.errno != errno.ENETDOWN:  # the cable was cut; frames come again when it is mended
                raise
            return
        if address[1] not in (_ETH_P_IP, _ETH_P_IPV6):
            return
        seen = time.time()
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS:
                seconds, nanoseconds = struct.unpack("=qq", data[:16])
                seen = seconds + nanoseconds / 1e9
        with self._lock:
            self._messages += self._reassembly.feed(seen, packet)
