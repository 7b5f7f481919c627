"""Knows the endpoints: the interfaces of pods that policy is enforced on, from ADD to DEL and across our restarts.

Input are the CNI server's requests, what ran before we did (`adopt`), and what the kernel tells of interfaces. Output
is one store of endpoints, which whoever enforces policy follows; an ADD waits until it has. What an interface is to
policy, `interface` decides.

    attach   looks, publishes the endpoint, waits until it is enforced
    detach   publishes without it, and does not wait: what is left in the kernel for a moment only forbids more, and a
             DEL that fails would keep a pod from ending
    run      adopts, then follows: an endpoint whose interface or namespace goes is ended, whoever did it; one whose
             end on the node is moved to another bridge is published anew

An interface that a pod makes in place of its own is none of ours: what was attached is known by the kernel's numbers.
"""

from __future__ import annotations

import asyncio
import errno
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TypeAlias

from bgpd.cni import adopt
from bgpd.cni.interface import RefusedError, attached, differences, endpoint_link, is_there
from bgpd.cni.journal import Journal
from bgpd.model.attachment import Attachment, AttachmentKey
from bgpd.model.brief import brief
from bgpd.model.endpoint import Endpoint, Endpoints, VethLink, is_bridging
from bgpd.model.outcome import DONE, Blocked, Done, Outcome, Retry
from bgpd.netlink.link import PodLink
from bgpd.netlink.links import LinkError, Links, News, NoNamespaceError, Watch
from bgpd.observe import log
from bgpd.runtime.store import Store

RESYNC_S = 60.0  # news of the kernel are hints; looking is the truth, 0.2 ms for each endpoint

Enforced: TypeAlias = Callable[[Endpoint], Awaitable[Outcome]]
"""Waits until the policy of an endpoint that was published is in the kernel."""


class Cause(StrEnum):
    """Why an endpoint ended without a DEL."""

    LINK = "its interface is gone from the node"
    NAMESPACE = "its network namespace has ended"


@dataclass(frozen=True, slots=True)
class _Held:
    """An endpoint as it is published, and the interface as it was when it was attached.

    `problem`: why policy cannot be enforced on it any more, although it is there.
    """

    attachment: Attachment
    endpoint: Endpoint
    seen: PodLink
    problem: str = ""

    @property
    def index(self) -> int:
        """Of what the node has of it."""
        link = self.endpoint.link
        return link.index if isinstance(link, VethLink) else link.parent


