"""A patch: the values of one task's slots and head, and the file that holds them.

The file is a safetensors file with a JSON manifest in its metadata; `docs/patch_format.md` describes it key by key.
"""

import dataclasses
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import safetensors.numpy

from model_patch.errors import ModelPatchError, PatchError, mismatches
from model_patch.files import as_path, local_copy, write_bytes
from model_patch.kinds import VERSION, TrainSpec
from model_patch.tasks import Task

FORMAT_VERSION = 2
"""Version 1 has a checksum of the values alone; it is read, too."""

METADATA_KEY = "model_patch"
DTYPES = ("float32", "float16")
SAFETENSORS_DTYPES = {"F32": "float32", "F16": "float16"}

MAX_IMAGE_SIZE = 2**14
"""Pixels. A file that claims a larger image would only fill the reader's memory."""

MAX_HEADER = 2**22
"""Bytes of a file's header: the manifest, and where each tensor lies. A hundred thousand labels take less."""

MAX_BRACKETS = 2**10
"""In a manifest, besides one for each quotation mark: an empty list or dict takes twenty times its length in memory."""

CHUNK_BYTES = 2**14
"""How much of a tensor is read at once."""

_CHECKSUM = ', "checksum": "{}"}}'
"""End of the manifest's text; what comes before it is summed."""


def check_dtype(dtype: str):
    """Checks that a patch file can hold values of a dtype.

    Raises:
        ModelPatchError: it cannot.
    """
    if dtype not in DTYPES:
        raise ModelPatchError(f"a patch file cannot hold {dtype}: expected {' or '.join(DTYPES)}")


