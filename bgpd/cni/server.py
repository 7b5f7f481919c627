"""Serves the CNI plugin on a unix socket: one request per connection, as many at once as there are pods to make.

Decides who waits for whom, what is remembered, and what becomes of a request that cannot be finished. How traffic of
a pod comes to be judged is the attacher's; what the bytes mean is `protocol`'s.

    ADD     remembered, then attached, then answered: whatever happens in between, the attachment is known
    DEL     ends an ADD of the same attachment that is still under way, detaches, is then forgotten
    GC      the same for every attachment of the network that the runtime does not name
    CHECK   what the previous result and the kernel say otherwise than the ADD did

Requests for one attachment take turns. An ADD that fails, that takes longer than its deadline or whose plugin was
killed is undone. A DEL goes on without its plugin: whoever asked will ask again, and to do it twice is the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Callable, Collection
from pathlib import Path
from typing import Protocol

from bgpd.cni import protocol
from bgpd.cni.frame import LONGEST_HEAD, Frame, FrameError, encode_answer, lengths
from bgpd.cni.journal import Journal, Queue, read
from bgpd.cni.protocol import CniError, Code, Request, Verb
from bgpd.config.files import MissingError, UnreadableError
from bgpd.model.attachment import Attachment, AttachmentKey
from bgpd.model.outcome import Blocked, Done, Outcome
from bgpd.observe import log
from bgpd.observe.metrics import RequestDone
from bgpd.observe.unixsocket import identity_of, listen
from bgpd.runtime.inotify import DirectoryWatch

BACKLOG = 512  # a node that boots starts all of its pods at once, and may have some hundred
IDLE_S = 10.0  # twice the plugin's own deadline: whoever has not said all by then is no plugin
OURS = 0.9  # of the plugin's deadline, so that our reason comes before its "did not answer"
REPLAY_S = 10.0  # how long a queued DEL that failed waits for its next turn
_KILLED = "the plugin was killed before the ADD was done"


class Attacher(Protocol):
    """Makes the kernel judge a pod's traffic.

    The methods run for several attachments at once, never twice at once for one. Each may be cancelled at any await,
    which is how deadlines are kept; after an `attach` that did not come to Done, `detach` follows.
    """

    async def attach(self, attachment: Attachment) -> Outcome:
        """Done: the pod's policy is in the kernel. Anything else: the pod must not start, for that reason."""

    async def detach(self, key: AttachmentKey, attachment: Attachment | None) -> Outcome:
        """Done: nothing of it is left, or never was. `attachment` None: it is not remembered."""

    async def check(self, attachment: Attachment) -> Collection[str]:
        """What in the kernel is not as `attach` left it, in sentences."""

    async def collect(self, keep: Collection[AttachmentKey]) -> Outcome:
        """Removes what belongs to none of these, whatever it comes from."""

    def status(self) -> str:
        """Why no ADD can succeed at present; empty: it can."""


