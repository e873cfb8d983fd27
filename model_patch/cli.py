"""What all scripts share: flags over a config, and errors as one sentence."""

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from model_patch.errors import ModelPatchError

EXIT_STATUS = 2
"""Exit status of a script that was given something it cannot use."""

CONFIG = "config"
"""Name of the flag that `define_config` defines."""


def run(main: Callable[[], None]):
    """Runs a script: parses its flags, refuses stray arguments, and prints this package's errors as one sentence."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

    def guarded(argv):
        if len(argv) > 1:
            _fail(f"unexpected argument {argv[1]!r}: values are given as --flag=value")
        # Absl's own handler prefixes every line with file and time: for people at a terminal the message is enough.
        logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
        logging.getLogger("model_patch").setLevel(logging.INFO)
        try:
            main()
        except ModelPatchError as error:
            _fail(str(error))
        except KeyboardInterrupt:
            _fail("interrupted: rows that are finished are kept; the same command goes on", 130)

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
        _fail(f"--config has no field {str(error).strip(chr(34))}: see {path.name} for the fields it has")


def override(config: ConfigDict, **values) -> ConfigDict:
    """Returns the config with those values that are not None, the flags that were given, in place of its own."""
    config.update({name: value for name, value in values.items() if value is not None})
    return config


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


def _fail(message: str, status: int = EXIT_STATUS) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)
