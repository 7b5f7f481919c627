"""One try of a monitor: speaks to a pod as an F5 would, and says whether the answer will do.

http and tcp connect, send what is to be sent and look for `recv` in the first 5,120 bytes that come back (F5
K3451). Without `recv` any answer will do for http, and for tcp the connection. udp sends a datagram: without `recv`
the pod is up unless it, or its node, says that nobody listens. From the host's own network namespace, with whatever
address the route to the pod prefers, as kubelet's probes.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
from typing import NamedTuple

from bgpd.config.scalar import shown
from bgpd.model.virtualserver import Member, Monitor, MonitorProtocol
from bgpd.virtualservers.pattern import Pattern, pattern

ANSWER_BYTES = 5120
REFUSAL_S = 1.0  # how long a pod has to say that a UDP port is closed
_EXCERPT = 60
_STATUS = re.compile(rb"HTTP/\d(?:\.\d)? ([45]\d\d[^\r\n]{0,40})")


class Result(NamedTuple):
    """`failure` empty: a success, with `note` if there is something strange about it."""

    failure: str
    note: str = ""


async def probe(monitor: Monitor, member: Member, within_s: float) -> Result:
    """One result, in `within_s` seconds at the latest."""
    try:
        async with asyncio.timeout(within_s):
            if monitor.protocol is MonitorProtocol.UDP:
                return await _udp(monitor, member, within_s)
            return await _stream(monitor, member)
    except TimeoutError:
        return Result(f"no answer in {within_s:.3g} s")
    except OSError as error:
        return Result(os.strerror(error.errno) if error.errno else str(error))


async def _stream(monitor: Monitor, member: Member) -> Result:
    reader, writer = await asyncio.open_connection(str(member.address), member.port)
    try:
        if monitor.send:
            writer.write(monitor.send)
        if monitor.protocol is MonitorProtocol.TCP and not monitor.recv:
            return Result("")
        return await _answer(reader, monitor)
    finally:
        writer.transport.abort()  # a pod that sends on and on is not waited for


async def _answer(reader: asyncio.StreamReader, monitor: Monitor) -> Result:
    wanted = pattern(monitor.recv) if monitor.recv else None
    answer = b""
    while len(answer) < ANSWER_BYTES:
        piece = await reader.read(ANSWER_BYTES - len(answer))
        answer += piece
        if answer and await _found(wanted, answer):
            return Result("", _strange(monitor, answer))
        if not piece:
            break
    return _missing(monitor, answer)


async def _udp(monitor: Monitor, member: Member, within_s: float) -> Result:
    loop = asyncio.get_running_loop()
    wanted = pattern(monitor.recv) if monitor.recv else None
    family = socket.AF_INET if member.address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as opened:
        opened.setblocking(False)
        await loop.sock_connect(opened, (str(member.address), member.port))
        await loop.sock_sendall(opened, monitor.send)
        if wanted is None:
            try:
                async with asyncio.timeout(min(REFUSAL_S, within_s / 2)):  # silence ends before the try does
                    await loop.sock_recv(opened, ANSWER_BYTES)
            except TimeoutError:
                pass  # which is what a healthy one may answer
            return Result("")
        while True:
            answer = await loop.sock_recv(opened, ANSWER_BYTES)
            if await _found(wanted, answer):
                return Result("")


async def _found(wanted: Pattern | None, answer: bytes) -> bool:
    if wanted is None or wanted.literal:
        return wanted is None or wanted.found_in(answer)
    return await asyncio.to_thread(wanted.found_in, answer)  # whoever wrote the expression may have meant ill


def _strange(monitor: Monitor, answer: bytes) -> str:
    status = _STATUS.match(answer) if monitor.protocol is MonitorProtocol.HTTP else None
    return f"passes on an error: the answer is {status[1].decode(errors='replace')}" if status else ""


def _missing(monitor: Monitor, answer: bytes) -> Result:
    if not answer:
        return Result("the connection was closed without an answer")
    begins = shown(answer[:_EXCERPT].decode(errors="replace"))
    return Result(f"recv {shown(monitor.recv)} is not in the answer, which begins {begins}")
