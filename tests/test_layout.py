"""The wall between library and experiments, read off the code: who imports whom, and what stands at the top level."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import model_patch

ROOT = Path(model_patch.__file__).parent
EXPERIMENTS = "model_patch.experiments"
MOST_MODULES = 14


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(file): file for file in sorted(ROOT.rglob("*.py"))}


def imports(name: str, anywhere: bool = False) -> set[str]:
    """The modules of this package that one imports: when it is imported itself, or `anywhere` in it."""
    tree = ast.parse(FILES[name].read_text())
    inside = {id(node) for each in ast.walk(tree) if isinstance(each, ast.FunctionDef) for node in ast.walk(each)}
    found = set()
    for node in ast.walk(tree):
        if id(node) in inside and not anywhere:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= submodules & FILES.keys() or {node.module}
    return (found & FILES.keys()) - {name}


def test_no_imports_form_a_circle_those_in_functions_included():
    TopologicalSorter({name: imports(name, anywhere=True) - {"model_patch"} for name in FILES}).prepare()


def test_the_library_imports_nothing_from_the_experiments():
    for name in FILES:
        if not name.startswith(EXPERIMENTS):
            assert not {each for each in imports(name, anywhere=True) if each.startswith(EXPERIMENTS)}, name


def test_the_library_knows_no_flags_and_no_configs():
    for name, file in FILES.items():
        if not name.startswith(EXPERIMENTS):
            modules = {
                node.module for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)
            }
            assert not {each for each in modules if each and each.split(".")[0] in ("absl", "ml_collections")}, name


def test_few_modules_stand_at_the_top():
    assert len([file for file in ROOT.glob("*.py") if file.name != "__init__.py"]) <= MOST_MODULES


def test_names_that_keras_does_not_document_are_in_one_module():
    names = "nodes_by_depth|keras_history|flatten_layers|call_has_training_arg|instances"
    private = re.compile(rf"(from|import) keras\.src|\._({names})\b")
    users = {name for name, file in FILES.items() if private.search(file.read_text())}
    assert users == {"model_patch.graph.keras_private"}
