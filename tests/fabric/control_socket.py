"""A connection to the control socket of a speaker: how it is made and how it ends.

What is said on it, in which framing, is each speaker's own: `bird_control`, `frr_vty`.
"""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Self


class ControlSocket(ABC):
    """One connection; not to be shared between threads. Raises `OSError` when nobody is there."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout_s)
        self._stream = self._socket.makefile("rb")
        try:
            self._socket.connect(str(path))
            self._greet()
        except BaseException:
            self.close()
            raise

    @abstractmethod
    def _greet(self) -> None:
        """What is exchanged before the first question."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._stream.close()
        self._socket.close()
