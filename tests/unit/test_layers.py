"""The import contracts in pyproject.toml mean something: a name that matches nothing would pass silently."""

from __future__ import annotations

import ast
import importlib.util
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
PURE_NAMES = {"plan", "parse", "codec", "render", "session", "diff", "backoff"}
MODULES = sorted((ROOT / "bgpd").rglob("*.py"))


def named(contract: dict[str, object]) -> list[str]:
    """Every module of ours that a contract speaks of."""
    names = [str(name) for key in ("source_modules", "forbidden_modules") for name in contract.get(key, [])]  # type: ignore[attr-defined]
    layers = [part.strip() for layer in contract.get("layers", []) for part in str(layer).split("|")]  # type: ignore[attr-defined]
    return [name for name in names if name.startswith("bgpd")] + [f"bgpd.{layer}" for layer in layers]


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract["name"])
def test_every_module_in_a_contract_exists(contract: dict[str, object]) -> None:
    """A module that was renamed must be renamed in the contract too."""
    assert [name for name in named(contract) if importlib.util.find_spec(name) is None] == []


def test_modules_whose_name_promises_purity_are_under_the_contract() -> None:
    """`plan`, `parse`, `codec`, `render` and `session` are always pure, in every room."""
    core = next(contract for contract in CONTRACTS if "functional core" in contract["name"])
    promised = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in MODULES if path.stem in PURE_NAMES
    }
    assert promised - set(core["source_modules"]) == set()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_opens_with_what_it_decides(path: Path) -> None:
    """And stays within the house's measure: 600 lines a file, 50 lines a function."""
    text = path.read_text()
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "no docstring"
    assert text.count("\n") <= 600
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert [node.name for node in functions if node.end_lineno - node.lineno >= 50] == []  # type: ignore[operator]