class PodAttacher:
    """The CNI server's `Attacher`. `ended` counts the endpoints that ended without a DEL, by cause."""

    def __init__(
        self,
        endpoints: Store[Endpoints],
        journal: Journal,
        caches: Path,
        enforced: Enforced,
        unready: Callable[[], str],
        *,
        resync_s: float = RESYNC_S,
    ) -> None:
        self._store, self._journal, self._caches = endpoints, journal, caches
        self._enforced, self._unready, self._resync_s = enforced, unready, resync_s
        self._held: dict[AttachmentKey, _Held] = {}
        self._unremembered: set[AttachmentKey] = set()
        self._adopted = asyncio.Event()
        self._told = 0  # how often of news
        self.ended: Counter[Cause] = Counter()
        self._log = log.get("endpoints")

    def problems(self) -> Iterator[str]:
        """Endpoints that policy cannot be enforced on."""
        yield from (f"{held.endpoint}: {held.problem}" for held in self._held.values() if held.problem)

    @property
    def blocked(self) -> dict[AttachmentKey, str]:
        """The endpoints that policy cannot be enforced on any more, and why."""
        return {key: held.problem for key, held in self._held.items() if held.problem}

    async def run(self) -> None:
        """Adopts, then follows until cancelled. OSError: the kernel does not tell of its interfaces."""
        watch = Watch()
        try:
            await self._adopt()
            while True:
                await self.take(await self._news(watch))
        finally:
            watch.close()

    async def take(self, news: News) -> None:
        """Looks again at the endpoints that the news are about."""
        self._told += 1
        concerned = [
            key
            for key, held in self._held.items()
            if news.lost or held.index in news.links or held.seen.netns in news.namespaces
        ]
        if concerned:
            await self._verify(concerned, news.namespaces)

    # --- what the CNI server asks for ---------------------------------------------------------------------

    async def attach(self, attachment: Attachment) -> Outcome:
        await self._adopted.wait()
        told = self._told
        try:
            seen = await asyncio.to_thread(_look, attachment)
            endpoint = attached(attachment, seen)
        except NoNamespaceError as error:
            return Retry(str(error))
        except (LinkError, RefusedError) as error:
            return Blocked(str(error))
        except OSError as error:
            return Retry(_refusal(error))
        key = attachment.key
        self._held[key] = _Held(attachment, endpoint, seen)
        self._publish()
        if self._told != told:  # what went before it was published was nobody's news
            await self._verify([key])
        outcome = await self._enforced(self._held[key].endpoint) if key in self._held else DONE
        if isinstance(outcome, Done) and key not in self._held:
            return Retry(f"{key.interface} went while it was being attached")
        return outcome

    async def detach(self, key: AttachmentKey, attachment: Attachment | None) -> Outcome:
        await self._adopted.wait()  # or what is being adopted just now would come after it
        self._drop([key])
        return DONE

    async def check(self, attachment: Attachment) -> Collection[str]:
        await self._adopted.wait()
        held = self._held.get(attachment.key)
        if held is None:
            return ("no policy is enforced on it: its interface, or its network namespace, went before",)
        try:
            now = await asyncio.to_thread(_look_again, held)
        except LinkError as error:
            return (str(error),)
        except OSError as error:
            return (_refusal(error),)
        found = differences(held.endpoint, held.seen, now)
        return (*found, held.problem) if held.problem else found

    async def collect(self, keep: Collection[AttachmentKey]) -> Outcome:
        await self._adopted.wait()
        self._drop(self._held.keys() - set(keep) - self._unremembered)
        return DONE

    def status(self) -> str:
        if not self._adopted.is_set():
            return "bgpd is still looking for the pods that run already"
        return self._unready()

    # --- what there is ------------------------------------------------------------------------------------

    def _publish(self) -> None:
        endpoints = {key: held.endpoint for key, held in self._held.items()}
        self._store.publish(endpoints, synced=self._adopted.is_set())

    def _drop(self, keys: Iterable[AttachmentKey]) -> None:
        for key in list(keys):
            self._held.pop(key, None)
            self._unremembered.discard(key)
        self._publish()

    async def _adopt(self) -> None:
        """What it cannot find is told once: it will not be there later either."""
        found = await asyncio.to_thread(adopt.find, dict(self._journal.attachments), self._caches)
        for each in found.running:
            self._held[each.attachment.key] = _Held(each.attachment, each.endpoint, each.seen)
            if each.frame is not None:
                self._remember(each)
        for key in found.ended:
            self._forget(key)
        self._adopted.set()
        self._publish()
        changed = [text for held in self._held.values() for text in _changed(held)]
        bridging = [str(held.endpoint) for held in self._held.values() if is_bridging(held.endpoint.link)]
        told = {
            "ignored": brief(found.ignored),
            "changed_by_pod": brief(changed),
            "macvlans_in_bridge_mode": brief(bridging),
        }
        from_cache = sum(each.frame is not None for each in found.running)
        lists = {name: each for name, each in told.items() if each}
        self._log.info("adopted", endpoints=len(self._held), from_cache=from_cache, **lists)

    def _remember(self, found: adopt.Running) -> None:
        """From now on it is as if it had been attached through us."""
        assert found.frame is not None
        key = found.attachment.key
        try:
            self._journal.add(found.frame, found.attachment)
        except OSError as error:
            self._unremembered.add(key)
            self._log.warning("an adopted pod cannot be remembered", attachment=str(key), error=_place(error))

    def _forget(self, key: AttachmentKey) -> None:
        """Its namespace has ended: nothing of it is left, and nobody may ever send the DEL."""
        try:
            self._journal.remove(key)
        except OSError as error:
            self._log.warning("an attachment cannot be forgotten", attachment=str(key), error=_place(error))

    # --- what becomes of it -------------------------------------------------------------------------------

    async def _news(self, watch: Watch) -> News:
        """The kernel's, or that it is time to look by ourselves."""
        try:
            async with asyncio.timeout(self._resync_s):
                return await watch.news()
        except TimeoutError:
            return News(lost=True)

    async def _verify(self, keys: Collection[AttachmentKey], ended: Collection[int] = ()) -> None:
        """Looks whether they are as they were; `ended` are numbers of namespaces that have."""
        looked_at = {key: self._held[key] for key in keys if key in self._held}
        try:
            found = await asyncio.to_thread(_look_outside, looked_at, ended)
        except OSError as error:
            self._log.warning("endpoints cannot be looked at", error=_refusal(error))
            return
        changes = {key: now for key, now in found.items() if self._held.get(key) is looked_at[key]}
        for key, now in changes.items():
            if isinstance(now, Cause):
                self._end(key, now)
            else:
                self._held[key] = now
                self._tell_change(looked_at[key], now)
        if changes:
            self._publish()

    def _tell_change(self, before: _Held, now: _Held) -> None:
        if now.problem:
            self._log.warning("endpoint cannot be policed", endpoint=str(now.endpoint), reason=now.problem)
        elif now.endpoint != before.endpoint or before.problem:
            link = now.endpoint.link
            self._log.info("endpoint has another link", endpoint=str(now.endpoint), link=str(link))

    def _end(self, key: AttachmentKey, cause: Cause) -> None:
        held = self._held.pop(key)
        self._unremembered.discard(key)
        self.ended[cause] += 1
        self._log.warning("endpoint ended", endpoint=str(held.endpoint), attachment=str(key), cause=cause.value)
        if cause is Cause.NAMESPACE and self._journal.attachments.get(key) == held.attachment:
            self._forget(key)


