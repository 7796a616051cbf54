"""The pages: their code runs, their links lead somewhere, the names in them exist, and they stay short.

In a page, ```python blocks run in order in one namespace and ```console blocks run their `$ marl-flow ...` lines, all
in one empty folder with small data and small budgets (`SMALLER`). A block that must not run stands below a line
`<!-- not run: REASON -->`.
"""

from __future__ import annotations

import importlib
import itertools
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from dataclasses import dataclass
from pathlib import Path

import pytest

from marl_flow import cli
from marl_flow.benchmarks.tables.render import rendered
from marl_flow.commands.data import build_dataset

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
GUIDES = sorted((ROOT / "docs/extending").glob("*.md"))
QUESTIONS = (
    "What is the loss?",
    "What happens between an observation and an action?",
    "Where does this number come from?",
    "How do I add a method?",
    "How do I add a task or data?",
)
FENCE = re.compile(
    r"(?:^<!-- not run: (?P<reason>.+) -->\n)?^```(?P<language>.*)\n(?P<body>(?s:.*?))^```$", re.MULTILINE
)
LINK = re.compile(r"\[[^\]]*\]\((?!https?:)(?P<path>[^)#\s]*)(?:#(?P<heading>[^)\s]+))?\)")
SMALLER = (
    (re.compile(r"updates=[\d_]+"), "updates=3"),
    (re.compile(r"--updates [\d_]+"), "--updates 3"),
    (re.compile(r"--episodes \d+"), "--episodes 4"),
)
"""What is replaced in console commands, so that they take a moment. `train` gets a budget where it names none."""
DATASETS = ("mpe/simple_spread/expert", "mpe/simple_tag/medium")


@dataclass(frozen=True)
class Block:
    line: int
    language: str
    body: str
    reason: str | None


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(text: str) -> Iterator[Block]:
    for match in FENCE.finditer(text):
        line = text[: match.start("body")].count("\n") + 1
        yield Block(line, match["language"].strip(), match["body"], match["reason"])


def prose(text: str) -> str:
    """A page without its blocks of code."""
    return FENCE.sub("", text)


def commands(block: Block) -> Iterator[list[str]]:
    """The words of each `$ ...` line, comments left out and budgets made small."""
    for line in block.body.splitlines():
        if line.startswith("$ "):
            for pattern, small in SMALLER:
                line = pattern.sub(small, line)
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words[:2] == ["marl-flow", "train"] and "updates=3" not in words and "--updates" not in words:
                words.append("updates=3")
            yield words


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MARL_FLOW_DATA", str(root))
        for name in DATASETS:
            build_dataset(name, episodes=40)
    return root


