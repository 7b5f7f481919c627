"""What can be seen of NetworkPolicy in a running daemon: the answers of its commands, the figures for /metrics.

Reads and changes nothing. The rows are `report`'s, the reasons `explain`'s, the drops `events`'; how a metric is
called is up to `observe.samples`.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from bgpd.datapath import layout
from bgpd.datapath.layout import PolicyVerdict
from bgpd.datapath.libbpf import DatapathError
from bgpd.datapath.maps import Map
from bgpd.model.attachment import AttachmentKey
from bgpd.model.endpoint import Endpoint
from bgpd.model.pod import AUDIT
from bgpd.model.policy import RuleRef, Snapshot
from bgpd.observe.control import USAGE, ControlError, Handler, Progress
from bgpd.observe.samples.policy import Policy
from bgpd.policy import audit, explain, report
from bgpd.policy.chains import Family
from bgpd.policy.entries import PLACES, Contents
from bgpd.policy.events import Event, Events
from bgpd.policy.explain import Answer, Question, QuestionError
from bgpd.policy.fit import Misfit
from bgpd.policy.map import KEY, sizes
from bgpd.policy.policing import Policing
from bgpd.policy.report import Row, State
from bgpd.runtime.reconcile import Reconciler

SETTLE_S = 1.0  # a change takes some ten milliseconds from here to the kernel
STILL_HERE_S = 10.0  # a client that hears nothing for thrice as long gives up
FATES = ("dropped", "audited")
NOT_READ = "what the kernel has is not read yet; `bgpd status` says what is in the way"

_Standing: TypeAlias = tuple[Mapping[AttachmentKey, Endpoint], Mapping[AttachmentKey, str], str, Sequence[Misfit]]
"""The interfaces, why some of them cannot be policed, why nothing gets into the kernel, and what does not fit."""


class Sight:
    """Of one `policing`. `blocked` gives the endpoints that policy cannot be enforced on any more, and why."""

    def __init__(
        self,
        policing: Policing,
        blocked: Callable[[], Mapping[AttachmentKey, str]],
        wall_clock_offset_s: float,
    ) -> None:
        self._policing, self._blocked = policing, blocked
        self._audited = audit.Tally()
        self.events = Events(policing, wall_clock_offset_s, [self._audited.add])

    @property
    def handlers(self) -> Mapping[str, Handler]:
        return {
            "endpoints": self._endpoints,
            "policy list": self._list,
            "policy explain": self._explain,
            "policy audit": self._audit,
            "flows": self._flows,
        }

    def problems(self) -> Iterator[str]:
        if self.events.problem:
            yield f"policy: {self.events.problem}"

    # --- commands -----------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """How many endpoints are in which state, and of how many policies."""
        blocked = [misfit.policy for misfit in self._policing.misfits]
        return {"endpoints": self._states(), "policies": len(self._counting()), "blocked": blocked}

    async def _endpoints(self, arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        return {"endpoints": [row.shown() for row in self._rows()]}

    async def _list(self, arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        snapshot, contents = self._policing.snapshot, self._policing.contents
        rows = await asyncio.to_thread(report.policies, snapshot, contents, self._policing.misfits)
        return {"policies": rows, "problems": list(self._policing.problems())}

    async def _explain(self, arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        """As of now: what has changed shortly before may reach the kernel first."""
        loop = self._policing.maps
        settled = await loop.wait_until(loop.kick(), SETTLE_S)
        maps, snapshot, cookies = self._maps(), self._policing.snapshot, self._policing.contents.cookies
        if maps is None:
            raise ControlError(NOT_READ)
        words = (str(arguments.get("client")), str(arguments.get("server")))
        try:
            asked = await asyncio.to_thread(explain.question, snapshot, *words)
            found = await asyncio.to_thread(explain.answers, _lookup(maps), snapshot, cookies, asked)
        except QuestionError as error:
            raise ControlError(str(error), USAGE) from None
        except DatapathError as error:
            raise ControlError(str(error)) from None
        return self._explained(found, asked, cookies, snapshot, settled=settled)

    def _explained(
        self,
        found: Sequence[Answer],
        asked: Question,
        cookies: Mapping[int, RuleRef],
        snapshot: Snapshot,
        *,
        settled: bool,
    ) -> dict[str, Any]:
        flows = [explain.shown(answer, asked, cookies, snapshot) for answer in found]
        differs = any(verdict.disagreement for answer in found for verdict in answer.verdicts)
        ends = {asked.client.pod, asked.server.pod}
        held = (misfit.reason for misfit in self._policing.misfits if not ends.isdisjoint(misfit.pods))
        reason = self._policing.unready() or next(held, "")
        pending = reason or ("" if settled else "the newest policies are still being written")
        text = ""
        if differs:
            remedy = "ask again; if it stays, bgpd has a defect: keep this answer and `bgpd status` for a report"
            text = f"the kernel does not do what the policies say: {pending or remedy}"
        return {"flows": flows, "notes": list(explain.notes(asked)), "disagreement": text, "notInForce": reason}

    async def _flows(self, arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        """Those that are kept; with `follow` those that come, each a progress of JSON, until the client goes.

        What is strange about asking comes first then, as `note`: the pod may be on its way.
        """
        wanted = _wanted(arguments)
        if self.events.problem:
            raise ControlError(self.events.problem)
        if arguments.get("follow"):

            def tell(event: Event) -> None:
                if wanted(event):
                    progress(json.dumps(event.shown()))

            unready = self._policing.unready()
            about = [f"policy is not in force: {unready}"] if unready else []
            for note in (*about, *self._notes(arguments.get("pod"))):
                progress(json.dumps({"note": note}))
            with self.events.heard_by(tell):
                while True:
                    await asyncio.sleep(STILL_HERE_S)
                    progress("")
        kept = self.events.kept
        rows = [event.shown() for event in kept if wanted(event)]
        if not rows and arguments.get("pod") and self._is_nobody(str(arguments["pod"])):
            raise ControlError(f"there is no pod {arguments['pod']} in Kubernetes, and no flow of it is kept", USAGE)
        return {
            "flows": rows,
            "lost": self.events.lost,
            "forgotten": self.events.told - len(kept),
            "notes": list(self._notes(arguments.get("pod"))),
            "notInForce": self._policing.unready(),
        }

    async def _audit(self, arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
        """What ending audit mode would drop, in one namespace, or in all that are in it."""
        if self.events.problem:
            raise ControlError(self.events.problem)
        audited, asked = self._policing.snapshot.audited, arguments.get("namespace")
        namespace = None if asked is None else str(asked)
        if namespace is not None and not self._policing.objects.unread:
            if namespace not in self._policing.snapshot.namespaces:
                raise ControlError(f"there is no Namespace {namespace} in Kubernetes", USAGE)
            if namespace not in audited:
                raise ControlError(f'{namespace} is not in audit mode: it has no annotation {AUDIT}: "true"', USAGE)
        chosen = audited if namespace is None else audited & {namespace}
        return {
            "namespaces": list(audit.standing(chosen, self._rows())),
            "flows": self._audited.shown(chosen),
            "forgotten": self._audited.forgotten,
            "notInForce": self._policing.unready(),
        }

    def _notes(self, pod: str | None) -> Iterator[str]:
        """Why there may be nothing to see of it here."""
        if pod is None or self._policing.objects.unread:
            return
        there = self._policing.snapshot.pods.get(pod)
        if self._is_nobody(pod):
            yield f"there is no pod {pod} in Kubernetes"
        elif there is not None and pod not in self._policing.snapshot.local:
            place = f"is on {there.node}" if there.node else "has no node yet"
            yield f"{pod} {place}: here is only what pods of this node drop of it, or to it"

    def _is_nobody(self, pod: str) -> bool:
        snapshot = self._policing.snapshot
        return not self._policing.objects.unread and pod not in snapshot.pods and pod not in snapshot.local

    # --- what there is ------------------------------------------------------------------------------------

    def _rows(self) -> Iterator[Row]:
        return report.rows(self._policing.snapshot, self._policing.contents, *self._standing())

    def _states(self) -> dict[str, int]:
        counted = report.states(self._policing.snapshot, *self._standing())
        return {state.value: counted.get(state, 0) for state in State}

    def _standing(self) -> _Standing:
        policing = self._policing
        blocked = {**policing.blocked, **self._blocked()}
        return policing.endpoints.newest.value, blocked, policing.unready(), policing.misfits

    def _counting(self) -> set[str]:
        """The policies that isolate a pod of this node."""
        return {policy for rules in self._policing.contents.sets.values() for policy in rules.policies}

    def _maps(self) -> Mapping[str, Map] | None:
        """The maps that the programs ask; None: they have not been looked at yet."""
        return self._policing.datapath.installed().maps if self._policing.maps.have else None

    # --- metrics ------------------------------------------------------------------------------------------

    def figures(self) -> Policy:
        """What /metrics shows."""
        policing, maps = self._policing, self._maps()
        stages = policing.maps.have.get(KEY)
        there = stages.steps[-1] if stages is not None else Contents()
        others = Counter({"policy_links": len(policing.links.have)})
        others.update({f"macvlan_{name}": 0 for name in ("stations", "addresses", "vlans", "tunnels")})
        others.update({f"ipvlan_{name}": 0 for name in ("addresses", "pods", "foreign", "vlans", "tunnels")})
        others.update(name for name, _ in (*policing.macvlans.stations.have, *policing.ipvlans.neighbors.have))
        return Policy(
            endpoints=self._states(),
            policies=len(self._counting()),
            blocked={place: sum(each.place == place for each in policing.misfits) for place in PLACES},
            in_force=self._in_force(),
            events_lost=lambda: self.events.lost,
            capacity={name: layout.MAPS[name].max_entries for name in (*sizes(Contents()), *others)},
            entries=lambda: {**sizes(there), **others},
            packets=lambda: {} if maps is None else _packets(maps),
        )

    def _in_force(self) -> dict[str, bool]:
        """Whether the kernel has what is wanted, by the loop that sees to it. While that is not known, it has not."""
        policing = self._policing
        missing: dict[Reconciler[Any, Any], bool] = {
            policing.maps: KEY not in policing.maps.have or bool(policing.objects.unread),
            policing.links: not policing.endpoints.newest.synced,
            policing.tables: len(policing.tables.have) < len(Family),
        }
        return {
            loop.name: loop.ever_settled and not (loop.error or loop.trouble or missing.get(loop))
            for loop in policing.loops
        }


def _lookup(maps: Mapping[str, Map]) -> Callable[[str, bytes], bytes | None]:
    return lambda name, key: maps[name].lookup(key)


def _packets(maps: Mapping[str, Map]) -> Mapping[str, int]:
    """By verdict, since the map was made; nothing while nobody may look."""
    counters = maps["policy_verdicts"]
    try:
        each_cpu = {it: counters.lookup_each_cpu(struct.pack("I", it)) for it in PolicyVerdict}
    except DatapathError:
        return {}  # the loop that keeps the maps says so, with its reason
    return {
        verdict.name.lower(): sum(layout.COUNTER.unpack(value)[0] for value in values)
        for verdict, values in each_cpu.items()
    }


def _wanted(arguments: Mapping[str, Any]) -> Callable[[Event], bool]:
    fate, pod = arguments.get("verdict"), arguments.get("pod")
    if fate is not None and fate not in FATES:
        raise ControlError(f"--verdict {fate}: must be {' or '.join(FATES)}", USAGE)
    if pod is not None and "/" not in str(pod):
        raise ControlError(f"--pod {pod}: must be namespace/name", USAGE)
    return lambda event: fate in (None, event.fate) and pod in (None, event.client.pod, event.server.pod)
