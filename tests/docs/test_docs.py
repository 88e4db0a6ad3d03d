"""The documentation leads somewhere: links, paths, commands, flags and variables; Chinese pages keep in step."""

from __future__ import annotations

import argparse
import ast
import importlib
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
DOORS = ["README.md", "README.zh-CN.md"]
CHINESE = sorted((ROOT / "docs" / "zh").glob("*.md"))
PAGES = [ROOT / name for name in (*DOORS, "CONTRIBUTING.md", "data/README.md", "checkpoints/README.md")]
PAGES += sorted((ROOT / "docs").glob("*.md")) + CHINESE
PAGE_NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
GLOSSARY = ROOT / "docs" / "zh" / "glossary.md"
# Pages that a user works from.
IN_CHINESE = "backbones cost evaluate export formats gallery memory method own_data quickstart rank recipes serving"
IN_CHINESE = [
    *IN_CHINESE.split(),
    "robot",
    "several_machines",
    "study",
    "tables",
    "train_stage1",
    "train_stage2",
    "troubleshooting",
    "upstream",
    "zeroshot",
]
GENERATED = ROOT / "docs" / "flags.md"  # its flags are those of the installed transformers

# What commands make, and what is on the user's side.
CREATED = ("data/", "checkpoints/", "results/", ".venv", "rerank_training_data/", "mbeir_rerank_files/")
NO_PATHS = {"code-kunkun/LamRA-Ret", "M-BEIR/.download", "table.md", "scripts/...", "../shared"}
NO_PATHS |= {"verify.py", "modeling_lamra.py"}  # of an export
READ_ALWAYS = {"CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "LAMRA_MAX_PICTURE_PIXELS"}  # whatever is started
NO_VARIABLES = {"NAME"}  # NAME=${NAME:-default}
NO_FLAGS = {"--help", "--signal", "--nproc_per_node"}  # the last two are sbatch's and torchrun's


class Command(NamedTuple):
    """A command as a page shows it."""

    text: str
    variables: list[str]  # NAME of each NAME=value before it
    target: str  # the script or Python file that it starts, or "" for a program of others
    arguments: list[str]  # after the target


def without_blocks(page: Path) -> str:
    """The page's text with code blocks cut out."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and content of each code block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def code_spans(page: Path) -> list[str]:
    return re.findall(r"`([^`]+)`", without_blocks(page))


def headings(page: Path) -> list[tuple[int, str]]:
    """Level and text of each heading."""
    return [(len(marks), text) for marks, text in re.findall(r"^(#+) (.+)$", without_blocks(page), flags=re.MULTILINE)]


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings: lower case, blanks to dashes, letters and digits of any script kept."""
    plain = [re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for _, text in headings(page)]
    return {name if i == 0 else f"{name}-{i}" for j, name in enumerate(plain) for i in [plain[:j].count(name)]}


def commands(page: Path) -> Iterator[Command]:
    """Every command in the page's bash blocks, and in its code spans that start a script."""
    lines = [
        line for language, text in blocks(page) if language == "bash" for line in text.replace("\\\n", " ").splitlines()
    ]
    lines += [
        span.replace("\n", " ") for span in code_spans(page) if re.match(r"([A-Z_]+=\S+ )*(bash|python) \S+/", span)
    ]
    for line in lines:
        words = shlex.split(line, comments=True)
        variables = []
        while words and (found := re.fullmatch(r"([A-Za-z_]+)=.*", words[0])):
            variables.append(found[1])
            words.pop(0)
        if not words:
            continue
        # Behind a launcher and its own flags stands the first Python file.
        at = next((i for i, word in enumerate(words) if re.search(r"\.(sh|py|sbatch)$", word)), None)
        yield Command(
            line.strip(), variables, "" if at is None else words[at], words[at + 1 :] if at is not None else []
        )


@cache
def files() -> set[str]:
    """All files of the repository, below its root, but what commands make."""
    unwanted = {".git", ".venv", "results", "__pycache__", ".ruff_cache", ".pytest_cache"}
    found = (path.relative_to(ROOT) for path in ROOT.rglob("*") if unwanted.isdisjoint(path.parts))
    return {str(path) for path in found if path.parts[:2] not in {("checkpoints", "hf_models"), ("data", "miniature")}}


@cache
def is_repository_path(name: str) -> bool:
    name = name.removeprefix("./").rstrip("/")
    if "*" in name:
        return any(Path(file).match(name) for file in files())
    return name in files() if "/" in name else any(Path(file).name == name for file in files())


def spelt_out(word: str) -> list[str]:
    """eval_{flickr,coco}.py to both names."""
    found = re.fullmatch(r"(.*)\{([^{}]*)\}(.*)", word)
    return [word] if found is None else [found[1] + part + found[3] for part in found[2].split(",")]


@cache
def logical_lines(script: Path) -> list[str]:
    return script.read_text().replace("\\\n", " ").splitlines()


def scripts_in(line: str, script: Path) -> list[Path]:
    """The scripts that a line of a script names: below the root, or beside the script."""
    found = []
    for name in re.findall(r"[\w./-]+\.sh\b", line):
        found += [path.resolve() for path in (ROOT / name, script.parent / name.lstrip("/")) if path.is_file()][:1]
    return found


@cache
def scripts_reached(script: Path) -> frozenset[Path]:
    """The script and all that it sources or calls."""
    reached, waiting = set(), [script.resolve()]
    while waiting:
        current = waiting.pop()
        if current in reached:
            continue
        reached.add(current)
        waiting += [
            path for line in logical_lines(current) if not line.startswith("#") for path in scripts_in(line, current)
        ]
    return frozenset(reached)


@cache
def reads_variable(script: Path, name: str) -> bool:
    pattern = re.compile(rf"\$\{{?!?{name}\b")
    return any(pattern.search(path.read_text()) for path in scripts_reached(script))


@cache
def entrypoints(target: str) -> frozenset[str]:
    """The Python files that get the flags given to a script or Python file."""
    if target.endswith(".py"):
        return frozenset([target.removeprefix("./")])
    found = set()
    script = ROOT / target
    for line in logical_lines(script):
        if '"$@"' not in line or line.startswith("#"):
            continue
        python = [name for name in re.findall(r"[\w/$]+\.py\b", line) if not name.endswith("tether.py")]
        for name in python:
            pattern = re.sub(r"\$\w+", "*", name)
            found |= {str(path.relative_to(ROOT)) for path in ROOT.glob(pattern)}
        if not python:
            found |= {name for path in scripts_in(line, script) for name in entrypoints(str(path.relative_to(ROOT)))}
    return frozenset(found)


class ParserFound(Exception):
    """Carries the parser out of an entrypoint, so that nothing runs."""


@cache
def parser_of(entrypoint: str) -> argparse.ArgumentParser:
    """The parser that an entrypoint builds, found by starting it up to the moment it would parse."""

    def stop(parser, *_, **__):
        raise ParserFound(parser)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_known_args", stop)
        patch.setattr(sys, "argv", [entrypoint])
        patch.syspath_prepend(str((ROOT / entrypoint).parent))  # as Python does
        with pytest.raises(ParserFound) as found:
            runpy.run_path(str(ROOT / entrypoint), run_name="__main__")
    return found.value.args[0]


@cache
def flags_of(entrypoint: str) -> frozenset[str]:
    """Its own flags, and upstream's, which end its --help."""
    parser = parser_of(entrypoint)
    return frozenset(parser._option_string_actions) | frozenset(re.findall(r"--\w+", parser.epilog or ""))


def flags_in(words: list[str]) -> list[str]:
    return [word.partition("=")[0] for word in words if re.match(r"--[a-z]", word)]


@pytest.mark.parametrize("name", DOORS)
def test_a_door_has_at_most_200_lines(name):
    assert len((ROOT / name).read_text().splitlines()) <= 200


@pytest.mark.parametrize("name", PAGE_NAMES)
def test_links_lead_somewhere(name):
    page = ROOT / name
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", without_blocks(page))):
        if re.match(r"https?:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    assert not wrong


@pytest.mark.parametrize("name", PAGE_NAMES)
def test_paths_exist(name):
    wrong = []
    for word in (word for span in code_spans(ROOT / name) for word in span.split() if span not in NO_PATHS):
        for path in spelt_out(word.strip("',;:()").removesuffix("'s")):
            is_path = re.fullmatch(r"\.?[\w./*-]+", path) and (
                "/" in path.strip("/") or re.search(r"\.(py|sh|md)$", path)
            )
            known = path in NO_PATHS or path.removeprefix("./").startswith(CREATED) or is_repository_path(path)
            if is_path and not known:
                wrong.append(path)
    assert not wrong


@pytest.mark.parametrize("name", PAGE_NAMES)
def test_commands_start_what_exists_with_flags_and_variables_that_it_reads(name):
    wrong = []
    for command in commands(ROOT / name):
        if not command.target:
            wrong += [f"{variable} is read by nobody: {command.text}" for variable in command.variables]
            continue
        if not (ROOT / command.target).is_file():
            wrong.append(f"{command.target} is not there: {command.text}")
            continue
        is_script = not command.target.endswith(".py")
        for variable in command.variables:
            if variable not in READ_ALWAYS and not (is_script and reads_variable(ROOT / command.target, variable)):
                wrong.append(f"{variable} is not read: {command.text}")
        if command.target == "scripts/test.sh":  # pytest's
            continue
        for flag in flags_in(command.arguments):
            if not any(flag in flags_of(entrypoint) for entrypoint in entrypoints(command.target)):
                wrong.append(f"{flag} is unknown: {command.text}")
    assert not wrong


@pytest.mark.parametrize("name", PAGE_NAMES)
def test_values_fit_their_flags(name):
    """Choices, numbers and booleans, for what a page shows."""
    for command in commands(ROOT / name):
        wanted = set(flags_in(command.arguments)) if command.target and command.target != "scripts/test.sh" else set()
        for entrypoint in sorted(entrypoints(command.target)) if wanted - NO_FLAGS else []:
            if not flags_of(entrypoint) >= wanted:
                continue
            parser = parser_of(entrypoint)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(parser, "error", lambda message, text=command.text: pytest.fail(f"{text}: {message}"))
                for action in parser._actions:
                    patch.setattr(action, "required", False)
                parser.parse_known_args(command.arguments)


@pytest.mark.parametrize("name", PAGE_NAMES)
def test_flags_and_variables_in_the_text_are_read(name):
    if ROOT / name == GENERATED:
        return
    known = {flag for entrypoint in all_entrypoints() for flag in flags_of(entrypoint)} | NO_FLAGS
    scripts = "\n".join(path.read_text() for path in [*ROOT.glob("scripts/**/*.s*"), *ROOT.glob("benchmarks/*.sh")])
    wrong = []
    for span in code_spans(ROOT / name):
        if re.match(r"(\.venv/bin/|git |pip |ruff )", span):
            continue
        wrong += [flag for flag in re.findall(r"(?<![\w-])--[a-z]\w*", span) if flag not in known]
        variables = re.findall(r"^([A-Z][A-Z_]+)(?==|$)", span) + re.findall(r" ([A-Z][A-Z_]+)=", span)
        wrong += [
            v
            for v in variables
            if v not in NO_VARIABLES | READ_ALWAYS and not re.search(rf"\$\{{?{v}\b|\b{v}=", scripts)
        ]
    assert not wrong


@cache
def all_entrypoints() -> list[str]:
    """The Python files that scripts and pages start."""
    targets = {command.target for page in PAGES for command in commands(page) if command.target}
    targets |= {str(path.relative_to(ROOT)) for path in ROOT.glob("scripts/**/*.sh") if path.name != "env.sh"}
    found = {entrypoint for target in targets if (ROOT / target).is_file() for entrypoint in entrypoints(target)}
    upstream = {"eval/eval_mbeir_global.py", "eval/eval_mbeir_rerank_pointwise.py", "eval/rerank/mbeir_rerank.py"}
    found |= upstream | {"train/mbeir_get_rerank_train_data.py", "eval/eval_mbeir.py"}
    return sorted(name for name in found if (ROOT / name).is_file())


def twins() -> list[tuple[Path, Path]]:
    """English pages with their Chinese ones."""
    return [(ROOT / DOORS[0], ROOT / DOORS[1]), *((ROOT / "docs" / p.name, p) for p in CHINESE if p != GLOSSARY)]


def test_the_pages_that_a_user_works_from_are_there_in_chinese():
    assert {page.stem for page in CHINESE} == {*IN_CHINESE, GLOSSARY.stem}


@pytest.mark.parametrize(("english", "chinese"), twins(), ids=lambda page: str(page.relative_to(ROOT)))
def test_chinese_pages_keep_in_step(english, chinese):
    assert [level for level, _ in headings(english)] == [level for level, _ in headings(chinese)]
    first, second = blocks(english), blocks(chinese)
    assert [language for language, _ in first] == [language for language, _ in second]
    for (language, text), (_, other) in zip(first, second):
        if language:  # a drawing has words to translate
            assert without_comments(text) == without_comments(other)
    rows = [re.findall(r"^\|.*\|$", without_blocks(page), flags=re.MULTILINE) for page in (english, chinese)]
    assert len(rows[0]) == len(rows[1])
    for row, other in zip(*rows):  # figures, in the order in which a table shows them
        assert re.findall(r"\d+\.\d+", row) == re.findall(r"\d+\.\d+", other)


def without_comments(code: str) -> list[str]:
    lines = [re.sub(r"(^|\s+)#( .*|$)", "", line).rstrip() for line in code.splitlines()]
    return [line for line in lines if line]


def test_chinese_pages_use_the_words_of_the_glossary():
    """A row is | English | 中文 | 不用 |: the words of the third column occur nowhere."""
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([^|]*) \|$", GLOSSARY.read_text(), flags=re.MULTILINE)[1:]
    refused = [word for *_, words in rows for word in words.strip().split("、") if word]
    assert len(rows) > 20 and refused
    wrong = []
    for page in [ROOT / DOORS[1], *CHINESE]:
        if page != GLOSSARY:
            text = re.sub(r"`[^`]*`", "", without_blocks(page))
            wrong += [f"{page.name}: {word}" for word in refused if word in text]
    assert not wrong


@pytest.mark.parametrize("name", PAGE_NAMES)
def test_python_compiles_and_imports_what_exists(name):
    """tests/runs/ runs the README's own."""
    for language, code in blocks(ROOT / name):
        if language == "python":
            compile(code, name, "exec")
            for node in ast.walk(ast.parse(code)):
                if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("lamra"):
                    module = importlib.import_module(node.module)
                    assert not [alias.name for alias in node.names if not hasattr(module, alias.name)]


def test_the_first_screen_has_python():
    assert [language for language, _ in blocks(ROOT / "README.md")].count("python") == 1


@pytest.mark.parametrize("name", PAGE_NAMES)
def test_tests_named_as_proof_exist(name):
    defined = {
        test
        for path in ROOT.glob("tests/**/*.py")
        for test in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    named = {found[1] for span in code_spans(ROOT / name) if (found := re.match(r"(test_\w+)(\[|$)", span))}
    assert not named - defined


def test_the_design_names_every_script():
    text = (ROOT / "docs/design.md").read_text()
    assert [path.name for path in sorted((ROOT / "scripts").rglob("*.sh")) if path.name not in text] == []
