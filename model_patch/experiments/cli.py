"""What all scripts share: flags over a config, and errors as one sentence."""

import inspect
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import NoReturn

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

from model_patch.errors import ModelPatchError

EXIT_STATUS = 2
"""Exit status of a script that was given something it cannot use."""

flags.disclaim_key_flags()  # What is defined here belongs to the script that asked for it, and is in its --help.

CONFIG = "config"
"""Name of the flag that `define_config` defines."""

_ALLOW_LAMBDA = flags.DEFINE_bool(
    "allow_lambda", False, "Run the Python code of Lambda layers in trunk files: only of files whose maker you trust."
)
"""Every script takes it."""


def run(main: Callable[[], None], *, resumes: bool = False):
    """Runs a script: parses its flags, refuses stray arguments, and prints this package's errors as one sentence.

    Args:
        main: called without arguments.
        resumes: whether the same command goes on where an interrupt ended it; said then.
    """

    def call(arguments: list[str]):
        if arguments:
            _fail(f"unexpected argument {arguments[0]!r}: values are given as --flag=value")
        main()

    _run(call, resumes)


def run_commands(commands: dict[str, Callable[..., None]], *, resumes: bool = False):
    """Runs a script of several commands: `script.py COMMAND ARGUMENT... --flag=value`.

    Args:
        commands: a function per command. Its signature says what the command takes: positional parameters are the
            arguments, keyword-only ones flags that the script defines; those without a default must be given. One
            called `config` takes the value of `--config`.
        resumes: as for `run`.

    As in `run`, what cannot be used is one sentence: an unknown command, arguments too few or too many, a flag that is
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

    _run(call, resumes)


def _options(command: str, signature: inspect.Signature) -> dict[str, object]:
    """Returns the values of the flags that were given, by name; those of other commands are refused."""
    takes = {name for name, each in signature.parameters.items() if each.kind is each.KEYWORD_ONLY}
    given = {flag.name: flag.value for flag in flags.FLAGS.get_key_flags_for_module("__main__") if flag.present}
    # `--config` and its fields are flags of the module that defines them; it has a default, and is there when not given.
    given |= {name: None for name in flags.FLAGS if name.partition(".")[0] == CONFIG and flags.FLAGS[name].present}
    for name in given:
        if name.partition(".")[0] not in takes:
            _fail(f"{command} does not take --{name}: it expects {_usage(signature)}")
    config = {CONFIG: flags.FLAGS[CONFIG].value} if CONFIG in takes else {}
    return {name: value for name, value in given.items() if name in takes} | config


def _usage(signature: inspect.Signature) -> str:
    """Says what a command takes, for example `PATCH [PATCHES...] --output=..`."""
    words = []
    for name, each in signature.parameters.items():
        if each.kind is each.VAR_POSITIONAL:
            words.append(f"[{name.upper()}...]")
        else:
            word = f"--{name}=.." if each.kind is each.KEYWORD_ONLY else name.upper()
            needed = each.default is each.empty and name != CONFIG  # That has a default of its own.
            words.append(word if needed else f"[{word}]")
    return " ".join(words)


def _run(call: Callable[[list[str]], None], resumes: bool):
    """Parses the flags and calls with what is left, this package's errors as one sentence."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

    def guarded(argv):
        # Absl's own handler prefixes every line with file and time: for people at a terminal the message is enough.
        logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
        logging.getLogger("model_patch").setLevel(logging.INFO)
        absl_logging.set_verbosity(absl_logging.WARNING)  # TensorFlow reports each step of an export through it.
        try:
            with _code_of_trunks():
                call(argv[1:])
        except ModelPatchError as error:
            _fail(str(error))
        except KeyboardInterrupt:
            # Only scripts with a workdir of rows go on; what the others wrote so far is whole, but they begin anew.
            goes_on = "rows that are finished are kept; the same command goes on"
            _fail(f"interrupted: {goes_on if resumes else 'the same command begins anew'}", 130)

    def parse(argv):
        try:
            arguments = flags.FLAGS(argv)
            if CONFIG in flags.FLAGS:
                flags.FLAGS[CONFIG].value.keys()  # A file that could not be read says so when it is first used.
            return arguments
        except flags.Error as error:
            _fail(str(error).replace("\n", "; "))
        except OSError:
            path = config_flags.get_config_filename(flags.FLAGS[CONFIG])
            _fail(f"--config={path} cannot be read: expected a Python file with get_config()")

    app.run(guarded, flags_parser=parse)


def _code_of_trunks() -> AbstractContextManager[None]:
    """Returns what a script runs in: code in trunk files stays unrun unless the flag allows it."""
    if not _ALLOW_LAMBDA.value:
        return nullcontext()
    from model_patch.trunks.file import lambdas_allowed

    return lambdas_allowed()


def define_config(path: Path) -> flags.FlagHolder:
    """Defines the flag `--config`, a Python file with `get_config()`, and `--config.NAME` for each field of it.

    Args:
        path: the file that is taken by default.

    Returns:
        Holder of the flag; its `value` is a `ConfigDict`.
    """
    try:
        return config_flags.DEFINE_config_file(CONFIG, str(path), "Python file with get_config().")
    except AttributeError as error:  # --config.NAME is looked up in the default file as soon as the flag is defined.
        field, *nearest = re.findall(r"""['"]([\w.]+)\\?['"]""", str(error)) or [str(error)]
        hint = f"did you mean {nearest[0]}? See" if nearest else "see"
        _fail(f"--config has no field {field!r}: {hint} {path.name} for the fields it has")


