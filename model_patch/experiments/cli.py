"""What all scripts share: flags derived from a config, and errors as one sentence.

A script has one declaration of its options: the fields of its config in `configs/`. A field `epochs = 15  # Passes over the
training images.` becomes the flag `--epochs`, an integer with this default and this comment as its help.
"""

import ast
import csv
import importlib
import inspect
import io
import logging
import os
import re
import sys
import tokenize
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags

from model_patch.errors import ModelPatchError
from model_patch.experiments.choices import CHOICES
from model_patch.files import store_error
from model_patch.progress import close_all

EXIT_STATUS = 2
"""Exit status of a script that was given something it cannot use."""

CONFIG = "config"
"""Name of the flag for a config file, and of the parameter of a command that takes a config."""

flags.disclaim_key_flags()  # The flags below belong to the script that defines them, and are listed in its --help.

_ALLOW_LAMBDA = flags.DEFINE_bool(
    "allow_lambda",
    False,
    "Run the Python code of Lambda layers in trunk files. Only for files from a source you trust.",
)
"""Every script takes it."""

_ROOT = Path(getattr(sys.modules["__main__"], "__file__", "")).resolve().parent.parent
if (_ROOT / "configs").is_dir():  # The folder is beside `scripts`, and need not be installed.
    sys.path.insert(0, str(_ROOT))


def run(main: Callable[[], object], *, resumes: bool = False):
    """Runs a script: parses its flags, refuses stray arguments, and prints this package's errors as one sentence.

    Args:
        main: called without arguments.
        resumes: whether the same command resumes after an interrupt; the message on Ctrl-C says so.
    """

    def call(arguments: list[str]):
        if arguments:
            _fail(f"unexpected argument {arguments[0]!r}: values are given as --flag=value")
        main()

    _run(call, lambda arguments: resumes)


def run_experiment(
    name: str,
    train: Callable[[ConfigDict, str], object],
    dry_run: Callable[[ConfigDict], object] | None = None,
    *,
    devices: bool = True,
    resumes: bool = True,
):
    """Runs a script that trains: its flags are `--workdir`, the fields of a config and, where they apply, the devices'.

    Args:
        name: module in `configs/`.
        train: called with the config and the workdir.
        dry_run: called with the config where `--dry_run` is given instead of `--workdir`; None if there is none.
        devices: whether the script trains on the devices that `--strategy` names.
        resumes: as for `run`.
    """
    config = define_config(name)
    workdir = flags.DEFINE_string("workdir", None, "Folder for all files of the run.", required=dry_run is None)
    chosen = define_devices() if devices else nullcontext
    if dry_run:
        without = flags.DEFINE_bool("dry_run", False, DRY_RUN)
        flags.register_multi_flags_validator(
            ["workdir", "dry_run"],
            lambda given: bool(given["workdir"]) != given["dry_run"],
            "give --workdir=FOLDER, or --dry_run, and not both",
        )

    def main():
        fields = config()
        if dry_run and without.value:
            dry_run(fields)
        else:
            with chosen(workdir.value) as own_workdir:
                train(fields, own_workdir)

    run(main, resumes=resumes)


DRY_RUN = "Build the models with random weights and without data, count, train one step, and write nothing."
"""Help of the flag `--dry_run`."""


def run_commands(commands: dict[str, Callable[..., None]], *, resumes: Collection[str] = ()):
    """Runs a script of several commands: `script.py COMMAND ARGUMENT... --flag=value`.

    Args:
        commands: a function per command. Its positional parameters are the command's arguments, its keyword-only
            parameters the flags that it takes; those without a default are required. A parameter `config` takes the
            config, and with it the flags of all its fields.
        resumes: the commands that resume after an interrupt, as for `run`.

    As in `run`, mistakes are reported in one sentence: an unknown command, too few or too many arguments, a flag that is
    missing or that belongs to another command.
    """

    def call(arguments: list[str]):
        if not arguments or arguments[0] not in commands:
            given = f"unknown command {arguments[0]!r}" if arguments else "no command is given"
            _fail(f"{given}: expected one of {', '.join(commands)}, see --help")
        name, *arguments = arguments
        signature = inspect.signature(commands[name])
        options = _options(name, signature)
        try:
            signature.bind(*arguments, **options)
        except TypeError:
            given = " ".join([*arguments, *(f"--{option}" for option in options)]) or "nothing"
            _fail(f"{name} expects {_usage(signature)}: {given} is given")
        commands[name](*arguments, **options)

    _run(call, lambda arguments: bool(arguments) and arguments[0] in resumes)


