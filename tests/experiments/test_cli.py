"""Flags are derived from a config's fields and comments; `--help` and mistakes import neither TensorFlow nor Keras."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from model_patch.experiments import cli
from tests.scripts.run_script import ROOT, error_of, run_script

SCRIPTS = sorted(path.stem for path in (ROOT / "scripts").glob("*.py"))
HEAVY = {"tensorflow", "keras", "jax", "torch", "matplotlib.pyplot", "sklearn"}
CONFIGS = ["benchmark", "demo", "detect_scenes", "expressivity", "multitask", "pretrain_fashion_mnist", "transfer"]


@pytest.mark.parametrize("name", [*CONFIGS, "ssd_to_classification"])
def test_every_field_is_declared_with_a_comment_and_a_type(name):
    module = importlib.import_module(f"configs.{name}")
    declared = cli.declarations(module)
    for field, default in module.get_config().items():
        comment, item_type = declared[field]
        assert comment, field
        assert isinstance(default, (bool, int, float, str, ConfigDict)) or default or item_type, field


def test_every_config_can_be_imported_and_has_the_fields_of_its_script():
    bases = [set(importlib.import_module(f"configs.{name}").get_config()) for name in CONFIGS]
    for path in (ROOT / "configs").rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if path.name not in ("__init__.py", "recipe.py"):
            assert set(importlib.import_module(name).get_config()) in bases, name


@pytest.mark.parametrize(
    ("item_type", "text", "items"),
    [(int, "0,1,2", (0, 1, 2)), (float, "0.1", (0.1,)), (str, 'a,"b, c"', ("a", "b, c")), (str, "", ())],
)
def test_lists_are_joined_by_commas(item_type, text, items):
    assert cli._ListParser(item_type).parse(text) == items


def test_a_flag_has_the_name_default_type_and_comment_of_its_field():
    words = " ".join(run_script("multitask", "--help").stdout.split())
    assert "--epochs: Passes over as many images as all tasks have together. (default: '15') (an integer)" in words
    assert "--[no]train_trunk: Train the trunk on all tasks, or leave it frozen. (default: 'true')" in words
    assert "--image_sizes: Pixels, one per task" in words and "(integers, joined by commas)" in words
    assert "--sampler: <uniform|proportional|annealed>: How a step's images are split" in words


PROGRAM = """
import os, runpy, sys
from model_patch.experiments import cli

for path in sys.argv[1:]:
    for argument in ("--help", "--no_such_flag=1"):
        sys.stdout.flush()
        if os.fork():
            os.wait()
            continue
        sys.argv = [path, argument]
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit:
            print("\\nIMPORTED", path, argument, *sorted(HEAVY & sys.modules.keys()), flush=True)
        finally:
            os._exit(0)
