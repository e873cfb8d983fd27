"""Files that are no whole patch: each either loads exactly or raises `PatchError`, and a model never changes for it."""

import contextlib
import copy
import dataclasses
import functools
import hashlib
import json
import math
import struct
import tracemalloc

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from model_patch import ModelPatchError, Patch, PatchError, Preprocessing, Task, Trunk, bind
from model_patch.kinds import TrainSpec
from model_patch.patch import METADATA_KEY
from tests.conftest import SIZE, same, small_net, snapshot

SPARE_BYTES = 2**17
"""What Python itself may take while it reads a file, beside twice the file's size: for files of a few KiB it is more than they."""

BYTES_PER_LABEL = 100
"""What a label takes besides its text in the file."""

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(
    ["../../etc/passwd", "/", "", "a//b", "head.", "+", "gamma+gamma", "stem_bn/gamma", "C:\\x", "é/ß"]
)
DTYPES = ["float16", "float32", "float64", "int64", "uint8", "bool"]


@functools.cache
def whole():
    """A bound task of other values, and the bytes of the patch that is damaged."""
    trunk = Trunk(small_net(), "test", Preprocessing(SIZE, "tf"))
    task = Task("shapes", ("circle", "square", "star"), trunk.preprocessing)
    patch = bind(trunk, task, "scale_bias+last", seed=1).patch({"accuracy": 0.5})
    return bind(trunk, task, "scale_bias+last", seed=2), patch, patch.to_bytes()


@pytest.fixture(autouse=True, scope="module")
def made_before():
    """Keras draws from Python's global random numbers, which no strategy of hypothesis may."""
    whole()


def parts(contents: bytes) -> tuple[dict, dict]:
    """Returns the manifest and the tensors of a whole file."""
    (length,) = struct.unpack("<Q", contents[:8])
    manifest = json.loads(json.loads(contents[8 : 8 + length])["__metadata__"][METADATA_KEY])
    return manifest, safetensors.numpy.load(contents)


def signed(manifest: dict, tensors: dict) -> bytes:
    """Makes a file with the checksum that its contents need, by docs/patch_format.md."""
    text = json.dumps({key: value for key, value in manifest.items() if key != "checksum"})[:-1]
    digest = hashlib.sha256(text.encode(errors="replace"))
    for key in sorted(tensors):
        digest.update(f"{key} {tensors[key].dtype} {tensors[key].shape}\n".encode() + tensors[key].tobytes())
    text += f', "checksum": "{digest.hexdigest()}"}}'
    return safetensors.numpy.save(tensors, {METADATA_KEY: text})


def with_header(contents: bytes, change) -> bytes:
    """Returns the file with another header: `change` gets its text and returns one."""
    (length,) = struct.unpack("<Q", contents[:8])
    header = change(contents[8 : 8 + length].decode()).encode(errors="replace")
    return struct.pack("<Q", len(header)) + header + contents[8 + length :]