def _options(command: str, signature: inspect.Signature) -> dict[str, object]:
    """Returns the values of the flags that were given, by name; those of other commands are refused."""
    takes = {name for name, each in signature.parameters.items() if each.kind is each.KEYWORD_ONLY}
    present = {flag.name: flag.value for flag in flags.FLAGS.get_key_flags_for_module("__main__") if flag.present}
    options = {name: value for name, value in present.items() if name in takes}
    others = {name for name in flags.FLAGS if flags.FLAGS[name].present and name.partition(".")[0] == CONFIG}
    others |= present.keys() - takes
    if CONFIG in takes:
        options[CONFIG] = _config()
        others = {name for name in others if name.partition(".")[0] != CONFIG and name not in _fields}
    for name in others:
        _fail(f"{command} does not take --{name}: it expects {_usage(signature)}")
    return options


def _usage(signature: inspect.Signature) -> str:
    """Returns what a command takes, for example `PATCH [PATCHES...] --output=..`."""
    words = []
    for name, each in signature.parameters.items():
        if each.kind is each.VAR_POSITIONAL:
            words.append(f"[{name.upper()}...]")
        else:
            word = f"--{name}=.." if each.kind is each.KEYWORD_ONLY else name.upper()
            required = each.default is each.empty and name != CONFIG  # The config has a default file.
            words.append(word if required else f"[{word}]")
    return " ".join(words)


def _run(call: Callable[[list[str]], None], resumes: Callable[[list[str]], bool]):
    """Parses the flags and calls with the remaining arguments; this package's errors become one sentence."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

    def guarded(argv):
        # Absl's own handler prefixes every line with file and time: for people at a terminal the message is enough.
        logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
        logging.getLogger("model_patch").setLevel(logging.INFO)
        absl_logging.set_verbosity(absl_logging.WARNING)  # TensorFlow logs each step of an export.
        try:
            with _trunk_code():
                call(argv[1:])
        except ModelPatchError as error:
            _fail(str(error), error.exit_status)
        except Exception as error:
            known = store_error(error)
            if known is None:
                raise
            _fail(str(known), known.exit_status)
        except KeyboardInterrupt:
            # Only scripts with a workdir of rows resume; files that the others have written are complete all the same.
            then = "rows that are finished are kept; the same command resumes"
            _fail(f"interrupted: {then if resumes(argv[1:]) else 'the same command starts again'}", 130)

    def parse(argv):
        try:
            arguments = flags.FLAGS(argv)
            if CONFIG in flags.FLAGS:
                flags.FLAGS[CONFIG].value.keys()  # The error of an unreadable file is raised at its first use.
            return arguments
        except flags.Error as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            # An error in a config file comes with its traceback, of which the last line is the reason.
            _fail(f"{lines[0]} {lines[-1]}" if "parsing config file" in lines[0] else "; ".join(lines))
        except KeyError as error:
            _fail(f"--config=FILE:{error.args[0]} has an argument that the file does not know: see its docstring")
        except AttributeError as error:
            _fail(_unknown_field(error))
        except OSError:
            _fail(f"--config={_config_file()} cannot be read: expected a Python file with get_config()")

    app.run(guarded, [sys.argv[0], *map(_with_home, sys.argv[1:])], flags_parser=parse)


def _with_home(argument: str) -> str:
    """Replaces `~` by the home folder at the start of an argument, of a flag's value and of each item in a list.

    Shells do so at the start of a word only. Inside a spec, such as `folder:~/photos`, `spec.parse` does.
    """
    flag, equals, value = argument.partition("=") if argument.startswith("-") else ("", "", argument)
    return flag + equals + ",".join(map(os.path.expanduser, value.split(",")))


def _trunk_code() -> AbstractContextManager[None]:
    """Returns the context of a script: code in trunk files is not run unless the flag allows it."""
    if not _ALLOW_LAMBDA.value:
        return nullcontext()
    from model_patch.trunks.file import lambdas_allowed

    return lambdas_allowed()


_fields: list[str] = []
"""Fields of the script's config that have a flag."""


def define_config(name: str) -> Callable[[], ConfigDict]:
    """Defines `--config`, a Python file with `get_config()`, and for each of its fields `--NAME`.

    The type of a flag is that of the field's default, its help the comment on the field's line. `--config.NAME` works, too.

    Args:
        name: module in `configs/`, the default file.

    Returns:
        A function that returns the config: the file's values, and in place of some of them those of the flags given.
    """
    module = importlib.import_module(f"configs.{name}")
    try:
        config_flags.DEFINE_config_file(CONFIG, module.__file__, "Python file with get_config().")
    except AttributeError as error:  # --config.NAME is looked up in the default file as soon as the flag is defined.
        _fail(_unknown_field(error))
    declared = declarations(module)
    for field, default in module.get_config().items():
        if not isinstance(default, ConfigDict):
            _define_flag(field, default, *declared[field])
            _fields.append(field)
    return _config


