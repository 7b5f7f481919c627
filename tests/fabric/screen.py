"""What the demo prints: a line for each step, what was seen, a list of checks at the end.

This decides how it looks: 100 columns, plain text; on a terminal a step that runs shows its seconds and the
verdicts have a colour, and otherwise there is not one escape code. It does not decide what is shown or checked
(`demo`). A check that failed makes `summary` say so: nothing here turns a no into a yes.
"""

from __future__ import annotations

import os
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TextIO

WIDTH = 100
_TICK_S = 0.1
_GREEN, _RED, _DIM, _BOLD = "32", "31", "2", "1"


@dataclass(frozen=True, slots=True)
class Check:
    """One statement about the network, and whether it was found to be true."""

    text: str
    passed: bool
    detail: str = ""


@dataclass(slots=True)
class Screen:
    """Everything goes to `out`. `checks` are all that were made so far."""

    out: TextIO = field(default_factory=lambda: sys.stdout)
    checks: list[Check] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    @property
    def is_terminal(self) -> bool:
        return self.out.isatty() and os.environ.get("TERM", "dumb") != "dumb"

    def line(self, text: str = "") -> None:
        """One line, no longer than the screen is wide."""
        self.out.write(text[:WIDTH].rstrip() + "\n")
        self.out.flush()

    def title(self, text: str) -> None:
        self.line()
        self.line(self._colour(_BOLD, text))

    def note(self, text: str) -> None:
        """What is to be known beside the checks, whole, however long."""
        for row in textwrap.wrap(text, WIDTH - 2):
            self.line(f"  {row}")

    def shell(self, where: str, command: str, output: str) -> None:
        """A command as it would be typed on `where`, and what it answered, word for word."""
        self.line(f"  {self._colour(_BOLD, f'{where}#')} {command}")
        for row in output.rstrip("\n").splitlines():
            self.line(f"  {row.expandtabs()}")

    def table(self, rows: list[tuple[str, str]]) -> None:
        """Moments and what happened then."""
        for moment, text in rows:
            self.line(f"    {moment:>12}  {text}")

    def check(self, text: str, passed: bool, detail: str = "") -> None:
        """Notes a check, and says at once whether it holds."""
        self.checks.append(Check(text, passed, detail))
        self._say(self.checks[-1])

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """One piece of work: its seconds while it runs (on a terminal), and one line when it is over."""
        began = time.monotonic()
        with self._ticking(text, began):
            try:
                yield
            except BaseException:
                self._settle(text, began, "failed")
                raise
        self._settle(text, began, "done  ")

    def summary(self) -> bool:
        """The checks again, with the verdict; whether all of them passed and there were any."""
        failed = [check for check in self.checks if not check.passed]
        self.title("Summary")
        for check in self.checks:
            self._say(check)
        verdict = f"{len(self.checks) - len(failed)} of {len(self.checks)} checks ok"
        self.line()
        self.line(f"{verdict}, {time.monotonic() - self.started:.0f} s")
        return bool(self.checks) and not failed

    def _say(self, check: Check) -> None:
        word = self._colour(_GREEN, "ok    ") if check.passed else self._colour(_RED, "FAILED")
        self.out.write(f"  {word}  {check.text[: WIDTH - 10]}\n")
        if check.detail and not check.passed:
            for row in check.detail.splitlines():
                self.out.write(f"          {row[: WIDTH - 10]}\n")
        self.out.flush()

    def _settle(self, text: str, began: float, mark: str) -> None:
        clear = "\r\x1b[K" if self.is_terminal else ""
        seconds = f"{time.monotonic() - began:5.1f} s"
        self.out.write(f"{clear}  {self._colour(_DIM, f'{mark} {seconds}')}  {text[: WIDTH - 18]}\n")
        self.out.flush()

    @contextmanager
    def _ticking(self, text: str, began: float) -> Iterator[None]:
        if not self.is_terminal:
            yield
            return
        over = threading.Event()

        def tick() -> None:
            while True:
                self.out.write(f"\r\x1b[K         {time.monotonic() - began:5.1f} s  {text[: WIDTH - 18]}")
                self.out.flush()
                if over.wait(_TICK_S):
                    return

        ticker = threading.Thread(target=tick, name="progress", daemon=True)
        ticker.start()
        try:
            yield
        finally:
            over.set()
            ticker.join()

    def _colour(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.is_terminal and "NO_COLOR" not in os.environ else text
