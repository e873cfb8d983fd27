"""What can be done with patch files that are there: look at them, check, compare, average and convert them."""

import dataclasses
import hashlib
import importlib.metadata
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import safetensors.numpy

from model_patch.errors import ModelPatchError, PatchError, mismatches
from model_patch.files import as_path, local_copy, read_bytes
from model_patch.patch import METADATA_KEY, Patch

SUFFIX = ".safetensors"

MEAN, VARIANCE = "moving_mean", "moving_variance"
"""Ends of the keys of batch norm's statistics, in the trunk's slots and in heads."""


@dataclasses.dataclass(frozen=True)
class PatchFile:
    """A patch and the file that holds it.

    Attributes:
        path: where it lies.
        patch: what it holds.
        num_bytes: the file's size.
        sha256: checksum of the file, in hex: what `sha256sum` prints.
        dtypes: how many values the file holds in each dtype, by its name.
    """

    path: Path
    patch: Patch
    num_bytes: int
    sha256: str
    dtypes: dict[str, int]


def read(path: str | Path) -> PatchFile:
    """Reads a patch file. Raises as `Patch.load`."""
    patch = Patch.load(path)
    contents = read_bytes(path)
    dtypes: dict[str, int] = defaultdict(int)
    for tensor in safetensors.numpy.load(contents).values():
        dtypes[tensor.dtype.name] += tensor.size
    return PatchFile(as_path(path), patch, len(contents), hashlib.sha256(contents).hexdigest(), dict(dtypes))


def find(path: str | Path) -> tuple[list[PatchFile], list[str]]:
    """Returns the patches below a folder, sorted by path, and a sentence for each file that is damaged.

    Other safetensors files, such as a trunk's weights, are passed over.

    Args:
        path: a folder; or a file, which must then be a patch.

    Raises:
        ModelPatchError: the path does not exist, or is a file that is no patch.
    """
    path = as_path(path)
    if not path.is_dir():
        return [read(path)], []
    found, damaged = [], []
    for file in sorted(path.rglob(f"*{SUFFIX}")):
        try:
            found.append(read(file))
        except PatchError as error:
            if not _is_foreign(file):
                damaged.append(str(error))
    return found, damaged


def _is_foreign(path: Path) -> bool:
    """Whether it is a whole safetensors file of something else than a patch."""
    try:
        with local_copy(path) as local, safetensors.safe_open(local, framework="numpy") as file:
            return METADATA_KEY not in (file.metadata() or {})
    except (OSError, safetensors.SafetensorError):
        return False


@dataclasses.dataclass(frozen=True)
class VariableSummary:
    """All the variables of a patch that have one name, such as every gamma.

    Attributes:
        name: `gamma`, or `head.kernel`.
        num_slots: how many there are.
        num_values: how many values they have together.
        low, high: the smallest and the largest value.
    """

    name: str
    num_slots: int
    num_values: int
    low: float
    high: float


def summarise(patch: Patch) -> list[VariableSummary]:
    """Returns a line for each name of variables, in order of first appearance."""
    named = {name: [patch.values[key] for key in keys] for name, keys in _by_name(patch.values).items()}
    return [
        VariableSummary(
            name,
            len(arrays),
            sum(array.size for array in arrays),
            min(float(array.min()) for array in arrays),
            max(float(array.max()) for array in arrays),
        )
        for name, arrays in named.items()
    ]