_TYPES = {"int": int, "float": float, "str": str}


def declarations(module: ModuleType) -> dict[str, tuple[str, type | None]]:
    """Returns what a config module, and the config modules that it imports, declare of their fields.

    Returns:
        By field its comment, and the type of its items if it is annotated: `config.seeds: tuple[int, ...] = ()`.
    """
    found: dict[str, tuple[str, type | None]] = {}
    for base in vars(module).values():
        if inspect.ismodule(base) and base.__name__.startswith("configs."):
            found |= declarations(base)
    source = inspect.getsource(module)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Assign(targets=[ast.Attribute(attr=field)]):
                item_type = None
            case ast.AnnAssign(
                target=ast.Attribute(attr=field),
                annotation=ast.Subscript(slice=ast.Tuple(elts=[ast.Name(id=name), *_])),
            ):
                item_type = _TYPES[name]
            case _:
                continue
        comment, inherited = found.get(field, ("", None))
        lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
        found[field] = next((comments[line] for line in lines if line in comments), comment), item_type or inherited
    return found


_DEFINE: dict[type, Callable] = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
}


def _define_flag(name: str, default, comment: str, item_type: type | None):
    if isinstance(default, tuple):
        define_list(name, item_type or type(default[0]), default, comment)
    elif name in CHOICES:
        flags.DEFINE_enum(name, default, list(CHOICES[name]), comment)
    else:
        _DEFINE[type(default)](name, default, comment)


def define_list(name: str, item_type: type, default: tuple | None, text: str):
    """Defines a flag whose value is a tuple of items of one type, given joined by commas."""
    flags.DEFINE(_ListParser(item_type, CHOICES.get(name)), name, default, text, serializer=flags.ListSerializer(","))


class _ListParser(flags.ArgumentParser):
    """Parses items of one type, joined by commas; one that holds a comma is put in double quotes."""

    _EXAMPLES = {int: ("integers", "0,1,2"), float: ("numbers", "3,1"), str: ("names", "a,b")}

    def __init__(self, item_type: type, choices: Collection[str] | None = None):
        self._item_type, self._choices = item_type, choices
        self._noun, self._example = self._EXAMPLES[item_type]
        self.syntactic_help = f"{'|'.join(choices) if choices else self._noun}, joined by commas"

    def parse(self, argument: str | tuple) -> tuple:
        if isinstance(argument, tuple):
            return argument
        try:
            items = next(csv.reader([argument], strict=True, skipinitialspace=True), [])
            values = tuple(self._item_type(item) for item in items)
        except (csv.Error, ValueError):
            raise ValueError(f"not a list of {self._noun}, write for example {self._example}") from None
        if wrong := set(values) - set(self._choices or values):
            raise ValueError(f"{min(wrong)!r} is none of {', '.join(self._choices or ())}")
        return values


def _config() -> ConfigDict:
    """Returns the config, with the values of the flags that were given."""
    config: ConfigDict = flags.FLAGS[CONFIG].value  # type: ignore[assignment]
    given = {name: flags.FLAGS[name].value for name in _fields if flags.FLAGS[name].present}
    for name in given:
        if name not in config:
            raise ModelPatchError(f"--{name} is given, but --config={_config_file()} has no such field: leave it out")
    config.update(given)
    return config


def _config_file() -> str:
    return config_flags.get_config_filename(flags.FLAGS[CONFIG])


def _unknown_field(error: AttributeError) -> str:
    field, *nearest = re.findall(r"""['"]([\w.]+)\\?['"]""", str(error)) or [str(error)]
    return f"--config has no field {field!r}: {f'did you mean {nearest[0]}? See' if nearest else 'see'} --help for its fields"


def define_devices() -> Callable[[str], AbstractContextManager[str]]:
    """Defines the flags of `model_patch.training.strategies`; returns the context to train in.

    `with devices(workdir) as own_workdir` gives the folder that this process writes to: of several workers only the first
    writes to the workdir itself.
    """
    strategy = flags.DEFINE_enum(
        "strategy", "default", CHOICES["strategy"], "Devices to train on, see docs/scaling.md."
    )
    mixed = flags.DEFINE_bool("mixed_precision", False, "Compute in bfloat16; variables are float32.")
    synchronise = flags.DEFINE_bool(
        "synchronise", True, "Compute batch statistics over the whole batch instead of each device's share."
    )

    @contextmanager
    def devices(workdir: str):
        from model_patch.training import strategies

        with strategies.devices(strategy.value, mixed_precision=mixed.value, synchronise=synchronise.value):
            yield strategies.own_workdir(workdir, strategy.value)

    return devices


def _fail(message: str, status: int = EXIT_STATUS) -> NoReturn:
    close_all()  # A progress bar would share the error's line.
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)
