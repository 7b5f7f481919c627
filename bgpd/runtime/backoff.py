"""How long to wait before trying a failing thing again. Pure: the caller brings the randomness."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Doubles from `first_s` to at most `limit_s`, each shortened by up to a quarter so that nodes spread out."""

    first_s: float = 0.2
    limit_s: float = 30.0

    def delay_s(self, attempt: int, random: float) -> float:
        """The pause after the `attempt`-th failure in a row (from 1); `random` is uniform in [0, 1)."""
        full = min(self.limit_s, self.first_s * 2.0 ** min(attempt - 1, 32))
        return full * (1 - random / 4)
