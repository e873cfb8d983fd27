"""The documentation: links lead somewhere, commands parse, examples run, and the prose is plain English."""

import json
import os
import re
import shlex
import subprocess
import sys
import tokenize
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

import model_patch as mp

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "model_patch").rglob("*.md"))]
SOURCES = [
    path
    for folder in ("model_patch", "scripts", "configs", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path != Path(__file__)
]
GENERATED = [ROOT / "model_patch" / "trunks" / "bundled" / "card.md"]
"""Written by scripts: items of lists may be long."""

PHRASES = (
    "anew",
    "stays as it is",
    "stay as they are",
    "is no number",
    "by its mean",
    "put behind one another",
    "told from",
    "a net of nobody's",
    "the batch parts",
    "parts among",
    "the first so many",
    "a task more than",
    "neither asked for",
    "tells of accidents",
    "that nobody reads",
    "stands? for",
    "stands twice",
    "go(es)? with",
    "a part behind",
    "as it is downloaded",
)
"""Translated-sounding phrases that have a plain equivalent."""


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def text_of(page: Path) -> str:
    """The page without code, in which brackets are not links."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"^    .*$|`[^`\n]*`", "", text, flags=re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_lead_somewhere(page):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page if not path else (page.parent / unquote(path)).resolve()
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_files_that_are_named_exist(page):
    named = re.findall(r"[`\s]((?:docs|model_patch|scripts|configs|tests)/[\w/*]+\.\w+)\b", page.read_text())
    assert [path for path in named if not list(ROOT.glob(path))] == []


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_lines_are_short_enough_to_read(page):
    code = r"\||    " if page not in GENERATED else r"\||    |- "
    assert [line for line in page.read_text().splitlines() if len(line) > 120 and not re.match(code, line)] == []


def commands() -> set[str]:
    """Every `python scripts/NAME.py --flag ...` in pages, docstrings and comments, without placeholders."""
    found = set()
    for path in [*PAGES, *SOURCES]:
        text = re.sub(r"\\\\?\n[\s#]*", "", path.read_text())
        for line in re.findall(r"python (scripts/\w+\.py(?: [^\n`]*)?)", text):
            line = line.partition("  #")[0].partition('"""')[0].strip()
            line = line.replace(" ...", "" if "--workdir" in line else " --workdir=runs")
            if not re.search(r"\.\.\.|[{]|NAME\.py", line) and line.count("'") % 2 == 0:
                found.add(line)
    return found


PARSE = """
import json, runpy, sys
from absl import app, flags
from model_patch.experiments import cli

def parse(main, argv=None, flags_parser=None, **_):
    flags_parser(sys.argv)

app.run = parse
for command in json.load(sys.stdin):
    before, sys.argv = set(flags.FLAGS), command
    try:
        runpy.run_path(command[0], run_name="__main__")
    except SystemExit:
        print("in", " ".join(command), file=sys.stderr)
    flags.FLAGS.unparse_flags()
    for name in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, name)
    cli._fields.clear()
print("error: loaded" if {"tensorflow", "keras"} & sys.modules.keys() else "", file=sys.stderr)
"""
"""Runs scripts up to the point at which their flags are parsed; mistakes in these are printed."""


def test_commands_have_flags_that_exist():
    found = [shlex.split(command) for command in sorted(commands())]
    assert len(found) > 30
    known = {path.name for path in (ROOT / "scripts").glob("*.py")}
    assert {Path(command[0]).name for command in found} <= known
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    parsed = subprocess.run(
        [sys.executable, "-c", PARSE],
        input=json.dumps(found),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
    )
    assert parsed.returncode == 0 and "error:" not in parsed.stderr, parsed.stderr


def prose() -> list[tuple[str, str]]:
    """Pages, and the strings and comments of the code, with their places."""
    texts = [(relative(page), page.read_text()) for page in PAGES]
    for path in SOURCES:
        with path.open("rb") as file:
            texts += [
                (f"{relative(path)}:{token.start[0]}", token.string)
                for token in tokenize.tokenize(file.readline)
                if token.type in (tokenize.STRING, tokenize.COMMENT)
            ]
    return texts


def test_prose_is_plain_english():
    pattern = re.compile("|".join(rf"\b{phrase}\b" for phrase in PHRASES).replace(" ", r"\s+(?:# )?"), re.IGNORECASE)
    assert [(place, found[0]) for place, text in prose() if (found := pattern.search(text))] == []


def test_docstrings_say_what_they_are_of():
    bare = re.compile(r'^"""Of\b|^ +[\w*, ]+: of ', re.MULTILINE)
    assert [(place, found[0]) for place, text in prose() if (found := bare.search(text))] == []


def test_the_api_reference_has_every_public_name():
    page = (ROOT / "docs" / "api.md").read_text()
    assert [name for name in mp.__all__ if not re.search(rf"^::: model_patch\..*\b{name}$", page, re.MULTILINE)] == []


@pytest.mark.slow
def test_the_readmes_python_runs(tmp_path, monkeypatch, capsys):
    """As printed, but for one epoch only."""
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    short = example.replace("epochs=15", "epochs=1")
    assert short != example
    names = {}
    exec(short, names)
    assert "test accuracy 0." in capsys.readouterr().out
    trained, parameters = re.search(
        r"trains ([\d,]+)\s+parameters, ([\d.]+) %", (ROOT / "README.md").read_text()
    ).groups()
    counts = names["bound"].counts()
    assert (f"{counts.trained:,}", f"{100 * counts.trained_fraction:.1f}") == (trained, parameters)
    loaded = mp.bind_patch(mp.open_trunk("bundled"), mp.Patch.load(tmp_path / "digits.safetensors"))
    images = np.random.default_rng(0).normal(size=(2, 48, 48, 3)).astype("float32")
    np.testing.assert_allclose(loaded.model(images), names["bound"].model(images), atol=0.1)  # The file is float16.


def test_the_readmes_results_are_those_of_the_raw_files():
    page = (ROOT / "README.md").read_text()
    real, small = (
        table.strip().split("\n") for table in re.findall(r"\n\n(\| trained \| parameters .*?)\n\n", page, re.S)
    )
    for suite, table in (("real/", real), ("", small)):
        tasks = table[0].strip("| ").split(" | ")[2:]
        for line in table[2:]:
            train = re.findall("`(.*?)`", line)[0]
            for task, shown in zip(tasks, line.strip("| ").split(" | ")[2:], strict=True):
                rows = json.loads((ROOT / "docs" / "results" / f"{suite}transfer-{task}.json").read_text())["rows"]
                seeds = [row["test_accuracy"] for row in rows if row["train"] == train]
                spread = f" ({max(seeds) - min(seeds):.4f})" if len(seeds) > 1 else ""
                assert shown == (f"{np.mean(seeds):.4f}{spread}" if seeds else "*not run*")
    (sizes,) = re.findall(r"\n\n(\| one task at four sizes .*?)\n\n", page, re.S)
    head, _, *lines = sizes.split("\n")
    rows = json.loads((ROOT / "docs" / "results" / "real" / "resolutions.json").read_text())["rows"]
    for line in lines:
        share, (parameters, *shown) = re.findall("`(.*?)`", line)[0], line.strip("| ").split(" | ")[1:]
        rows_of = [row for row in rows if row["share"] == share]
        assert parameters == f"{rows_of[0]['total_parameters']:,}"
        for size, figure in zip(head.strip("| ").split(" | ")[2:], shown, strict=True):
            seeds = [row["test_accuracy"] for row in rows_of if row["image_size"] == int(size.removesuffix(" px"))]
            assert len(seeds) == 3 and figure == f"{np.mean(seeds):.4f}"


def test_files_that_the_makefile_names_exist():
    named = re.findall(r"\btests/[\w/.*]+", (ROOT / "Makefile").read_text())
    assert named and not [name for name in named if not list(ROOT.glob(name))]


@pytest.mark.slow
def test_the_tutorial_notebook_runs_from_top_to_bottom(tmp_path):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(ROOT / "docs" / "notebooks" / "first_patch.ipynb", as_version=4)
    NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert any(
        "test accuracy" in output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ())
    )
