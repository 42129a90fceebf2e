"""Checks that every file and every function stays short: `python -m tests.rules.lengths`.

A file has at most 400 lines. A function has at most 60, from `def` to its last line, docstring and functions
inside it included: it fits on a screen. Exceptions stand below, each with its reason. An exception that is no
longer needed is an error, so the lists only ever become shorter.
"""

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

FOLDERS = ("loadbalancer", "server", "analysis", "tests")
FILE_LIMIT = 400
FUNCTION_LIMIT = 60

LONG_FILES: Mapping[str, str] = {}
"""Path and reason."""

LONG_FUNCTIONS: Mapping[str, str] = {}
"""`path:function` and reason."""


def faults(
    root: Path,
    long_files: Mapping[str, str] = LONG_FILES,
    long_functions: Mapping[str, str] = LONG_FUNCTIONS,
) -> Iterator[str]:
    """Yield one sentence for each rule that is broken.

    Args:
        root: Folder of the project.
        long_files: Files that may be longer.
        long_functions: Functions that may be longer.
    """
    unused = {*long_files, *long_functions}
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*.py")):
            name = path.relative_to(root).as_posix()
            text = path.read_text()
            for place, line, length, limit in _lengths(name, text):
                if length <= limit:
                    continue
                if place in unused:
                    unused.remove(place)
                elif place not in long_files and place not in long_functions:
                    yield f"{name}:{line}: {place} has {length} lines; the limit is {limit}"
    for place in sorted(unused):
        yield f"{place} is listed as an exception in tests/rules/lengths.py, which it does not need"


def _lengths(name: str, text: str) -> Iterator[tuple[str, int, int, int]]:
    """Yield the place, first line, length and limit of a file and of each function in it."""
    yield name, 1, text.count("\n"), FILE_LIMIT
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            yield f"{name}:{node.name}", node.lineno, length, FUNCTION_LIMIT


if __name__ == "__main__":
    found = list(faults(Path.cwd()))
    print("\n".join(found) or "Files and functions are short.")
    sys.exit(bool(found))
