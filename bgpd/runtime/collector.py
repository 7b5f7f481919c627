"""How often Python looks for objects that only refer to each other.

What counting references does not free is rare here: models are values that refer to nothing that refers back. But
while a list of 10,000 pods is read, the default looks at what came last again and again: a quarter of the time.
Source: the documentation of `gc`.
"""

from __future__ import annotations

import gc

_NEW_OBJECTS = 10_000  # 700 by default; of these at most so many more wait to be found, some MB


def look_seldom() -> None:
    """For the whole process."""
    gc.set_threshold(_NEW_OBJECTS, *gc.get_threshold()[1:])