"""
"""Runs each script with `--help` and with a wrong flag, in processes that have what the scripts share imported already."""


@pytest.fixture(scope="module")
def imported():
    """The heavy packages that a script imported, by its path and its argument."""
    program = PROGRAM.replace("HEAVY", repr(HEAVY))
    paths = [str(ROOT / "scripts" / f"{name}.py") for name in SCRIPTS]
    ran = subprocess.run(
        [sys.executable, "-c", program, *paths],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    lines = [line.split()[1:] for line in ran.stdout.splitlines() if line.startswith("IMPORTED ")]
    return {(path, argument): modules for path, argument, *modules in lines}


def test_a_list_of_names_takes_only_its_choices():
    parser = cli._ListParser(str, cli.CHOICES["share"])
    assert parser.parse("trunk,trunk+patch") == ("trunk", "trunk+patch")
    with pytest.raises(ValueError, match=r"'head' is none of nothing, trunk, trunk\+patch"):
        parser.parse("trunk,head")


@pytest.mark.parametrize("name", CONFIGS)
def test_defaults_are_among_the_choices(name):
    for field, default in importlib.import_module(f"configs.{name}").get_config().items():
        if field in cli.CHOICES:
            assert set(default if isinstance(default, tuple) else [default]) <= set(cli.CHOICES[field]), field


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_and_wrong_flags_import_neither_tensorflow_nor_keras(imported, name):
    path = str(ROOT / "scripts" / f"{name}.py")
    assert imported[path, "--help"] == imported[path, "--no_such_flag=1"] == []


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--epochs=many", "flag --epochs=many: invalid literal"),
        ("--epoch=3", "Unknown command line flag 'epoch'. Did you mean: epochs"),
        ("--seeds=0,x", "flag --seeds=0,x: not a list of integers, write for example 0,1,2"),
        ("--norm_statistics=own", "value should be one of <auto|batch|frozen>"),
        ("--optimizer=lion", "value should be one of <adam|adamw|rmsprop|sgd>"),
        ("--config=nowhere.py", "--config=nowhere.py cannot be read"),
        ("--config.epoch=3", "--config has no field 'epoch': did you mean epochs? See --help"),
        (
            f"--config={ROOT}/configs/small/transfer.py:digit",
            "--config=FILE:digit has an argument that the file does not",
        ),
        (f"--config={ROOT}/configs/transfer.py:digits", "takes 0 positional arguments but 1 was given"),
        ("bundled", "unexpected argument 'bundled'"),
        ("--dry_run", "give --workdir=FOLDER, or --dry_run, and not both"),
    ],
)
def test_flags_that_cannot_be_used_are_refused(tmp_path, flag, message):
    assert message in error_of(run_script("transfer", flag, f"--workdir={tmp_path}/run"))
    assert not (tmp_path / "run").exists()


SCRIPT = """
from model_patch.experiments import cli
def interrupted():
    raise KeyboardInterrupt
cli.run_commands({"train": interrupted, "export": interrupted}, resumes=["train"])
"""


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train", "interrupted: rows that are finished are kept; the same command resumes"),
        ("export", "interrupted: the same command starts again"),
    ],
)
def test_an_interrupt_says_what_the_same_command_does(command, message):
    ran = subprocess.run([sys.executable, "-c", SCRIPT, command], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 130 and ran.stderr == f"error: {message}\n"


def test_a_flag_whose_field_a_given_config_lacks_is_refused(tmp_path):
    file = Path(tmp_path / "mine.py")
    file.write_text(
        "from configs import transfer\ndef get_config():\n    c = transfer.get_config()\n    del c.remat\n    return c\n"
    )
    ran = run_script("transfer", f"--config={file}", "--remat", f"--workdir={tmp_path}/run")
    assert "--remat is given, but --config=" in error_of(ran) and "has no such field" in error_of(ran)


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--workdir=~/runs/x", "--workdir=/home/me/runs/x"),
        ("--config.head_from=~/a.safetensors", "--config.head_from=/home/me/a.safetensors"),
        ("--patches=~/a,b,~/c", "--patches=/home/me/a,b,/home/me/c"),
        ("~/a.png", "/home/me/a.png"),
        ("~", "/home/me"),
        ("--trunk=file:~/a.keras", "--trunk=file:~/a.keras"),  # For `spec.parse`.
        ("--task_name=a~b", "--task_name=a~b"),
        ("--dry_run", "--dry_run"),
    ],
)
def test_a_tilde_is_the_home_folder_in_every_flag_and_argument(monkeypatch, argument, expected):
    monkeypatch.setenv("HOME", "/home/me")
    assert cli._with_home(argument) == expected


@pytest.mark.parametrize(
    ("script", "module", "exception", "expected"),
    [
        ("predict", "absl", "KeyboardInterrupt", "error: interrupted"),
        ("transfer", "ml_collections", "KeyboardInterrupt", "error: interrupted"),
        ("detect", "configs", "KeyboardInterrupt", "error: interrupted"),
        ("patch", "absl", "ZeroDivisionError", "Traceback"),
    ],
)
def test_an_interrupt_while_modules_are_imported_is_one_line(script, module, exception, expected, tmp_path):
    """The module raises what Ctrl-C raises in the middle of its import; other errors keep their traceback."""
    startup = f"""
import sys

class Interrupted:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            raise {exception}

sys.meta_path.insert(0, Interrupted())
"""
    (tmp_path / "sitecustomize.py").write_text(startup)
    done = run_script(script, PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert done.returncode != 0 and done.stderr.startswith(expected)
    assert ("Traceback" in done.stderr) == (expected == "Traceback")