# --- looking, in a thread ---------------------------------------------------------------------------------


def _look(attachment: Attachment) -> PodLink:
    with Links() as links:
        return links.pod(Path(attachment.netns), attachment.key.interface)


def _look_again(held: _Held) -> PodLink | None:
    """The interface that was attached, or the one that has its name now."""
    netns, inside = Path(held.attachment.netns), held.seen.inside
    with Links() as links:
        found = {each.inside.index: each for each in links.pods(links.number(netns))}
    return found.get(inside.index) or next((it for it in found.values() if it.inside.name == inside.name), None)


def _look_outside(
    looked_at: Mapping[AttachmentKey, _Held], ended: Collection[int]
) -> Mapping[AttachmentKey, _Held | Cause]:
    """What is not as it was."""
    found: dict[AttachmentKey, _Held | Cause] = {}
    with Links() as links:
        for key, held in looked_at.items():
            outside = links.here(held.index)
            if not _is_alive(links, held, held.seen.netns in ended):
                found[key] = Cause.NAMESPACE
            elif not is_there(held.seen, outside):
                found[key] = Cause.LINK
            else:
                master = links.here(outside.master) if outside and outside.master is not None else None
                now = _relinked(held, replace(held.seen, outside=outside, master=master))
                if now != held:
                    found[key] = now
    return found


def _is_alive(links: Links, held: _Held, told: bool) -> bool:
    """`told`: a namespace of its number has ended; the number, and the path, may be another's by now."""
    try:
        return links.number(Path(held.attachment.netns)) == held.seen.netns
    except LinkError:
        return not told and links.is_alive(held.seen.netns)


def _relinked(held: _Held, now: PodLink) -> _Held:
    try:
        return replace(held, endpoint=replace(held.endpoint, link=endpoint_link(held.attachment, now)), problem="")
    except RefusedError as error:
        return replace(held, problem=str(error))


def _changed(held: _Held) -> Iterator[str]:
    """What a pod that ran before us has made of its interface, which nobody believes."""
    has, given, name = held.seen.inside, held.endpoint, held.endpoint.key.interface
    if has.name != name:
        yield f"{given}: the interface is named {has.name}"
    if has.mac != given.mac:
        yield f"{given}: the MAC address is {has.mac}, and {given.mac} was given"


def _refusal(error: OSError) -> str:
    remedy = "; bgpd needs CAP_NET_ADMIN" if error.errno in (errno.EPERM, errno.EACCES) else ""
    return f"the kernel does not tell of interfaces: {error.strerror or error}{remedy}"


def _place(error: OSError) -> str:
    return f"{error.filename or 'the disk'}: {error.strerror}"
