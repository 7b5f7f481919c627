"""How long to wait before trying a failing thing again. Pure: the caller brings the randomness."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Doubles from `first_s` to at most `limit_s`, each shortened by up to a quarter so that nodes spread out."""

    first_s: float = 0.2
    limit_s: float = 30.0

    def delay_s(self, attempt: int, random: float, asked_s: float | None = None) -> float:
        """The pause after the `attempt`-th failure in a row (from 1); `random` is uniform in [0, 1).

        At least `asked_s`, which the other side asked for, within the limit. None: it did not.
        """
        full = min(self.limit_s, self.first_s * 2.0 ** min(attempt - 1, 32))
        delay = full * (1 - random / 4)
        return delay if asked_s is None else max(delay, min(asked_s, self.limit_s))
