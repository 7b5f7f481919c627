"""Traffic while something else happens: what is allowed and must not notice, what is not and must not pass.

This decides how connections are made and what counts as noticing. A dropped packet of an allowed connection would be
sent again a second later and nobody would know, so the kernel is asked how often it sent something again. What is not
allowed is counted where it would arrive, in the server's namespace, whatever becomes of the answer.
"""

from __future__ import annotations

import collections
import contextlib
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping

from tests.fabric.netns import Namespace

OPEN = 10  # connections that stay open
TIMEOUT_S = 10.0
_TCP_INFO, _TOTAL_RETRANS_AT = 11, 100  # struct tcp_info, linux/tcp.h
_PENDING = 200  # connections of which nobody hears


class Allowed:
    """New connections one after the other, `rate` a second, and some that stay; a byte goes over each and back."""

    def __init__(
        self,
        client: Namespace,
        server: Namespace,
        source: str,
        to: str,
        port: int,
        rate: int,
        dialed: tuple[str, int],
    ) -> None:
        self._source, self._rate, self._to = source, rate, dialed
        self.made, self.broken = 0, list[str]()
        self._over = threading.Event()
        family = socket.AF_INET6 if ":" in to else socket.AF_INET
        self._listener = server.socket(family, socket.SOCK_STREAM)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind((to, port))
        self._listener.listen(128)
        self._served = threading.Event()
        self._threads = [
            threading.Thread(target=client.call, args=(self._guarded(self._dial),), name="dialing"),
            threading.Thread(target=self._guarded(self._serve), name="serving"),
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """AssertionError: something was noticed."""
        self._over.set()
        self._threads[0].join()
        self._served.set()
        self._threads[1].join()
        self._listener.close()
        assert not self.broken, f"after {self.made} connections: {self.broken[:5]}"

    def wait_more(self, count: int) -> None:
        """Until so many more have been made."""
        target, deadline = self.made + count, time.monotonic() + 3 * TIMEOUT_S
        while self.made < target and not self.broken and time.monotonic() < deadline:
            self._over.wait(0.01)
        assert self.made >= target, f"{self.made} connections, not {target}: {self.broken}"

    def _guarded(self, function: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                function()
            except OSError as error:
                self.broken.append(repr(error))

        return run

    def _dial(self) -> None:
        with contextlib.ExitStack() as stack:
            opened = [stack.enter_context(contextlib.closing(self._dialed())) for _ in range(OPEN)]
            started = time.monotonic()
            while not self._over.is_set():
                with contextlib.closing(self._dialed()) as dialer:
                    self._exchange(dialer)
                self._exchange(opened[self.made % OPEN])
                self.made += 1
                time.sleep(max(0.0, started + self.made / self._rate - time.monotonic()))

    def _dialed(self) -> socket.socket:
        dialer = socket.socket(self._listener.family, socket.SOCK_STREAM)
        dialer.settimeout(TIMEOUT_S)
        dialer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        dialer.bind((self._source, 0))
        dialer.connect(self._to)
        return dialer

    def _exchange(self, dialer: socket.socket) -> None:
        dialer.send(b"?")
        if dialer.recv(1) != b"!":
            raise ConnectionError("closed by the server")
        self._look(dialer)

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            while not self._served.is_set():
                for key, _ in selector.select(0.1):
                    channel = key.fileobj
                    assert isinstance(channel, socket.socket)
                    if channel is self._listener:
                        selector.register(channel.accept()[0], selectors.EVENT_READ)
                    elif not self._answered(channel):
                        selector.unregister(channel)
                        channel.close()
            for each in list(selector.get_map().values()):
                if each.fileobj is not self._listener:
                    each.fileobj.close()  # type: ignore[union-attr]

    def _answered(self, channel: socket.socket) -> bool:
        """False: the client has gone."""
        try:
            if not channel.recv(1):
                return False
            channel.send(b"!")
        except ConnectionResetError:
            return False
        self._look(channel)
        return True

    def _look(self, channel: socket.socket) -> None:
        info = channel.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 104)
        (again,) = struct.unpack_from("=I", info, _TOTAL_RETRANS_AT)
        if again:
            raise ConnectionError(f"{again} packets had to be sent again")


class Forbidden:
    """As many connections to a port that nobody is allowed to; nobody hears of them."""

    def __init__(
        self,
        client: Namespace,
        server: Namespace,
        source: str,
        port: int,
        rate: int,
        dialed: tuple[str, int],
    ) -> None:
        self._server = server
        self._source, self._to, self._rate = source, dialed, rate
        self.tried = 0
        self._over = threading.Event()
        self._table = ["ip6" if ":" in dialed[0] else "ip", "arrived"]
        chain = f"chain packets {{\n type filter hook prerouting priority raw;\n tcp dport {port} counter\n}}"
        server.run(["nft", "-f", "-"], stdin=f"table {' '.join(self._table)} {{\n{chain}\n}}\n")
        self._thread = threading.Thread(target=client.call, args=(self._dial,), name="knocking")
        self._thread.start()

    def stop(self) -> None:
        """AssertionError: something arrived."""
        self._over.set()
        self._thread.join()
        shown = self._server.run(["nft", "list", "table", *self._table]).stdout
        self._server.run(["nft", "delete", "table", *self._table])
        assert "counter packets 0 " in shown, f"of {self.tried} connections: {shown}"
        assert self.tried

    def _dial(self) -> None:
        pending: collections.deque[socket.socket] = collections.deque()
        started = time.monotonic()
        while not self._over.is_set():
            dialer = socket.socket(socket.AF_INET6 if ":" in self._to[0] else socket.AF_INET, socket.SOCK_STREAM)
            dialer.setblocking(False)
            dialer.bind((self._source, 0))
            dialer.connect_ex(self._to)
            pending.append(dialer)
            if len(pending) > _PENDING:
                pending.popleft().close()
            self.tried += 1
            time.sleep(max(0.0, started + self.tried / self._rate - time.monotonic()))
        for each in pending:
            each.close()


@contextlib.contextmanager
def traffic(
    client: Namespace,
    server: Namespace,
    source: str,
    to: str,
    allowed: int,
    forbidden: int,
    rate: int,
    *,
    through: Mapping[int, tuple[str, int]] | None = None,
) -> Iterator[Allowed]:
    """To both ports at once, `rate` a second; at the end nothing must have been noticed, and nothing have passed.

    `through`: what clients dial for each of the ports, where that is not the server itself.
    """
    dialed = through or {port: (to, port) for port in (allowed, forbidden)}
    knocking = Forbidden(client, server, source, forbidden, rate, dialed[forbidden])
    try:
        dialing = Allowed(client, server, source, to, allowed, rate, dialed[allowed])
        try:
            yield dialing
        finally:
            dialing.stop()
    finally:
        knocking.stop()
    print(f"\n{dialing.made:,} connections, and {knocking.tried:,} that were not to be")