@pytest.mark.parametrize("page", [*PAGES, *GUIDES], ids=name_of)
def test_the_code_of_a_page_runs(
    page: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a snippet that no longer fits the code: a renamed function, flag, dataset, folder or shape."""
    monkeypatch.setenv("MARL_FLOW_DATA", str(small_data))
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "page"}
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.reason is not None:
            continue
        if block.language == "python":
            exec(compile("\n" * (block.line - 1) + block.body, str(page), "exec"), namespace)
        elif block.language == "console":
            for words in commands(block):
                where = f"{name_of(page)}, block at line {block.line}: {shlex.join(words)}"
                assert words[0] == "marl-flow", f"{where}: only marl-flow runs here; say why not: <!-- not run: ... -->"
                code = cli.main(words[1:])
                output = capsys.readouterr()
                assert code == 0, f"{where}\n{output.out}{output.err}"


@pytest.mark.parametrize("page", [*PAGES, *GUIDES], ids=name_of)
def test_blocks_say_what_they_hold(page: Path) -> None:
    """Catches code that silently never runs: a block without a language, or with an unknown one."""
    for block in blocks(page.read_text(encoding="utf-8")):
        known = block.language in ("python", "console", "text", "toml", "ini") or block.language.startswith("{")
        assert known, f"{name_of(page)}, line {block.line}: expected a known language, found {block.language!r}"


def slug(heading: str) -> str:
    """The anchor of a heading, as MyST and the hosting sites make it."""
    kept = re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", heading.strip().lower()))
    return kept.replace(" ", "-")


def headings(page: Path) -> set[str]:
    """Anchors of a page, or of the file that is all it includes."""
    text = page.read_text(encoding="utf-8")
    if included := re.search(r"^```\{include\} (\S+)", text, re.MULTILINE):
        return headings((page.parent / included[1]).resolve())
    return {slug(line.lstrip("#")) for line in prose(text).splitlines() if line.startswith("#")}


@pytest.mark.parametrize("page", [*PAGES, *GUIDES, ROOT / "CHANGELOG.md"], ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    """Catches a moved file or a renamed heading, in README too, which the build of the pages never sees."""
    for match in LINK.finditer(prose(page.read_text(encoding="utf-8"))):
        target = (page.parent / match["path"]).resolve() if match["path"] else page
        assert target.exists(), f"{name_of(page)} links to {match['path']}, which is not there"
        if match["heading"]:
            assert match["heading"] in headings(target), f"{name_of(page)}: {match[0]} has no such heading"


FOLDERS = ("marl_flow", "envs", "datasets", "baselines", "benchmarks", "tests", "examples", "docs")


def is_there(name: str) -> bool:
    """Whether a file or folder of the repository, or a dotted name inside the package, exists."""
    if "/" in name or name.endswith(".py"):
        return (ROOT / name).exists()
    module, _, rest = name, "", ""
    while module:
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError:
            module, _, last = module.rpartition(".")
            rest = f"{last}.{rest}".rstrip(".")
            continue
        for part in filter(None, rest.split(".")):
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


@pytest.mark.parametrize("page", [*PAGES, *GUIDES], ids=name_of)
def test_names_in_prose_exist(page: Path) -> None:
    """Catches a page that still names a file, module or function that has moved."""
    text = page.read_text(encoding="utf-8")
    spans = [span for span in re.findall(r"`([^`\n]+)`", prose(text)) if " " not in span]
    modules = [*re.findall(r"python -m (\S+)", text)]
    paths = [span for span in spans if re.fullmatch(rf"(?:{'|'.join(FOLDERS)})/[\w/.\-]*", span)]
    dotted = [span for span in [*spans, *modules] if re.fullmatch(r"marl_flow(\.\w+)+", span)]
    groups = {"marl_flow.tasks", "marl_flow.algorithms"}  # of entry points
    generated = ("docs/_build",)
    missing = [
        name
        for name in [*paths, *dotted]
        if name not in groups and not name.startswith(generated) and not is_there(name.rstrip("`,."))
    ]
    assert not missing, f"{name_of(page)} names what is not there: {missing}"


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs/index.md"], ids=name_of)
def test_the_five_questions_are_answered_from_the_front(page: Path) -> None:
    """Catches a front page that no longer leads a newcomer to the loss, the action, a number's source or a guide."""
    lines = page.read_text(encoding="utf-8").splitlines()
    for question in QUESTIONS:
        at = [index for index, line in enumerate(lines) if question in line]
        assert at, f"{name_of(page)} does not ask: {question}"
        beside = lines[at[0]] + "".join(itertools.takewhile(lambda line: line.startswith("  "), lines[at[0] + 1 :]))
        assert LINK.search(beside), f"{name_of(page)}: no link beside {question}"


def lines_with_included(page: Path) -> int:
    """Lines of a page that are not empty, and those of the files it includes."""
    text = page.read_text(encoding="utf-8")
    total = sum(bool(line.strip()) for line in text.splitlines())
    for block in blocks(text):
        if block.language.startswith("{literalinclude}"):
            source = (page.parent / block.language.removeprefix("{literalinclude}").strip()).read_text(encoding="utf-8")
            for option, cut in ((":start-after:", 1), (":end-before:", 0)):
                for mark in re.findall(rf'{option} "?([^"\n]+)', block.body):
                    assert mark in source, f"{name_of(page)}: {mark} is not in the included file"
                    source = source.split(mark)[cut]
            total += sum(bool(line.strip()) for line in source.splitlines())
    return total


@pytest.mark.parametrize("page", GUIDES, ids=name_of)
def test_a_guide_is_short(page: Path) -> None:
    """Catches a guide that grows beyond what is read in one sitting: 80 lines of prose and code."""
    assert lines_with_included(page) < 80


def test_readme_is_short() -> None:
    """Catches a README that turns into the documentation again."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 150


def test_the_picture_is_there_and_light() -> None:
    """Catches a README without its picture, or one that is slow to load."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (picture,) = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert 10_000 < (ROOT / picture).stat().st_size < 150_000


def test_a_transcribed_table_claims_no_measured_commit() -> None:
    """Catches a source line that presents numbers copied from an older page as measured at a commit."""
    page = ROOT / "docs/results.md"
    transcribed, measured = rendered("mpe", ROOT, page), rendered("quickstart", ROOT, page)
    assert "transcribed from README.md at commit 044d6de" in transcribed and "commit `" not in transcribed
    assert re.search(r"commit `[0-9a-f]{7}`, 20", measured) and "transcribed" not in measured


def test_make_targets_exist() -> None:
    """Catches a lane that README, the contributing guide or CI calls by a name the Makefile does not have."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / ".github").rglob("*.yml"), *PAGES):
        for target in re.findall(r"(?:`|\$ |run: )make ([a-z-]+)", path.read_text(encoding="utf-8")):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{name_of(path)}: make {target} is not a target"


def test_one_version_everywhere() -> None:
    """Catches a release whose package, citation and changelog disagree."""
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    version = setup["metadata"]["version"]
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\n## {version} " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_pages_build_without_a_warning(tmp_path: Path) -> None:
    """Catches what only the build sees: a page outside the table of contents, a docstring that cannot be shown."""
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-E", "-W", "--keep-going", "-q", "docs", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "What is the loss?" in (tmp_path / "index.html").read_text(encoding="utf-8")
