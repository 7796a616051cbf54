"""The pages that show tables: README.md, docs/ and benchmarks/results/."""

from __future__ import annotations

import re
from pathlib import Path

from marl_flow.benchmarks.tables.definitions import TABLES
from marl_flow.benchmarks.tables.folders import RESULTS
from marl_flow.benchmarks.tables.render import rendered
from marl_flow.interfaces import UserError

BEGIN, END = re.compile(r"<!-- table: (\S+) -->"), "<!-- /table -->"


def pages(root: Path) -> list[Path]:
    """Every page that may hold tables."""
    if not (root / "README.md").is_file() or not (root / RESULTS).is_dir():
        raise UserError(f"{root.resolve()}: expected README.md and {RESULTS}; run this at the root of the repository")
    inside = (path for folder in (root / "docs", root / RESULTS) for path in folder.rglob("*.md"))
    return [root / "README.md", *sorted(path for path in inside if "_build" not in path.parts)]


def places(text: str, page: Path) -> list[tuple[str, int, int]]:
    """Each table of a page: its name, and the lines [first, last) between its two marks."""
    found, name, begun = [], None, 0
    for number, line in enumerate(text.split("\n")):
        begin = BEGIN.fullmatch(line)
        if begin and name is not None:
            raise UserError(f"{page}, line {number + 1}: table {name} is not closed before; add the line {END}")
        if begin:
            name, begun = begin[1], number + 1
        elif line == END and name is None:
            raise UserError(f"{page}, line {number + 1}: {END} closes nothing; remove it")
        elif line == END:
            found.append((str(name), begun, number))
            name = None
    if name is not None:
        raise UserError(f"{page}: table {name} is never closed; add the line {END} after it")
    return found


def update(root: Path, *, write: bool) -> list[str]:
    """Every table that does not equal its file, as `page: table`; rewritten there with `write`."""
    differing, used = [], set()
    for page in pages(root):
        text = page.read_text(encoding="utf-8")
        lines = text.split("\n")
        for name, first, last in reversed(places(text, page)):
            used.add(name)
            fresh = ["", *rendered(name, root, page).split("\n"), ""]
            if lines[first:last] != fresh:
                differing.append(f"{page.relative_to(root)}: table {name}")
                lines[first:last] = fresh
        if write:
            page.write_text("\n".join(lines), encoding="utf-8")
    missing = sorted(set(TABLES) - used)
    if missing:
        raise UserError(f"no page shows the tables {', '.join(missing)}; place them, or remove them from TABLES")
    return sorted(differing)