@dataclasses.dataclass(frozen=True)
class Patch:
    """One task's values on one trunk.

    Attributes:
        values: float32 arrays by key. A slot's key is `<layer path>/<variable name>`, as in `Trunk.variables`; the
            head's are `head.<variable name>`: without a slash, so that no layer's key can equal them.
        task: the task that they were trained for.
        train_spec: what was trained.
        trunk: the spec of the trunk; for people, not compared.
        fingerprint: `Trunk.fingerprint` of every variable of the trunk that the patch leaves frozen.
        metrics: what was measured with it, by name; may be empty.
        versions: versions of the libraries that made it, by name.
    """

    values: dict[str, np.ndarray]
    task: Task
    train_spec: TrainSpec
    trunk: str
    fingerprint: str
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    versions: dict[str, str] = dataclasses.field(default_factory=dict)

    def require_fit(self, trunk: str, train_spec: TrainSpec, shapes: dict[str, tuple], fingerprint: str):
        """Checks that the patch belongs to a trunk.

        Args:
            trunk: its name.
            train_spec: what was trained, where the patch is to go.
            shapes: shapes of all the values that a patch of such kinds, labels and head has there, by key.
            fingerprint: `Trunk.fingerprint` of what it leaves frozen.

        Raises:
            PatchError: keys, shapes or the fingerprint are others.
        """
        mismatched = mismatches(shapes, {key: value.shape for key, value in self.values.items()})
        if mismatched:
            raise PatchError(
                f"the patch {self.task.name!r} ({self.train_spec}, made on {self.trunk}) does not fit {train_spec} on the "
                f"trunk {trunk}: {mismatched}"
            )
        if self.fingerprint != fingerprint:
            raise PatchError(
                f"the patch {self.task.name!r} belongs to another trunk: it was made on {self.trunk} with the fingerprint "
                f"{self.fingerprint[:12]}, and {trunk} has {fingerprint[:12]}; open the trunk it was made on"
            )

    def to_bytes(self, dtype: str = "float32") -> bytes:
        """Returns the file's contents.

        Args:
            dtype: `float32` or `float16`. Values that float16 would make infinite or, where not zero, zero (a tiny
                variance) stay float32.

        Raises:
            ModelPatchError: the dtype is another, or a value is NaN or infinite.
        """
        check_dtype(dtype)
        for key, value in self.values.items():
            if not np.isfinite(value).all():
                raise ModelPatchError(f"the patch's {key} holds NaN or infinity: it is not saved; train it again")
        tensors = _pack({key: _as_dtype(value, dtype) for key, value in self.values.items()})
        manifest = {
            "format_version": FORMAT_VERSION,
            "train": str(self.train_spec),
            "kinds_version": self.train_spec.version,
            "norm_statistics": self.train_spec.norm_statistics,
            "trunk": self.trunk,
            "fingerprint": self.fingerprint,
            "task": self.task.to_json(),
            "metrics": self.metrics,
            "versions": self.versions,
        }
        text = json.dumps(manifest).removesuffix("}")
        summed = ((key, tensor.dtype.name, tensor.shape, [tensor]) for key, tensor in sorted(tensors.items()))
        text += _CHECKSUM.format(_checksum(text, summed))
        contents = safetensors.numpy.save(tensors, {METADATA_KEY: text})
        if _header_bytes(contents) > MAX_HEADER or not _is_plain(text):
            raise ModelPatchError(
                f"the labels of {self.task.name!r} are too long, or hold too many brackets, for a patch file: give others"
            )
        return contents

    def save(self, path: str | Path, dtype: str = "float32"):
        """Writes the patch file, whole or not at all. Arguments and errors as `to_bytes` and `write_bytes`."""
        write_bytes(path, self.to_bytes(dtype))

    @classmethod
    def load(cls, path: str | Path) -> "Patch":
        """Reads a patch file. Nothing in it is executed, and nothing is believed that its checksum does not cover.

        Raises:
            PatchError: the file is missing, damaged, or not a patch, or its values are not finite.
        """
        place = as_path(path)
        if place.exists() and not place.is_file():
            raise PatchError(f"the patch {path} cannot be read: it is not a file")
        try:
            with local_copy(place) as local:
                with local.open("rb") as start:
                    length = _header_bytes(start.read(8))
                if length > MAX_HEADER:
                    raise PatchError(f"{path} is damaged, or is not a patch file: its header would have {length} bytes")
                with safetensors.safe_open(local, framework="numpy") as file:
                    return cls._from_file(path, file)
        except PatchError:
            raise
        except OSError as error:
            raise PatchError(f"the patch {path} cannot be read: {error}") from None
        except Exception as error:  # Whatever a parser raises while it reads the file, it is about the file.
            raise PatchError(f"{path} is damaged, or is not a patch file ({error}): copy or train it again") from None

    @classmethod
    def _from_file(cls, path, file) -> "Patch":
        text = (file.metadata() or {}).get(METADATA_KEY)
        if text is None:
            raise PatchError(f"{path} is a safetensors file but not a patch: it has no {METADATA_KEY} manifest")
        if not _is_plain(text):
            raise _not_ours(path, ValueError("its text is not what this package writes"))
        try:
            manifest = json.loads(text)
            version = manifest["format_version"]
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise _not_ours(path, error) from None
        if version not in (1, FORMAT_VERSION):
            raise PatchError(
                f"{path} has format version {version!r}: this version of model_patch reads 1 and {FORMAT_VERSION}; "
                "install a newer one"
            )
        summed = "" if version == 1 else text.removesuffix(_CHECKSUM.format(manifest.get("checksum")))
        values: dict[str, np.ndarray] = {}
        checksum = _checksum(summed, ((key, *_read_into(values, key, file)) for key in sorted(file.keys())))
        if manifest.get("checksum") != checksum:
            raise PatchError(f"{path} is damaged: its contents do not match its checksum; copy or train it again")
        try:
            patch = _from_manifest(manifest, values)
        except Exception as error:  # Every type of task reads its own fields.
            raise _not_ours(path, error) from None
        for key, value in values.items():
            # By its ends, which NaN spreads to: no array as large as the value is made.
            if not np.isfinite([value.min(initial=0), value.max(initial=0)]).all():
                raise PatchError(f"{path} holds NaN or infinity in {key}: train it again")
        return patch


