"""Ways to predict for many tasks, or for one, to be timed beside one another.

Form | Model
-----|------
`separate` | a Keras model per task, each with all its weights
`switch` | one Keras model; for each task of a batch its parameters are assigned, then its images run
`sub-batches` | one net that takes a task's parameters as an input; for each task of a batch its images run
`bank` | the bank: all images at once
`litert set` | the same as `sub-batches`, as a LiteRT file (`litert_set`) on XNNPACK
`folded` | a folded net of one task, all images at once, as if they were all of that task: the upper bound
`litert` | the same as a LiteRT file on XNNPACK
`onnx` | the same as an ONNX file on ONNX Runtime
`torch` | the same net of torchvision, with random weights, not folded
`litert set, 1 thread`, `litert, 1 thread` | with one thread instead of `op_threads`
"""

import dataclasses
import functools
import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

import model_patch as mp
from model_patch.experiments.benchmark import torch_nets
from model_patch.experiments.report.machine import num_cores
from model_patch.export import litert_file, litert_set, onnx_file
from model_patch.export.vector_net import vector_net

Predict = Callable[[np.ndarray, np.ndarray], object]
"""Given images and the number of each one's task, computes all logits and waits for them."""


def patch_of(bound: mp.BoundTask, i: int) -> mp.Patch:
    """Makes the patch of the i-th task, with values of its own."""
    random, first = np.random.default_rng(i), bound.patch()
    values = {k: v * random.uniform(0.9, 1.1, v.shape).astype("float32") for k, v in first.values.items()}
    return dataclasses.replace(first, values=values, task=dataclasses.replace(first.task, name=f"task{i}"))


def compiled(model):
    """Returns a model, of images and perhaps more, as a TensorFlow function for batches of any size."""
    import tensorflow as tf

    specs = [tf.TensorSpec(x.shape, x.dtype) for x in model.inputs]
    many = len(specs) > 1
    return tf.function(
        lambda *inputs: model(list(inputs) if many else inputs[0], training=False), input_signature=specs
    )


def _by_task(predict: Callable[[int, np.ndarray], object]) -> Predict:
    """Returns the form that runs a mixed batch task by task."""

    def answer_all(images, tasks):
        return [np.asarray(predict(task, images[tasks == task])) for task in np.unique(tasks)]

    return answer_all


def _separate(bound: mp.BoundTask, num_tasks: int, threads: int) -> Predict:
    import keras

    runs = []
    for _ in range(num_tasks):
        model = keras.models.clone_model(bound.model)
        model.set_weights(bound.model.get_weights())
        model.trainable = False
        runs.append(compiled(model))
        runs[-1](np.zeros((1, *bound.model.input.shape[1:]), "float32"))
    return _by_task(lambda task, images: runs[task](images))


def _switch(bound: mp.BoundTask, num_tasks: int, threads: int) -> Predict:
    values = [prepared(bound, patch_of(bound, i)) for i in range(num_tasks)]
    run = compiled(bound.model)

    def predict(task, images):
        for variable, value in values[task]:
            variable.assign(value)
        return run(images)

    return _by_task(predict)


def prepared(bound: mp.BoundTask, patch: mp.Patch) -> list:
    """Returns the variables of a bound task with the values of a patch, as tensors."""
    import tensorflow as tf

    owned = bound.patch_variables | bound.head_variables
    return [(variable.value, tf.constant(patch.values[key])) for key, variable in owned.items()]


def _sub_batches(bound: mp.BoundTask, num_tasks: int, threads: int) -> Predict:
    import tensorflow as tf

    net = vector_net([bound])
    run = compiled(net.model)
    (first,) = net.vectors.values()
    random = np.random.default_rng(0)
    vectors = [tf.constant(first * random.uniform(0.9, 1.1, first.shape), "float32") for _ in range(num_tasks)]
    return _by_task(lambda task, images: run(images, vectors[task]))


