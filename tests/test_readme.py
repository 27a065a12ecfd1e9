"""README's example runs; what README and the documentation name exists: links, functions, commands, options."""

from __future__ import annotations

import argparse
import ast
import re
import shlex
import textwrap
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import f2pad_jax as f2
from f2pad_jax.cli import parser
from f2pad_jax.detectors import DETECTORS, options_of
from f2pad_jax.metrics import iou

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
WRITTEN = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
WRITTEN += [
    p for p in sorted((ROOT / "docs").rglob("*.md")) if p.name != "results.md" and "measurements" not in p.parts
]
API = sorted((ROOT / "docs" / "api").glob("*.md"))
LONGEST = 130  # lines of README


def blocks(page: Path, language: str) -> list[str]:
    """Code blocks of a page in a language, without those that are a file of `examples`."""
    found = re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(block) for block in found if "--8<--" not in block]


def commands() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    (subparsers,) = (a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    yield from subparsers.choices.items()


def options(command: argparse.ArgumentParser) -> set[str]:
    return {flag for action in command._actions for flag in action.option_strings} - {"-h", "--help"}


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    (code,) = blocks(README, "python")
    variables: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), variables)
    return variables


def test_every_example_is_shown_on_a_page() -> None:
    pages = "\n".join(page.read_text("utf-8") for page in (ROOT / "docs").rglob("*.md"))
    for path in sorted((ROOT / "examples").glob("*.py")):
        assert f'--8<-- "examples/{path.name}"\n' in pages


def test_readme_is_short() -> None:
    assert len(README.read_text("utf-8").splitlines()) <= LONGEST


def test_readme_example_finds_the_anomaly(example: dict[str, Any]) -> None:
    result, image, truth = example["result"], example["image"], example["truth"]
    assert result.mask.shape == image.shape[:2]
    assert iou(result.mask, truth) > 0.9
    assert iou(result.mask, truth) > iou(result.initial_mask, truth)


def test_readme_example_solves_by_pure_functions(example: dict[str, Any]) -> None:
    energy, problem, settings = example["energy"], example["problem"], example["settings"]
    assert {type(energy), type(problem), type(settings)} == {f2.Energy, f2.Problem, f2.Settings}
    assert example["slope"].shape == example["start"].shape == problem.image.shape
    assert float(example["F"]) == pytest.approx(
        float(jax.jit(f2.objective)(example["start"], energy, problem, settings)), rel=1e-4
    )
    solution = example["solution"]
    assert float(solution.loss) < float(example["F"])
    mask = np.asarray((solution.normal != problem.image).any(axis=-1))
    assert iou(mask, example["truth"]) > 0.9
    sweep = example["sweep"](np.array([1.5, float(settings.beta0), 6.0], np.float32))
    assert jax.tree.leaves(sweep)[0].shape[0] == 3
    assert float(sweep.loss[1]) == pytest.approx(float(solution.loss), rel=5e-3)
    assert example["other"].iterations > 0


def test_links_lead_somewhere() -> None:
    links = [
        (page, link.partition("#")[0])
        for page in WRITTEN
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8"))
        if not link.startswith(("http://", "https://", "#"))
    ]
    assert {page.name for page, _ in links} >= {"README.md", "index.md", "findings.md"}
    assert [f"{page.relative_to(ROOT)}: {link}" for page, link in links if not (page.parent / link).exists()] == []


def test_code_names_what_there_is() -> None:
    trees = [(page, ast.parse(code)) for page in WRITTEN for code in blocks(page, "python")]
    nodes = [(page.name, node) for page, tree in trees for node in ast.walk(tree)]
    used = {
        (page, node.attr)
        for page, node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "f2"
    }
    imported = {
        (page, node.module, name.name)
        for page, node in nodes
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("f2pad_jax")
        for name in node.names
    }
    assert {name for _, name in used} >= {"segment", "solve", "step", "solve_many"}
    assert [(page, name) for page, name in used if not hasattr(f2, name)] == []
    assert [found for found in imported if not hasattr(import_module(str(found[1])), found[2])] == []


def test_commands_are_understood() -> None:
    lines = [line for page in WRITTEN for block in blocks(page, "sh") for line in block.splitlines()]
    called = [words[1:] for words in (shlex.split(line, comments=True) for line in lines) if words[:1] == ["f2pad"]]
    assert {words[0] for words in called} >= {"demo", "synthesize", "fit", "tune", "segment", "evaluate", "weights"}
    for words in called:
        parser().parse_args(words)  # exits where it does not understand


def test_command_line_page_names_every_option() -> None:
    text = (ROOT / "docs" / "command-line.md").read_text("utf-8")
    rows = [line.split(" | ") for line in text.splitlines() if re.match(r"\| `[a-z`, -]+ \| `--", line)]
    stated: dict[str, set[str]] = {}
    for row in rows:
        for command in re.findall(r"`([a-z-]+)`", row[0]):
            stated.setdefault(command, set()).update(re.findall(r"--[a-z-]+", row[1]))
    for name, command in commands():
        assert f"`f2pad {name} " in text or f"`f2pad {name}`" in text, name
        assert stated.get(name, set()) == options(command) - {"--out", "--seed"}, name
    assert stated.keys() <= {name for name, _ in commands()}


def test_table_of_options_is_that_of_the_detectors() -> None:
    text = (ROOT / "docs" / "how-to" / "own-pictures.md").read_text("utf-8")
    stated: dict[str, set[str]] = {}
    for line in text.splitlines():
        cells = line.split(" | ")
        if (first := re.match(r"\| `([a-z]+)`", cells[0])) and len(cells) == 4:
            stated.setdefault(first[1], set()).update(re.findall(r"`([a-z]+)`", cells[1]))
    own = {name: set(options_of(detector)) for name, detector in DETECTORS.items() if name in stated}
    assert stated == own
    assert own.keys() == {"padim", "patchcore", "cflow"}


@pytest.mark.parametrize("page", API, ids=lambda path: path.stem)
def test_api_pages_show_what_there_is(page: Path) -> None:
    text = page.read_text("utf-8")
    shown = re.findall(r"^::: ([\w.]+)\n(?:    options:\s*\{?\s*members: \[([^]]*)\])?", text, flags=re.MULTILINE)
    assert shown
    for path, members in shown:
        try:
            home: Any = import_module(path)
        except ModuleNotFoundError:
            module, _, name = path.rpartition(".")
            home = getattr(import_module(module), name)
        for name in filter(None, members.split(", ")):
            assert hasattr(home, name), f"{path}.{name}"