def _from_manifest(manifest: dict, values: dict[str, np.ndarray]) -> Patch:
    """Returns a patch of a manifest that was read, which may hold anything; raises any exception where it does."""
    task = manifest["task"]
    texts = [manifest["trunk"], manifest["fingerprint"], manifest["train"], task["name"], *task["labels"]]
    size = task["preprocessing"]["image_size"]
    if not (
        isinstance(task["labels"], list)
        and all(isinstance(each, str) for each in [*texts, *manifest["versions"].values()])
        and all(type(each) in (int, float) for each in manifest["metrics"].values())
        and type(size) is int
        and 0 < size <= MAX_IMAGE_SIZE
    ):
        raise TypeError("a field is of another type, or out of range")
    version = manifest.get("kinds_version", 1)
    if version not in range(1, VERSION + 1):
        raise ValueError(f"kinds_version is {version!r}: install a newer model_patch")
    train_spec = TrainSpec.parse(manifest["train"], manifest["norm_statistics"], version)
    return Patch(
        values,
        Task.from_json(task),
        train_spec,
        manifest["trunk"],
        manifest["fingerprint"],
        manifest["metrics"],
        manifest["versions"],
    )


def _header_bytes(contents: bytes) -> int:
    """Returns the length of a safetensors file's header, by its first bytes."""
    return int.from_bytes(contents[:8], "little")


def _is_plain(manifest: str) -> bool:
    """Whether a manifest is ASCII, with not many more brackets than texts: others take far more memory than their length."""
    return manifest.isascii() and manifest.count("[") + manifest.count("{") <= MAX_BRACKETS + manifest.count('"')


def _not_ours(path, error: Exception) -> PatchError:
    return PatchError(f"the manifest of {path} is not one that model_patch wrote ({error!r})")


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


def _read_into(values: dict[str, np.ndarray], key: str, file) -> tuple[str, tuple, Iterable[np.ndarray]]:
    """Returns a tensor's dtype, shape and contents, in chunks. As they are read, what is packed in it comes into the values.

    A chunk at a time, so that hardly more is in memory than the values, float32: twice the file where it holds float16.
    """
    tensor = file.get_slice(key)
    shape, dtype = tuple(tensor.get_shape()), SAFETENSORS_DTYPES.get(tensor.get_dtype())
    layer, slash, joined = key.rpartition("/")
    names = joined.split("+")
    if dtype is None or len(names) != (*shape, None)[0]:
        raise ValueError(f"{key} is {tensor.get_dtype()} of the shape {shape}")
    stacked = np.empty(shape, "float32")
    for i, name in enumerate(names):
        if layer + slash + name in values:
            raise ValueError(f"{layer + slash + name} is given twice")
        values[layer + slash + name] = stacked[i, ...]

    def chunks():
        if len(shape) == 1:
            stacked[:] = tensor[:]
            yield tensor[:]
            return
        rows = max(1, CHUNK_BYTES // max(1, stacked[0, :1].nbytes))
        for i in range(len(names)):
            for at in range(0, shape[1] if stacked.size else 0, rows):
                end = min(at + rows, shape[1])
                chunk = stacked[i, at:end] = tensor[i, at:end]
                yield chunk

    return dtype, shape, chunks()


def _checksum(text: str, tensors: Iterable[tuple[str, str, tuple, Iterable[np.ndarray]]]) -> str:
    """Returns the SHA-256 (hex) of the text, and of key, dtype, shape and bytes of each tensor, which come in sorted order."""
    digest = hashlib.sha256(text.encode())
    for key, dtype, shape, chunks in tensors:
        digest.update(f"{key} {dtype} {shape}\n".encode())
        for chunk in chunks:
            digest.update(np.ascontiguousarray(chunk).data)
    return digest.hexdigest()