@st.composite
def damaged(draw) -> bytes:
    """A patch file after an accident or an attack that did not mend its checksum; now and then it is as it was."""
    contents = bytearray(whole()[2])
    way = draw(st.sampled_from(["bits", "cut", "more", "length", "shape", "offsets", "twice", "key", "format"]))
    if way == "bits":
        for bit in draw(st.lists(st.integers(0, 8 * len(contents) - 1), min_size=1, max_size=4)):
            contents[bit // 8] ^= 1 << bit % 8
    elif way == "cut":
        del contents[draw(st.integers(0, len(contents) - 1)) :]
    elif way == "more":
        at = draw(st.integers(0, len(contents)))
        contents[at:at] = draw(st.binary(max_size=40))
    elif way == "length":
        contents[:8] = struct.pack("<Q", draw(st.integers(0, 2**64 - 1) | st.integers(0, 2 * len(contents))))
    else:
        return with_header(bytes(contents), lambda text: draw(_headers(way, text)))
    return bytes(contents)


@st.composite
def _headers(draw, way: str, text: str) -> str:
    header = json.loads(text)
    key = draw(st.sampled_from(sorted(header.keys() - {"__metadata__"})))
    if way == "shape":
        sizes = st.sampled_from([0, -1, 1, 2**31, 2**62, 2**64, 10**30]) | st.integers(0, 99)
        header[key]["shape"] = draw(st.lists(sizes, max_size=4))
    elif way == "offsets":
        header[key]["data_offsets"] = draw(st.lists(st.integers(-9, 2**64), min_size=2, max_size=2))
    elif way == "key":
        header[draw(KEYS | st.text(max_size=300))] = header.pop(key)
    elif way == "format":
        manifest = header["__metadata__"][METADATA_KEY]
        header["__metadata__"][METADATA_KEY] = manifest.replace('"format_version": 2', '"format_version": 1')
    text = json.dumps(header)
    return text if way != "twice" else f'{{"{key}": {json.dumps(header[draw(st.sampled_from([*header]))])}, {text[1:]}'


@st.composite
def forged(draw) -> bytes:
    """A file that is sound to its last checksum and holds something else than what was learnt."""
    manifest, tensors = copy.deepcopy(parts(whole()[2]))
    way = draw(st.sampled_from(["values", "key", "tensor", "field", "task", "missing", "foreign"]))
    key = draw(st.sampled_from(sorted(tensors)))
    if way == "values":
        tensors[key] = tensors[key].copy()
        tensors[key].flat[-1] = draw(st.sampled_from([math.nan, math.inf, -math.inf]))
    elif way == "key":
        tensors[draw(KEYS | st.text(max_size=300).filter(lambda key: key != "__metadata__"))] = tensors.pop(key)
    elif way == "tensor":
        shape = draw(st.lists(st.integers(0, 5), max_size=4))
        tensors[key] = np.ones(shape, draw(st.sampled_from(DTYPES)))
    elif way == "field":
        manifest[draw(st.sampled_from(sorted(manifest)))] = draw(JSON)
    elif way == "task":
        manifest["task"][draw(st.sampled_from(sorted(manifest["task"])))] = draw(JSON)
    elif way == "missing":
        del manifest[draw(st.sampled_from(sorted(manifest)))]
    else:
        arrays = {draw(st.text(max_size=9)): np.ones(draw(st.integers(0, 9)), draw(st.sampled_from(DTYPES)))}
        arrays.pop("__metadata__", None)
        return safetensors.numpy.save(arrays, draw(st.none() | st.just({METADATA_KEY: "[" * 100_000})))
    return signed(manifest, tensors)


def check(contents: bytes, path, is_signed: bool):
    """Loads a file into a model that has other values: it takes over all that the file says, or nothing."""
    bound, patch, original = whole()
    owned = bound.patch_variables | bound.head_variables
    before = snapshot(owned | bound.trunk.variables())
    path.write_bytes(contents)
    tracemalloc.start()
    try:
        loaded = Patch.load(path)
        bound.load(loaded)
    except PatchError as error:
        assert str(error) and same(before, snapshot(owned | bound.trunk.variables()))
        return
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak <= 2 * len(contents) + SPARE_BYTES
    try:
        assert same(loaded.values, patch.values), "other values than those that were saved"
        assert same(snapshot(owned), patch.values)
        if is_signed:
            manifest, _ = parts(contents)
            for name, value in (("metrics", loaded.metrics), ("trunk", loaded.trunk), ("versions", loaded.versions)):
                assert json.dumps(value) == json.dumps(manifest[name])
            expected = manifest["task"].get("labels"), manifest["task"]["name"]
            assert expected == (list(loaded.task.labels), loaded.task.name)
        else:
            assert loaded.to_bytes() == original
    finally:
        for key, variable in owned.items():
            variable.assign(before[key])


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "patch.safetensors"


@settings(max_examples=150, deadline=None)
@given(damaged())
def test_a_damaged_file_loads_exactly_or_is_refused(path, contents):
    check(contents, path, is_signed=False)


@settings(max_examples=150, deadline=None)
@given(forged())
def test_a_forged_file_loads_exactly_or_is_refused(path, contents):
    check(contents, path, is_signed=True)


def peak_of_loading(path, contents: bytes) -> int:
    """Returns how much memory Python takes at most while it reads a file, in bytes."""
    path.write_bytes(contents)
    with contextlib.suppress(PatchError):
        Patch.load(path)  # What is made once, such as types and caches, is made now.
    tracemalloc.start()
    with contextlib.suppress(PatchError):
        Patch.load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize(("features", "classes"), [(64, 10), (1280, 10), (1280, 1000)])
def test_a_whole_file_takes_less_than_twice_its_size(path, dtype, features, classes):
    random = np.random.default_rng(0)
    values = {f"{i}/{name}": random.uniform(1, 2, features) for i in range(20) for name in ("gamma", "moving_variance")}
    values |= {"head.kernel": random.normal(size=(features, classes)), "head.bias": np.ones(classes)}
    task = Task("many", tuple(f"n{k:08} a thing" for k in range(classes)), Preprocessing(SIZE, "tf"))
    patch = Patch(values, task, TrainSpec.parse("scale_bias+last"), "test", "f" * 64)
    contents = patch.to_bytes(dtype)
    # In float16 the values alone are twice the file; the labels are Python's objects besides.
    assert peak_of_loading(path, contents) <= 2 * len(contents) + SPARE_BYTES + BYTES_PER_LABEL * classes
    assert all(np.allclose(Patch.load(path).values[key], value, atol=1e-3, rtol=1e-3) for key, value in values.items())


@pytest.mark.parametrize(
    "manifest", ["[" + "{},[]," * 300_000 + "{}]", '{"x":"' + "é" * 10**6 + '"}', '{"format_version":"\\ud83d']
)
def test_what_would_fill_the_memory_is_refused_before_it_is_read(path, manifest):
    contents = safetensors.numpy.save({"a/gamma": np.ones((1, 3), "float32")}, {METADATA_KEY: manifest})
    assert peak_of_loading(path, contents) <= 2 * len(contents) + SPARE_BYTES
    with pytest.raises(PatchError, match="is not one that model_patch wrote"):
        Patch.load(path)


def test_a_header_that_is_too_long_is_refused_before_it_is_read(path):
    contents = safetensors.numpy.save({"a/gamma": np.ones((1, 3), "float32")}, {METADATA_KEY: "0" * 2**22})
    assert peak_of_loading(path, contents) <= SPARE_BYTES
    with pytest.raises(PatchError, match=r"is damaged, or is not a patch file: its header would have 419\d+ bytes"):
        Patch.load(path)


def test_a_patch_that_could_not_be_read_is_not_written():
    patch = whole()[1]
    with pytest.raises(ModelPatchError, match="the labels of 'shapes' are too long, or hold too many brackets"):
        dataclasses.replace(patch, task=dataclasses.replace(patch.task, labels=("x" * 2**22, "y"))).to_bytes()


def test_the_file_itself_loads(path):
    bound, patch, contents = whole()
    assert signed(*parts(contents)) == contents
    path.write_bytes(contents)
    assert same(Patch.load(path).values, patch.values)


def test_a_flipped_bit_in_a_label_is_noticed(path):
    contents = whole()[2]
    path.write_bytes(contents.replace(b"circle", b"cirgle"))
    with pytest.raises(PatchError, match="its contents do not match its checksum"):
        Patch.load(path)


def test_files_of_version_1_are_read(path):
    _, patch, contents = whole()
    manifest, tensors = parts(contents)
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(f"{key} {tensors[key].dtype} {tensors[key].shape}\n".encode() + tensors[key].tobytes())
    old = manifest | {"format_version": 1, "checksum": digest.hexdigest()}
    path.write_bytes(safetensors.numpy.save(tensors, {METADATA_KEY: json.dumps(old)}))
    loaded = Patch.load(path)
    assert same(loaded.values, patch.values) and loaded.to_bytes() == contents