class CniServer:
    """`attachments` of the journal are what is attached, whoever asks. `on_done` is told of every request."""

    def __init__(
        self,
        path: Path,
        attacher: Attacher,
        journal: Journal,
        queue: Queue,
        *,
        on_done: Callable[[RequestDone], object] = lambda done: None,
        replay_s: float = REPLAY_S,
    ) -> None:
        self._path, self._attacher, self._journal, self._queue = path, attacher, journal, queue
        self._on_done, self._replay_s = on_done, replay_s
        self._turns: weakref.WeakValueDictionary[AttachmentKey, asyncio.Lock] = weakref.WeakValueDictionary()
        self._adding: dict[AttachmentKey, asyncio.Task[bytes]] = {}
        self._log = log.get("cni")

    async def run(self) -> None:
        """Serves until cancelled. OSError: the socket or the queue cannot be had."""
        self._queue.open()
        await self._replay()  # before an ADD can bring the same attachment anew
        listener = listen(self._path, BACKLOG)
        identity = identity_of(self._path)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow_queue(), name="cni queue")
                server = await asyncio.start_unix_server(
                    lambda reader, writer: group.create_task(self._serve(reader, writer), name="cni request"),
                    sock=listener,
                    backlog=BACKLOG,  # asyncio listens anew, with 100
                )
                async with server:
                    await server.serve_forever()
        finally:
            listener.close()
            if identity_of(self._path) == identity:  # not the next daemon's
                self._path.unlink()

    # --- one connection -----------------------------------------------------------------------------------

    async def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        try:
            frame = await _frame(reader)
            if frame is not None:
                writer.write(await self._answer(frame, reader))
        except FrameError as error:
            problem = CniError(Code.DECODE, f"{error}; is {protocol.PLUGIN_TYPE} of another release?")
            writer.write(_failed(None, problem))
        finally:
            await _close(writer)

    async def _answer(self, frame: Frame, reader: StreamReader) -> bytes:
        started = asyncio.get_running_loop().time()
        request = None
        try:
            request = protocol.parse(frame)
            output = await self._finished(request, frame, reader)
        except CniError as error:
            self._tell(request, started, error)
            return _failed(frame, error)
        except Exception:
            self._log.exception("cni request failed", request=_shown(request))
            return _failed(frame, CniError(Code.INTERNAL, 'bgpd made a mistake; "journalctl -u bgpd" has it'))
        self._tell(request, started, None)
        return encode_answer(0, output)

    async def _finished(self, request: Request, frame: Frame, reader: StreamReader) -> bytes:
        """What goes to stdout. An ADD ends with its plugin; whoever killed that wants no pod."""
        work = asyncio.create_task(self._do(request, frame), name=f"cni {request.verb}")
        gone = asyncio.create_task(_end_of(reader), name="cni plugin's end")
        is_add = request.verb is Verb.ADD
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            if not work.done() and is_add:
                work.cancel()
            await asyncio.wait((work,))
        finally:
            work.cancel()
            gone.cancel()
            await asyncio.wait((work, gone))
        if not work.cancelled():
            output = work.result()
            if is_add and await _has_ended(reader):
                assert request.key is not None
                await self._del(request.key, request.deadline_s)
                raise CniError(Code.TRY_AGAIN, _KILLED)
            return output
        if not gone.cancelled():
            raise CniError(Code.TRY_AGAIN, _KILLED)
        raise CniError(Code.TRY_AGAIN, "a DEL of the same attachment came before the ADD was done")

    async def _do(self, request: Request, frame: Frame) -> bytes:
        """What goes to stdout."""
        match request.verb:
            case Verb.ADD:
                return await self._add(request, frame)
            case Verb.DEL:
                assert request.key is not None
                await self._del(request.key, request.deadline_s)
            case Verb.CHECK:
                await self._check(request)
            case Verb.GC:
                await self._gc(request)
            case Verb.STATUS:
                if reason := self._attacher.status():
                    raise CniError(Code.NOT_AVAILABLE, reason)
        return b""

    # --- what is asked for --------------------------------------------------------------------------------

    async def _add(self, request: Request, frame: Frame) -> bytes:
        attachment = protocol.attachment(request)
        output = protocol.result(request)
        key = attachment.key
        async with self._turn(key):
            task = asyncio.current_task()
            assert task is not None
            self._adding[key] = task
            try:
                self._queue.drop(self._queue.file(key))  # a DEL from before this ADD must not come after it
                self._journal.add(frame, attachment)
                await self._attach(attachment, request.deadline_s * OURS)
            except OSError as error:
                raise CniError(Code.TRY_AGAIN, f"the attachment cannot be remembered: {_refusal(error)}") from None
            finally:
                del self._adding[key]
        return output

    async def _attach(self, attachment: Attachment, deadline_s: float) -> None:
        """Attached, or undone and CniError."""
        outcome: Outcome | None = None
        try:
            async with _within(deadline_s, "the policy of the pod was not in the kernel"):
                outcome = await self._attacher.attach(attachment)
        finally:
            if not isinstance(outcome, Done):
                await self._undo(attachment, deadline_s)
        if isinstance(outcome, Blocked):
            raise CniError(Code.REFUSED, outcome.reason)
        if not isinstance(outcome, Done):
            raise CniError(Code.TRY_AGAIN, outcome.reason)

    async def _undo(self, attachment: Attachment, deadline_s: float) -> None:
        """What cannot be undone stays remembered, for the DEL that a runtime sends after an ADD that failed."""
        try:
            await self._detach(attachment.key, deadline_s)
        except CniError as error:
            self._log.warning("an ADD that failed is not undone", attachment=str(attachment.key), error=str(error))

    async def _del(self, key: AttachmentKey, deadline_s: float) -> None:
        if (adding := self._adding.get(key)) is not None:
            adding.cancel()
        async with self._turn(key):
            await self._detach(key, deadline_s * OURS)
            self._queue.drop(self._queue.file(key))

    async def _detach(self, key: AttachmentKey, deadline_s: float) -> None:
        """Detached and forgotten, or CniError and remembered."""
        async with _within(deadline_s, "the pod was not detached"):
            outcome = await self._attacher.detach(key, self._journal.attachments.get(key))
        if not isinstance(outcome, Done):
            raise CniError(Code.TRY_AGAIN, outcome.reason)
        try:
            self._journal.remove(key)
        except OSError as error:
            raise CniError(Code.TRY_AGAIN, f"the attachment cannot be forgotten: {_refusal(error)}") from None

    async def _check(self, request: Request) -> None:
        now = protocol.attachment(request)
        async with self._turn(now.key):
            then = self._journal.attachments.get(now.key)
            if then is None:
                raise CniError(Code.DIFFERS, "bgpd has no such attachment: no policy is enforced on it")
            async with _within(request.deadline_s * OURS, "the kernel was not read"):
                found = (*protocol.differences(then, now), *await self._attacher.check(then))
        if found:
            raise CniError(Code.DIFFERS, "; ".join(found))

    async def _gc(self, request: Request) -> None:
        """As much as can be removed is removed; only then is told what could not be.

        The runtime made its list before an ADD that is under way now.
        """
        problems = []
        known = self._journal.attachments
        wanted = request.valid | self._adding.keys()
        for key in [key for key in known if key.network == request.network and key not in wanted]:
            try:
                await self._del(key, request.deadline_s)
            except CniError as error:
                problems.append(f"{key}: {error}")
        async with _within(request.deadline_s * OURS, "what no pod has any more was not removed"):
            outcome = await self._attacher.collect(frozenset(known))
        if not isinstance(outcome, Done):
            problems.append(outcome.reason)
        if problems:
            raise CniError(Code.TRY_AGAIN, "; ".join(problems))

    @contextlib.asynccontextmanager
    async def _turn(self, key: AttachmentKey) -> AsyncIterator[None]:
        lock = self._turns.setdefault(key, asyncio.Lock())
        async with lock:
            yield

    # --- DELs that came while nobody answered -------------------------------------------------------------

    async def _follow_queue(self) -> None:
        """A plugin may put one there just after the start: it had found nobody listening."""
        async with DirectoryWatch([self._queue.directory]) as watch:
            while True:
                waiting = await self._replay()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._replay_s if waiting else None):
                        await watch.changed()

    async def _replay(self) -> bool:
        """Whether there is one left that could not be done."""
        waiting = False
        for file in self._queue.files():
            try:
                request = read(file)
                if request.verb is not Verb.DEL or request.key is None:
                    raise UnreadableError("it is no DEL")
            except MissingError:
                continue
            except (UnreadableError, CniError) as error:
                # written whole or not at all, so it is none of ours, and nothing will ever be done about it
                self._log.warning("a queued DEL cannot be read and is dropped", file=str(file), error=str(error))
                self._queue.drop(file)
                continue
            waiting |= not await self._replayed(request.key, request.deadline_s, file)
        return waiting

    async def _replayed(self, key: AttachmentKey, deadline_s: float, file: Path) -> bool:
        async with self._turn(key):
            if not self._queue.has(file):  # an ADD of the same attachment has come since
                return True
            try:
                await self._detach(key, deadline_s * OURS)
                self._queue.drop(file)
            except (CniError, OSError) as error:
                self._log.warning("a queued DEL failed, and is tried again", attachment=str(key), error=str(error))
                return False
        self._log.info("a queued DEL is done", attachment=str(key))
        return True

    def _tell(self, request: Request | None, started: float, error: CniError | None) -> None:
        took_s = asyncio.get_running_loop().time() - started
        self._on_done(RequestDone(request.verb.value if request else "unknown", error is not None, took_s))
        took = {"duration_ms": round(took_s * 1000, 1)}
        if error is not None:
            self._log.warning("cni", **_shown(request), **took, code=int(error.code), error=str(error))
        elif request is not None and request.verb in (Verb.CHECK, Verb.STATUS):  # asked again and again
            self._log.debug("cni", **_shown(request), **took)
        else:
            self._log.info("cni", **_shown(request), **took)


