"""The documents stay short, their links lead somewhere, and the commands that they show can be parsed."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from apdm.config import load_config
from apdm.config.filling import make_config
from apdm.config.help import COMMANDS, common_options
from tools import plots

ROOT = Path(__file__).parents[2]
README, DOCS = ROOT / "README.md", ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
GENERATED = DOCS / "reference"  # written by scripts: their tables are as long as what they describe
RESULTS = ROOT / "benchmarks/results"  # full tables, one row for each measurement
DOCUMENTS = [README, *PAGES, *sorted(RESULTS.glob("*.md")), *sorted(ROOT.glob("C*.md")), *sorted(ROOT.glob("S*.md"))]
LONGEST_README, LONGEST_LINE, LONGEST_TABLE, LONGEST_PARAGRAPH = 120, 120, 8, 4
LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)\s]*)?\)")


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(text: str) -> Iterator[tuple[str, list[str]]]:
    """The text in pieces: ("code", lines) for fenced blocks, ("text", lines) for what stands between blank lines."""
    kind = "text"
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith("```"):
            yield kind, lines
            kind, lines = ("code" if kind == "text" else "text"), []
        elif kind == "text" and not line.strip():
            yield kind, lines
            lines = []
        else:
            lines.append(line)
    yield kind, lines


def test_the_readme_fits_on_a_few_screens() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= LONGEST_README


def test_no_paragraph_of_the_readme_is_long() -> None:
    for kind, lines in blocks(README.read_text(encoding="utf-8")):
        prose = [line for line in lines if not line.startswith(("|", "* ", "  ", "<!--"))]
        assert kind == "code" or len(prose) <= LONGEST_PARAGRAPH, lines


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_lines_are_short(document: Path) -> None:
    table = RESULTS in document.parents or GENERATED in document.parents
    for number, line in enumerate(document.read_text(encoding="utf-8").splitlines(), start=1):
        excused = "https://" in line or (table and line.startswith("|"))
        assert excused or len(line) <= LONGEST_LINE, f"{name(document)}, line {number}"


def test_the_first_page_leads_to_all_others() -> None:
    first = DOCS / "index.md"
    linked = {(DOCS / link).resolve() for link in LINK.findall(first.read_text(encoding="utf-8"))}
    assert {*PAGES} - linked == {first}


@pytest.mark.parametrize("document", [README, *PAGES], ids=name)
def test_tables_are_short(document: Path) -> None:
    if GENERATED in document.parents:
        return
    for _, lines in blocks(document.read_text(encoding="utf-8")):
        rows = [line for line in lines if line.startswith("|")]
        assert len(rows) <= LONGEST_TABLE + 2, f"{name(document)}: the table that begins {rows[0]}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_links_lead_to_files_of_the_repository(document: Path) -> None:
    text = "\n".join("\n".join(lines) for kind, lines in blocks(document.read_text(encoding="utf-8")) if kind == "text")
    for link in LINK.findall(text):
        assert ":" in link or (document.parent / link).exists(), f"{name(document)} links to {link}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_files_and_modules_that_are_named_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    if document.name.startswith("adding-"):
        return  # these name files that the reader is to write
    for path in re.findall(r"`((?:apdm|tools|configs|launch|tests|benchmarks|docs)/[\w/.-]+)`", text):
        assert (ROOT / path).exists(), f"{name(document)} names {path}"
    for module in re.findall(r"python -m ((?:apdm|tools|benchmarks)[\w.]*)", text):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), f"{name(document)}: {module}"


@pytest.mark.parametrize("package", ["app", "audit", "protection"])
def test_the_docstring_of_a_package_that_lists_its_modules_lists_all(package: str) -> None:
    folder = ROOT / "apdm" / package
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    modules = {path.stem for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert modules - {"__init__"} <= set(re.findall(r"\w+", text))


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))

    def entries(tree: Any) -> Iterator[str]:
        if isinstance(tree, str):
            yield tree
        for branch in tree if isinstance(tree, list) else tree.values() if isinstance(tree, dict) else ():
            yield from entries(branch)

    assert sorted(entries(site["nav"])) == [page.relative_to(DOCS).as_posix() for page in PAGES]


# -- commands ------------------------------------------------------------------------------------------------


def shown_commands() -> Iterator[tuple[str, str, list[str]]]:
    """(document, sub-command, its arguments) of every complete command of this package that a document shows."""
    for document in (README, *PAGES, *sorted(RESULTS.glob("*.md"))):
        text = document.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in text.splitlines():
            code = line.strip()
            if "..." in code or not code.startswith(("apdm ", "accelerate launch ")):
                continue
            words = shlex.split(code, comments=True)
            found = [word for word in ("train_apdm.py", "apdm") if word in words]
            if not found:
                continue
            rest = words[words.index(found[0]) + 1 :]
            command = "harden" if found[0] == "train_apdm.py" else rest.pop(0)
            if command in COMMANDS and not {"-h", "--help", "--help-all"} & set(rest):
                yield name(document), command, rest


@pytest.mark.parametrize(("document", "command", "words"), list(shown_commands()))
def test_commands_that_documents_show_are_understood(
    document: str, command: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)  # configurations are named by paths from the root
    config = COMMANDS[command]
    unnamed = {"verify": "--output_dir", "report": "--results", "compare": "--results"}  # may come without their names
    unnamed |= {"attack": "--pretrained_model_name_or_path", "reproduce": "--recipe"}
    unnamed["push"] = "--output_dir"
    if command in unnamed and not words[0].startswith("-"):
        words = [unnamed[command], *words]
    load_config(config, words)


def test_the_short_help_has_the_options_of_the_commands_that_new_users_read() -> None:
    for document, command, words in shown_commands():
        common = {option.path for options in common_options(command).values() for option in options}
        if document in ("README.md", "docs/getting-started.md") and common:
            given = {word[2:].partition("=")[0] for word in words if word.startswith("--")} - {"config"}
            assert given <= common, f"{document}: {command}"


def option_names(config: type, prefix: str = "") -> Iterator[str]:
    """Every option and group of a configuration class, with dots: "pool", "pool.size"."""
    for field in fields(config):
        yield prefix + field.name
        factory = field.default_factory
        if isinstance(factory, type) and is_dataclass(factory):
            yield from option_names(factory, f"{prefix}{field.name}.")


def test_options_that_documents_name_exist() -> None:
    known = {option for command in COMMANDS.values() for option in option_names(command)}
    # Options of accelerate, of diffusers' scripts, of this command itself and of the benchmarks.
    foreign = {
        "help",
        "version",
        "verbose",
        "quiet",
        "json",
        "config",
        "config_file",
        "num_processes",
        "dynamo_backend",
        "dynamo_mode",
    }
    foreign |= {"scale_lr", "consenting", "summary", "dynamo_use_regional_compilation", "limit", "missing", "tiny"}
    foreign |= {"gpus", "ipc", "publish", "stop", "user", "volume"}  # Docker's
    groups = {option.partition(".")[0] for option in known if "." in option}
    for document in (README, *(page for page in PAGES if GENERATED not in page.parents)):
        for kind, lines in blocks(document.read_text(encoding="utf-8")):
            if kind != "text" or lines and lines[0].startswith("    "):
                continue
            for option in re.findall(r"`--([a-z_0-9]+(?:\.[a-z_0-9]+)*)", " ".join(lines)):
                assert option in known | foreign, f"{name(document)} names --{option}"
            for option in re.findall(r"`([a-z_0-9]+\.[a-z_0-9.]+)(?: [a-z0-9.]+)?`", " ".join(lines)):
                if option.partition(".")[0] in groups:
                    assert option in known, f"{name(document)} names {option}"


# -- Python --------------------------------------------------------------------------------------------------


def shown_calls() -> Iterator[tuple[str, str]]:
    """(document, source) of every fenced Python block that calls the package's functions."""
    for document in [README, *PAGES]:
        text = document.read_text(encoding="utf-8")
        for source in re.findall(r"^```python\n(import apdm\n.*?)^```", text, re.DOTALL | re.MULTILINE):
            yield name(document), source


@pytest.mark.parametrize(("document", "source"), list(shown_calls()))
def test_calls_that_documents_show_name_options_that_exist(
    document: str, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    jobs = [call for call in calls if ast.unparse(call.func).startswith("apdm.")]
    assert jobs, document
    for call in jobs:
        config = COMMANDS[ast.unparse(call.func).removeprefix("apdm.")]
        options = {word.arg: ast.literal_eval(word.value) for word in call.keywords if word.arg}
        file = ast.literal_eval(call.args[0]) if call.args else None
        make_config(config, options, file=file)


@pytest.mark.parametrize(
    "path", re.findall(r"^::: (\S+)", (GENERATED / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
)
def test_the_reference_names_objects_that_exist_and_explain_themselves(path: str) -> None:
    module, _, attribute = path.rpartition(".")
    assert getattr(importlib.import_module(module), attribute).__doc__


# -- figures -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plot", plots.PLOTS)
def test_plots_show_the_committed_rows(plot: str) -> None:
    assert (plots.IMAGES / f"plot-{plot}.svg").read_text(encoding="utf-8") == plots.PLOTS[plot]()
