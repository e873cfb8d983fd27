"""The runs that the scripts start: the paper's experiments, what is measured, and the folders they write.

Nothing outside of this package imports from it.
"""

import sys


def _on_uncaught(kind, error, traceback):
    """Reports Ctrl-C in one line, also while modules are imported: what a script does then is for `cli.run`."""
    if issubclass(kind, KeyboardInterrupt):
        print("error: interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


sys.excepthook = _on_uncaught