def _shown(request: Request | None) -> dict[str, str]:
    if request is None:
        return {"verb": "unknown"}
    pod = {"pod": str(request.pod)} if request.pod else {}
    key = {"attachment": str(request.key)} if request.key else {"network": request.network}
    return {"verb": request.verb.value, **pod, **key}


@contextlib.asynccontextmanager
async def _within(deadline_s: float, otherwise: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(deadline_s):
            yield
    except TimeoutError:
        text = f'{otherwise} within {deadline_s:g} s; "bgpd status" may say why'
        raise CniError(Code.TRY_AGAIN, text) from None


def _refusal(error: OSError) -> str:
    return f"{error.filename or 'the disk'}: {error.strerror}"


def _failed(frame: Frame | None, problem: CniError) -> bytes:
    version = protocol.version_of(frame.configuration) if frame else ""
    return encode_answer(1, protocol.error(version, problem))


async def _frame(reader: StreamReader) -> Frame | None:
    """None: the plugin went away, or did not say all in time. FrameError: it speaks another language."""
    try:
        async with asyncio.timeout(IDLE_S):
            try:
                head = await reader.readuntil(b"\n")
            except asyncio.LimitOverrunError:
                head = b""
            environment, configuration = lengths(head[: LONGEST_HEAD + 1])
            return Frame(await reader.readexactly(environment), await reader.readexactly(configuration))
    except (asyncio.IncompleteReadError, OSError, TimeoutError):
        return None


async def _has_ended(reader: StreamReader) -> bool:
    """Whether the other end is closed as of now: the loop may have had no time to look."""
    for _ in range(2):  # one turn of the loop sees that there is something to read, the next has read it
        await asyncio.sleep(0)
    return reader.at_eof()


async def _end_of(reader: StreamReader) -> None:
    """Returns when the plugin has ended; it has nothing more to say."""
    with contextlib.suppress(OSError):
        while await reader.read(1 << 16):
            pass


async def _close(writer: StreamWriter) -> None:
    """Flushes what was said, for a bounded time."""
    try:
        async with asyncio.timeout(IDLE_S):
            writer.close()
            await writer.wait_closed()
    except (OSError, TimeoutError):
        writer.transport.abort()
