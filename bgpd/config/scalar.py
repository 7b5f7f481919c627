"""What one YAML scalar means: text, tag and quoting in, a plain value out. Pure.

YAML 1.1 as SafeLoader reads it, except that timestamps and base-60 numbers stay text: `64512:10` is a
community and `2024-01-01` a label, as kubectl has it too.
"""

from __future__ import annotations

from typing import TypeAlias

import yaml

Scalar: TypeAlias = str | int | float | bool | None

PREFIX = "tag:yaml.org,2002:"
_LONGEST_NUMBER = 100  # CPython refuses above 4,300 digits; no honest number comes near either
_RESOLVERS = yaml.SafeLoader.yaml_implicit_resolvers
_BOOLEANS = {"yes": True, "no": False, "true": True, "false": False, "on": True, "off": False}
_KINDS: dict[str, type | None] = {"str": str, "int": int, "float": float, "bool": bool, "null": None}


def scalar_value(event: yaml.ScalarEvent) -> Scalar:
    """ValueError: an unknown tag, a text that does not fit its tag, or no number despite its looks."""
    text: str = event.value
    if event.tag is None or event.tag == "!":
        return _resolve(text) if event.implicit[0] else text
    kind = event.tag.removeprefix(PREFIX)
    if kind == "str":
        return text
    if kind not in _KINDS:
        raise ValueError(f"the tag {short_tag(event.tag)} is not known")
    value = _resolve(text)
    if kind == "float" and type(value) is int:
        return float(value)
    if type(value) is not (_KINDS[kind] or type(None)):
        raise ValueError(f"{shown(text)} does not fit its tag {short_tag(event.tag)}")
    return value


def _resolve(text: str) -> Scalar:
    """What an untagged plain scalar means."""
    for tag, pattern in _RESOLVERS.get(text[:1], ()):
        if pattern.match(text):
            kind = tag.removeprefix(PREFIX)
            if kind == "null":
                return None
            if kind == "bool":
                return _BOOLEANS[text.lower()]
            if kind in ("int", "float") and ":" not in text:
                return _number(text, kind)
            return text
    return text


def _number(text: str, kind: str) -> int | float:
    if len(text) > _LONGEST_NUMBER:
        raise ValueError(f"a number of {len(text)} characters is too long")
    digits = text.replace("_", "").lower()
    bare = digits.lstrip("+-")
    try:
        if kind == "float":
            return float(digits.replace(".inf", "inf").replace(".nan", "nan"))
        if bare.startswith(("0b", "0x")) or bare == "0":
            return int(digits, 0)
        return int(digits, 8 if bare.startswith("0") else 10)
    except ValueError:
        raise ValueError(f"{shown(text)} is not a number; quote it if it is text") from None


def short_tag(tag: str) -> str:
    return shown(tag.replace(PREFIX, "!!", 1))


def shown(value: object) -> str:
    """A value as a fault quotes it: on one line and short, whatever is in it."""
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case dict():
            return "a mapping"
        case list():
            return "a list"
        case str():
            text = f"'{value}'" if value.isprintable() and "'" not in value else repr(value)
        case _:
            text = repr(value)
    return text if len(text) <= 60 else f"{text[:56]}...{text[0] if isinstance(value, str) else ''}"