def define_outputs() -> tuple[flags.FlagHolder, flags.FlagHolder]:
    """Defines the flags `--workdir`, and `--dry_run`, with which alone the first may be left out; returns both."""
    workdir = flags.DEFINE_string("workdir", None, "Folder for everything that the run writes.")
    dry_run = flags.DEFINE_bool(
        "dry_run", False, "Build the nets without weights or data, count, train one step, write nothing."
    )
    flags.register_multi_flags_validator(
        ["workdir", "dry_run"],
        lambda given: bool(given["workdir"]) != given["dry_run"],
        "give --workdir=FOLDER, or --dry_run, and not both",
    )
    return workdir, dry_run


def define_devices() -> Callable[[str], AbstractContextManager[str]]:
    """Defines the flags of `model_patch.training.strategies`; returns what to train in.

    `with devices(workdir) as own_workdir` gives the folder that this process writes to: of several workers only the first
    has the workdir itself.
    """
    strategy = flags.DEFINE_enum(
        "strategy",
        "default",
        ["default", "mirrored", "multi_worker", "tpu"],
        "Which devices train, see docs/scaling.md.",
    )
    mixed = flags.DEFINE_bool("mixed_precision", False, "Compute in bfloat16; variables stay float32.")
    synchronise = flags.DEFINE_bool(
        "synchronise", True, "Statistics of a batch are those of the whole one, not of each device's part."
    )

    @contextmanager
    def devices(workdir: str):
        from model_patch.training import strategies

        with strategies.devices(strategy.value, mixed_precision=mixed.value, synchronise=synchronise.value):
            yield strategies.own_workdir(workdir, strategy.value)

    return devices


def override(config: ConfigDict, **values) -> ConfigDict:
    """Returns the config with those values that are not None, the flags that were given, in place of its own."""
    config.update({name: value for name, value in values.items() if value is not None})
    return config


class Fields:
    """The flags of a script that set fields of its config, each by the field's name.

    Every method defines flags, from a name to what `--help` says of it; none has a default of its own.
    """

    def __init__(self) -> None:
        self._flags: list[tuple[flags.FlagHolder, Callable]] = []

    def strings(self, **said: str):
        """Defines flags whose values are text."""
        self._define(flags.DEFINE_string, said)

    def integers(self, **said: str):
        """Defines flags whose values are integers."""
        self._define(flags.DEFINE_integer, said)

    def numbers(self, **said: str):
        """Defines flags whose values are numbers."""
        self._define(flags.DEFINE_float, said)

    def switches(self, **said: str):
        """Defines flags that are given as `--name` or `--noname`."""
        self._define(flags.DEFINE_bool, said)

    def choice(self, values: Sequence[str], **said: str):
        """Defines flags whose values are one of `values`."""
        self._define(lambda name, default, text: flags.DEFINE_enum(name, default, list(values), text), said)

    def lists(self, **said: str):
        """Defines flags whose values are texts, joined by commas."""
        self._define(flags.DEFINE_list, said, lambda name, texts: tuple(texts))

    def integer_lists(self, **said: str):
        """Defines flags whose values are integers, joined by commas."""
        self._define(flags.DEFINE_list, said, integers)

    def number_lists(self, **said: str):
        """Defines flags whose values are numbers, joined by commas."""
        self._define(flags.DEFINE_list, said, numbers)

    def over(self, config: ConfigDict, **values) -> ConfigDict:
        """Returns the config with what the flags say in place of its own.

        Args:
            config: has all the fields.
            **values: more of them, as for `override`.

        Raises:
            ModelPatchError: an element of a list is not what the list is of.
        """
        given = {holder.name: of(holder.name, holder.value) for holder, of in self._flags if holder.value is not None}
        return override(config, **given, **values)

    def _define(self, define: Callable[..., flags.FlagHolder], said: dict[str, str], of=lambda name, value: value):
        self._flags += [(define(name, None, text), of) for name, text in said.items()]


def integers(flag: str, texts: list[str]) -> tuple[int, ...]:
    """Returns a list flag's values as integers.

    Raises:
        ModelPatchError: one is not an integer.
    """
    try:
        return tuple(int(text) for text in texts)
    except ValueError:
        raise ModelPatchError(
            f"--{flag}={','.join(texts)} is not a list of integers: write for example 0,1,2"
        ) from None


def numbers(flag: str, texts: list[str]) -> tuple[float, ...]:
    """Returns a list flag's values as numbers.

    Raises:
        ModelPatchError: one is not a number.
    """
    try:
        return tuple(float(text) for text in texts)
    except ValueError:
        raise ModelPatchError(f"--{flag}={','.join(texts)} is not a list of numbers: write for example 3,1") from None


def _fail(message: str, status: int = EXIT_STATUS) -> NoReturn:
    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()  # What was cut off in the middle would stand on the error's line.
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)
