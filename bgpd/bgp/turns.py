"""How ExaBGP works off its commands. `steady` puts `Turns` in the place of ExaBGP's `ASYNC`.

ExaBGP 5.0 keeps commands as generators. For every turn it gives them it makes an asyncio event loop and takes it
down again, though no generator can wait for one: 25 system calls, between a command and its UPDATE. A turn here is
the same steps without the loop.

Goes once ExaBGP does it itself.
"""

from __future__ import annotations

import inspect

from exabgp.reactor.asynchronous import ASYNC


class Turns(ASYNC):  # type: ignore[misc]
    """ExaBGP's queue of commands. The reactor gives it a turn of 50 steps at each of its rounds."""

    def run(self) -> bool:
        """Whether steps are left."""
        if not all(inspect.isgenerator(callback) for _, callback in self._async):
            return bool(super().run())  # it may wait
        try:
            self._run_async().send(None)
        except StopIteration as end:
            return bool(end.value)
        raise AssertionError("a turn of generators has waited for something")