def _bank(bound: mp.BoundTask, num_tasks: int, threads: int) -> Predict:
    kinds = "+".join(bound.train_spec.kinds)
    bank = mp.Bank(bound.trunk, kinds, capacity=num_tasks, classes=len(bound.task.labels))
    for i in range(num_tasks):
        bank.add(patch_of(bound, i))
    names = np.array([f"task{i}" for i in range(num_tasks)])
    return lambda images, tasks: np.asarray(bank(images, list(names[tasks])))


def _folded(bound: mp.BoundTask, num_tasks: int, threads: int) -> Predict:
    run = compiled(mp.fold(bound).model)
    return lambda images, tasks: np.asarray(run(images))


def _litert(bound: mp.BoundTask, num_tasks: int, threads: int) -> Predict:
    run = _interpreter(_exported(litert_file.export, bound)[f"{bound.task.name}.tflite"], threads)
    return lambda images, tasks: run(images=images)


def _litert_set(bound: mp.BoundTask, num_tasks: int, threads: int) -> Predict:
    from safetensors.numpy import load

    files = _exported(litert_set.export, bound)
    first = load(files[f"{bound.task.name}.safetensors"])[litert_set.VECTOR]
    run = _interpreter(files[litert_set.NET], threads)
    random = np.random.default_rng(0)
    vectors = [(first * random.uniform(0.9, 1.1, first.shape)).astype("float32") for _ in range(num_tasks)]
    return _by_task(lambda task, images: run(images=images, vector=vectors[task])["logits"])


def _onnx(bound: mp.BoundTask, num_tasks: int, threads: int) -> Predict:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    file = _exported(onnx_file.export, bound)[f"{bound.task.name}.onnx"]
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda images, tasks: session.run(["logits"], {"images": images})


def _torch(bound: mp.BoundTask, num_tasks: int, threads: int) -> Predict:
    run = torch_nets.predict(bound.trunk.name, len(bound.task.labels), threads)
    return lambda images, tasks: run(images)


def _exported(export: Callable, bound: mp.BoundTask) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        export([bound], Path(folder))
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def _interpreter(file: bytes, threads: int) -> Callable[..., dict[str, np.ndarray]]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=file, num_threads=threads)
    return functools.partial(_run, interpreter, interpreter.get_signature_runner("serving_default"))


def _run(interpreter, runner: Callable, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    return runner(**inputs)  # The interpreter has to live as long as its runner.


_MAKE = {
    "separate": _separate,
    "switch": _switch,
    "sub-batches": _sub_batches,
    "litert set": _litert_set,
    "bank": _bank,
    "folded": _folded,
    "litert": _litert,
    "onnx": _onnx,
    "torch": _torch,
}
"""By form, what makes it: given a bound task, a number of tasks and a number of threads."""

_ONE_THREAD = ", 1 thread"

FORMS = (*_MAKE, *(f"{form}{_ONE_THREAD}" for form in ("litert set", "litert")))


def why_not(form: str, trunk: str) -> str:
    """Returns why a form cannot be timed here on a trunk, given its spec; empty if it can."""
    if form == "torch":
        return torch_nets.why_not(trunk)
    needed = onnx_file.PACKAGES if form == "onnx" else ("ai_edge_litert",) if form.startswith("litert") else ()
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    return f"{' and '.join(missing)} not installed" if missing else ""


def make_form(form: str, bound: mp.BoundTask, num_tasks: int = 1, threads: int = 0) -> Predict:
    """Makes a form.

    Args:
        form: one of `FORMS`.
        bound: one of the tasks; the others differ from it in their values.
        num_tasks: number of tasks.
        threads: number of threads of an operation of LiteRT, ONNX Runtime or PyTorch; 0 for the number of cores.
    """
    name = form.removesuffix(_ONE_THREAD)
    return _MAKE[name](bound, num_tasks, 1 if name != form else threads or num_cores())