def verify(trunk: str, path: str | Path) -> tuple[PatchFile, str]:
    """Checks that a patch file is whole and belongs to a trunk: key by key, shape by shape and by fingerprint.

    Args:
        trunk: spec of the trunk, opened at the image size of the patch.
        path: the patch file.

    Returns:
        The file, whose patch's fingerprint is then the trunk's, too; and `Trunk.fingerprint` of all the trunk's variables,
        those included that the patch replaces: it stays the same as long as no value of the trunk changes.

    Raises:
        ModelPatchError: the file is damaged, the trunk cannot be opened, or they do not belong together.
    """
    from model_patch.bind import bind_patch
    from model_patch.trunks import open_trunk

    file = read(path)
    opened = open_trunk(trunk, file.patch.task.preprocessing.image_size)
    bind_patch(opened, file.patch)
    return file, opened.fingerprint(opened.variables())


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far the variables of one name lie apart in two patches.

    Attributes:
        name: `gamma`, or `head.kernel`.
        num_values: how many there are in each patch.
        num_different: how many of them differ at all.
        largest: the largest absolute difference, and `key` of the variable where it is.
        rms: root of the mean square difference; `relative` to the root of the mean square value in the first patch,
            infinite where that is 0.
    """

    name: str
    num_values: int
    num_different: int
    largest: float
    key: str
    rms: float
    relative: float


def diff(first: Patch, second: Patch) -> tuple[list[str], list[Difference]]:
    """Compares two patches.

    Returns:
        What their manifests, keys and shapes differ in, a line each; and for the variables that both have in one shape,
        by name, how far apart they are.
    """
    notes = [
        f"{name}: {one} | {two}"
        for name, one, two in (
            ("task", first.task.name, second.task.name),
            ("labels", ", ".join(first.task.labels), ", ".join(second.task.labels)),
            ("preprocessing", first.task.preprocessing, second.task.preprocessing),
            ("train", first.train_spec, second.train_spec),
            ("norm_statistics", first.train_spec.norm_statistics, second.train_spec.norm_statistics),
            ("trunk", first.trunk, second.trunk),
            ("fingerprint", first.fingerprint, second.fingerprint),
        )
        if one != two
    ]
    keys = mismatches(_shapes(first), _shapes(second))
    notes += [f"variables of the second against the first: {keys}"] if keys else []
    both = [k for k, value in first.values.items() if k in second.values and second.values[k].shape == value.shape]
    return notes, [_difference(name, keys, first, second) for name, keys in _by_name(both).items()]


def _difference(name: str, keys: Sequence[str], first: Patch, second: Patch) -> Difference:
    distances = {key: np.abs(first.values[key].astype("float64") - second.values[key]) for key in keys}
    farthest = max(distances, key=lambda key: distances[key].max())
    rms, of_first = (_rms(arrays) for arrays in (distances.values(), [first.values[key] for key in keys]))
    return Difference(
        name,
        sum(each.size for each in distances.values()),
        sum(int(np.count_nonzero(each)) for each in distances.values()),
        float(distances[farthest].max()),
        farthest,
        rms,
        rms / of_first if of_first else float("inf") if rms else 0.0,
    )


def average(patches: Sequence[Patch], weights: Sequence[float] | None = None) -> Patch:
    """Averages patches of one task on one trunk, for example those of several seeds or of several sites' data.

    Variances are those of the mixture of what the patches have seen: avg(v_i) + avg((m_i - avg(m_i))^2). All other
    variables, heads too, are plain averages, which says something for heads that began at the same random values.

    Args:
        patches: at least two.
        weights: a positive weight for each, relative to the others, such as its number of images; None for equal ones.

    Returns:
        A patch with the first one's task and without metrics, temperature and thresholds: nothing was measured with it.

    Raises:
        ModelPatchError: there are fewer than two, the weights do not fit, or the patches do not belong together: another
            trunk, labels, preprocessing, type of task, what was trained, keys or shapes.
    """
    if len(patches) < 2:
        raise ModelPatchError(f"{len(patches)} patch is given to average: expected at least two")
    share = _shares(patches, weights)
    first, *others = patches
    for other in others:
        _check_together(first, other)

    def mean(arrays: Iterable[np.ndarray]) -> np.ndarray:
        return np.sum([part * array.astype("float64") for part, array in zip(share, arrays, strict=True)], axis=0)

    values = {}
    for key in first.values:
        averaged = mean(patch.values[key] for patch in patches)
        means_key = key.removesuffix(VARIANCE) + MEAN
        if key.endswith(VARIANCE) and means_key in first.values:
            means = [patch.values[means_key] for patch in patches]
            centre = mean(means)
            averaged = averaged + mean((each - centre) ** 2 for each in means)
        values[key] = averaged.astype("float32")
    versions = {"numpy": importlib.metadata.version("numpy")}
    return dataclasses.replace(first, values=values, task=first.task.unfitted(), metrics={}, versions=versions)


def _shares(patches: Sequence[Patch], weights: Sequence[float] | None) -> list[float]:
    """Returns the weights, adding up to 1."""
    weights = [1.0] * len(patches) if weights is None else list(weights)
    if len(weights) != len(patches) or not all(0 < weight < float("inf") for weight in weights):
        given = ",".join(f"{weight:g}" for weight in weights)
        raise ModelPatchError(f"the weights {given} do not fit {len(patches)} patches: give a positive number for each")
    return [weight / sum(weights) for weight in weights]


def _check_together(first: Patch, other: Patch):
    """Raises an error where two patches are not of one task on one trunk."""
    names = f"the patches {first.task.name!r} and {other.task.name!r}"
    for what, one, two in (
        ("labels", first.task.labels, other.task.labels),
        ("preprocessing", first.task.preprocessing, other.task.preprocessing),
        ("types or units", *(dataclasses.replace(each.task.unfitted(), name="x").to_json() for each in (first, other))),
        ("trained kinds", str(first.train_spec), str(other.train_spec)),
        ("statistics", first.train_spec.norm_statistics, other.train_spec.norm_statistics),
        # What is frozen depends on what is trained, so this comes after it.
        ("trunks, by fingerprint", first.fingerprint[:12], other.fingerprint[:12]),
    ):
        if one != two:
            raise ModelPatchError(f"{names} have different {what}: {one} and {two}; average patches that agree in it")
    mismatched = mismatches(_shapes(first), _shapes(other))
    if mismatched:
        raise ModelPatchError(f"{names} have different variables: {mismatched}; average patches that agree in them")


def convert(path: str | Path, output: str | Path, dtype: str) -> tuple[PatchFile, PatchFile, float]:
    """Writes a patch again, with its values in another dtype.

    Args:
        path: the patch file; unchanged.
        output: the file to write; it must not exist.
        dtype: see `Patch.to_bytes`.

    Returns:
        The old file, the new one, and the largest change of a value, as a fraction of it.

    Raises:
        ModelPatchError: the patch cannot be read, the dtype is unknown, or the output exists or cannot be written.
    """
    old = read(path)
    save_new(old.patch, output, dtype)
    new = read(output)
    changes = [
        np.abs(new.patch.values[key] - value)[value != 0] / np.abs(value[value != 0])
        for key, value in old.patch.values.items()
    ]
    return old, new, max((float(change.max()) for change in changes if change.size), default=0.0)


def save_new(patch: Patch, output: str | Path, dtype: str):
    """Writes a patch where there is no file yet. Raises as `Patch.save`, and where the output exists."""
    if as_path(output).exists():
        raise ModelPatchError(f"{output} exists: choose another --output, or delete it")
    patch.save(output, dtype)


def _shapes(patch: Patch) -> dict[str, tuple]:
    return {key: value.shape for key, value in patch.values.items()}


def _by_name(keys: Iterable[str]) -> dict[str, list[str]]:
    """Groups keys by the name of the variable: `gamma` for `stem_bn/gamma`, `head.kernel` for `head.extra.kernel`."""
    groups: dict[str, list[str]] = defaultdict(list)
    for key in keys:
        name = key.rpartition("/")[2]
        groups[re.sub(r"\..*\.", ".", name)].append(key)
    return dict(groups)


def _rms(arrays: Iterable[np.ndarray]) -> float:
    flat = np.concatenate([np.ravel(array).astype("float64") for array in arrays])
    return float(np.sqrt(np.mean(flat**2)))
