"""A patch: the values of one task's slots and head, and the file that holds them.

The file is a safetensors file with a JSON manifest in its metadata; `docs/patch_format.md` describes it key by key.
"""

import dataclasses
import hashlib
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import safetensors.numpy

from model_patch.errors import ModelPatchError, PatchError
from model_patch.files import write_bytes
from model_patch.kinds import Trained
from model_patch.tasks import Task

FORMAT_VERSION = 1
METADATA_KEY = "model_patch"
DTYPES = ("float32", "float16")


@dataclasses.dataclass(frozen=True)
class Patch:
    """One task's values on one trunk.

    Attributes:
        values: float32 arrays by key. A slot's key is `<layer path>/<variable name>`, as in `Trunk.variables`; the
            head's are `head.<variable name>`: without a slash, so that no layer's key can equal them.
        task: the task that they were learnt for.
        trained: what was trained.
        trunk: the spec of the trunk; for people, not compared.
        fingerprint: `Trunk.fingerprint` of every variable of the trunk that the patch leaves frozen.
        metrics: what was measured with it, by name; may be empty.
        versions: of the libraries that made it, by name.
    """

    values: dict[str, np.ndarray]
    task: Task
    trained: Trained
    trunk: str
    fingerprint: str
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    versions: dict[str, str] = dataclasses.field(default_factory=dict)

    def slots(self) -> dict[str, np.ndarray]:
        """Returns the values that replace variables of the trunk, by key."""
        return {key: value for key, value in self.values.items() if "/" in key}

    def to_bytes(self, dtype: str = "float32") -> bytes:
        """Returns the file's contents.

        Args:
            dtype: `float32` or `float16`. Values that float16 would make infinite or, where not zero, zero (a tiny
                variance) stay float32.

        Raises:
            ModelPatchError: the dtype is another, or a value is NaN or infinite.
        """
        if dtype not in DTYPES:
            raise ModelPatchError(f"a patch file cannot hold {dtype}: expected {' or '.join(DTYPES)}")
        for key, value in self.values.items():
            if not np.isfinite(value).all():
                raise ModelPatchError(f"the patch's {key} holds NaN or infinity: it is not saved; train it again")
        tensors = _pack({key: _as_dtype(value, dtype) for key, value in self.values.items()})
        manifest = {
            "format_version": FORMAT_VERSION,
            "train": str(self.trained),
            "norm_statistics": self.trained.norm_statistics,
            "trunk": self.trunk,
            "fingerprint": self.fingerprint,
            "task": self.task.to_json(),
            "metrics": self.metrics,
            "versions": self.versions,
            "checksum": _checksum(tensors),
        }
        return safetensors.numpy.save(tensors, {METADATA_KEY: json.dumps(manifest)})

    def save(self, path: str | Path, dtype: str = "float32"):
        """Writes the patch file, whole or not at all. Arguments and errors as `to_bytes` and `write_bytes`."""
        write_bytes(path, self.to_bytes(dtype))

    @classmethod
    def load(cls, path: str | Path) -> "Patch":
        """Reads a patch file. Nothing in it is executed.

        Raises:
            PatchError: the file is missing, damaged, or not a patch, or its values are not finite.
        """
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                manifest = json.loads((file.metadata() or {})[METADATA_KEY])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        except OSError as error:
            raise PatchError(f"the patch {path} cannot be read: {error}") from None
        except safetensors.SafetensorError as error:
            raise PatchError(f"{path} is damaged, or is not a patch file ({error}): copy or train it again") from None
        except (KeyError, ValueError):
            raise PatchError(
                f"{path} is a safetensors file but not a patch: it has no {METADATA_KEY} manifest"
            ) from None
        return cls._from_parts(path, manifest, tensors)

    @classmethod
    def _from_parts(cls, path, manifest, tensors) -> "Patch":
        try:
            if manifest["format_version"] != FORMAT_VERSION:
                raise PatchError(
                    f"{path} has format version {manifest['format_version']!r}: this version of model_patch reads "
                    f"{FORMAT_VERSION}; install a newer one"
                )
            if manifest["checksum"] != _checksum(tensors):
                raise PatchError(f"{path} is damaged: its values do not match its checksum; copy or train it again")
            patch = cls(
                _unpack(tensors),
                Task.from_json(manifest["task"]),
                Trained.parse(manifest["train"], manifest["norm_statistics"]),
                str(manifest["trunk"]),
                str(manifest["fingerprint"]),
                dict(manifest["metrics"]),
                dict(manifest["versions"]),
            )
        except PatchError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise PatchError(f"the manifest of {path} is not one that model_patch wrote ({error!r})") from None
        for key, value in patch.values.items():
            if not np.isfinite(value).all():
                raise PatchError(f"{path} holds NaN or infinity in {key}: train it again")
        return patch


def _as_dtype(value: np.ndarray, dtype: str) -> np.ndarray:
    value = np.asarray(value, dtype="float32")
    with np.errstate(over="ignore"):
        cast = value.astype(dtype)
    lossless_range = np.isfinite(cast).all() and ((cast != 0) == (value != 0)).all()
    return cast if lossless_range else value


# A safetensors header takes about 90 bytes per tensor: with one tensor per variable it would be a seventh of a float16
# S/B patch. So the variables of one layer that have one shape and dtype are stacked, their names joined by "+" in the key.
def _pack(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    groups = defaultdict(list)
    for key, value in values.items():
        layer, slash, name = key.rpartition("/")
        groups[layer + slash, value.shape, value.dtype].append((name, value))
    return {
        layer + "+".join(n for n, _ in group): np.stack([v for _, v in group])
        for (layer, _, _), group in groups.items()
    }


def _unpack(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    values = {}
    for key, stacked in tensors.items():
        layer, slash, names = key.rpartition("/")
        if stacked.dtype not in DTYPES:
            raise ValueError(f"{key} is {stacked.dtype}")
        for name, value in zip(names.split("+"), stacked, strict=True):
            if layer + slash + name in values:
                raise ValueError(f"{layer + slash + name} stands twice")
            values[layer + slash + name] = value.astype("float32")
    return values


def _checksum(tensors: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(f"{key} {tensors[key].dtype} {tensors[key].shape}\n".encode())
        digest.update(np.ascontiguousarray(tensors[key]).tobytes())
    return digest.hexdigest()
