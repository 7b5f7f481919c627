"""Runs the node's health checks and keeps their verdict: while one fails, nothing is worth announcing.

A check has the words of a kubelet probe (httpGet, tcpSocket, exec; periods and thresholds). Its verdict changes
after a number of equal results in a row. Until every check has had its first result the verdict is unknown, and
what is announced stays as it is: a daemon that restarts must flap nothing. What follows from a verdict is
decided in `plan`.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import signal
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from bgpd.config.bgp import HealthCheck
from bgpd.runtime.store import Store

OUTPUT_LIMIT = 200


@dataclass(frozen=True, slots=True)
class Check:
    """`failing` None: no result yet. `streak` counts equal results; `reason` is that of the last failure."""

    failing: bool | None = None
    streak: int = 0
    last_failed: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Health:
    """`known` False: some check has no result yet. `failing` maps checks to their reasons."""

    known: bool = True
    failing: Mapping[str, str] | None = None

    @property
    def reason(self) -> str:
        """Why the node is unhealthy; empty when it is not."""
        return "; ".join(f"health check {name}: {why}" for name, why in sorted((self.failing or {}).items()))


def judged(check: Check, failure: str, rule: HealthCheck) -> Check:
    """The check after one more result; an empty `failure` is a success. The first success counts at once."""
    failed = bool(failure)
    streak = check.streak + 1 if failed == check.last_failed else 1
    judgement = replace(check, streak=streak, last_failed=failed, reason=failure or check.reason)
    if failed and streak >= rule.failure_threshold:
        return replace(judgement, failing=True)
    if not failed and (check.failing is None or streak >= rule.success_threshold):
        return replace(judgement, failing=False)
    return judgement


def combined(checks: Mapping[str, Check]) -> Health:
    """All checks as one verdict."""
    failing = {name: check.reason for name, check in checks.items() if check.failing}
    return Health(all(check.failing is not None for check in checks.values()), failing)


class Prober:
    """Runs the checks that `rules` names and publishes their verdict in `health`."""

    def __init__(self, rules: Sequence[HealthCheck], health: Store[Health]) -> None:
        self._rules, self._health = rules, health
        self._checks = {rule.name: Check() for rule in rules}
        health.publish(combined(self._checks))

    async def run(self) -> None:
        """For ever; every check at its own pace."""
        async with asyncio.TaskGroup() as group:
            for rule in self._rules:
                group.create_task(self._repeat(rule), name=f"health {rule.name}")

    async def _repeat(self, rule: HealthCheck) -> None:
        while True:
            failure = await probe(rule)
            self._checks[rule.name] = judged(self._checks[rule.name], failure, rule)
            self._health.publish(combined(self._checks))
            await asyncio.sleep(rule.period_seconds)


async def probe(rule: HealthCheck) -> str:
    """One result: empty for success, else what went wrong."""
    try:
        async with asyncio.timeout(rule.timeout_seconds):
            if rule.http_get is not None:
                return await asyncio.to_thread(_http, rule.http_get, float(rule.timeout_seconds))
            if rule.tcp_socket is not None:
                return await _tcp(str(rule.tcp_socket.address), rule.tcp_socket.port)
            assert rule.exec is not None
            return await _exec(rule.exec)
    except TimeoutError:
        return f"no answer in {rule.timeout_seconds} s"


# without the proxy of the environment: what is probed is on this node
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _http(url: str, timeout_s: float) -> str:
    try:
        with _OPENER.open(url, timeout=timeout_s) as response:
            return "" if response.status < 400 else f"{url} answers {response.status}"
    except urllib.error.HTTPError as error:
        error.close()
        return f"{url} answers {error.code}"
    except (OSError, http.client.HTTPException, ValueError) as error:  # also what speaks something else
        return f"{url}: {getattr(error, 'reason', None) or error or type(error).__name__}"


async def _tcp(address: str, port: int) -> str:
    try:
        _, writer = await asyncio.open_connection(address, port)
    except OSError as error:
        return f"{address} port {port}: {error.strerror or error}"
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return ""


async def _exec(command: Sequence[str]) -> str:
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        return f"{command[0]}: {error.strerror}"
    try:
        output, _ = await process.communicate()
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what it has started holds the pipe as well
        await process.communicate()  # reaps it and closes its pipe
        raise
    if process.returncode == 0:
        return ""
    said = output.decode(errors="replace").strip()[-OUTPUT_LIMIT:]
    return f"{command[0]} ends with {process.returncode}" + (f": {said}" if said else "")
