"""Training on several devices: a strategy of tf.distribute, or of keras.distribution under JAX.

The batch size of a recipe is that of all devices together: each step parts one batch among them, sums their gradients, and so
takes the step that one device would take. Images are preprocessed by every worker, which then takes its part.

Keras' own `fit` fails with several workers (`PerReplica` values reach code that expects tensors), so wherever more than one
replica computes, the step is written out here. It drives the same callbacks.
"""

import contextlib
import contextvars
import functools
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import keras

from model_patch.errors import ModelPatchError, unknown
from model_patch.rewrite import walk

STRATEGIES = ("default", "mirrored", "multi_worker", "tpu")
"""`default`: what Keras finds. `mirrored`: all devices of this computer. `multi_worker`: computers that TF_CONFIG names.
`tpu`: the one that TPU_NAME names, or the local one."""

MIXED_PRECISION = "mixed_bfloat16"
"""Half the memory per value, with the range of float32, so that no loss needs scaling."""


_synchronise: contextvars.ContextVar[bool] = contextvars.ContextVar("synchronise", default=True)


@contextlib.contextmanager
def devices(strategy: str = "default", *, mixed_precision: bool = False, synchronise: bool = True) -> Iterator[None]:
    """Runs what is inside on the devices of a strategy: nets must be opened inside, and are then trained on all of them.

    Args:
        strategy: one of `STRATEGIES`.
        mixed_precision: compute in bfloat16; variables, statistics, logits and losses stay float32.
        synchronise: batch norms that train with statistics of the batch take those of the whole one, as on one device;
            without, each replica those of its part, which is faster.

    Raises:
        ModelPatchError: the strategy is unknown, does not go with Keras' backend, or its devices cannot be had.
    """
    if strategy not in STRATEGIES:
        raise unknown("strategy", strategy, STRATEGIES)
    policy = keras.mixed_precision.dtype_policy()
    if mixed_precision:
        keras.mixed_precision.set_dtype_policy(MIXED_PRECISION)
    token = _synchronise.set(synchronise)
    try:
        with _scope(strategy):
            yield
    finally:
        _synchronise.reset(token)
        keras.mixed_precision.set_dtype_policy(policy)


def current():
    """Returns the strategy of tf.distribute inside `devices`, where more than one replica computes; else None."""
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    strategy = tf.distribute.get_strategy()
    return strategy if strategy.num_replicas_in_sync > 1 else None


def own_workdir(workdir: str, strategy: str) -> str:
    """Returns the folder that this process writes to: the first worker's is the workdir, others have one beside it.

    All workers must know the same of which rows are finished, and two processes must not write one file.
    """
    index = json.loads(os.environ.get("TF_CONFIG", "{}")).get("task", {}).get("index", 0)
    if strategy != "multi_worker" or not index:
        return workdir
    path = Path(workdir)
    return str(path.with_name(f"{path.name}-worker{index}"))


def fit(
    model: keras.Model, batches, epochs: range, steps_per_epoch: int, callbacks: Sequence[keras.callbacks.Callback]
):
    """Trains a compiled model on all replicas of the current strategy, as `model.fit` does on one.

    A batch that is smaller than others, as the last one of an epoch, or that the replicas cannot share evenly, is filled up
    with copies of its images that count nothing: all steps have one shape. The logs hold the loss.

    Args:
        model: made inside the strategy's scope; compiled with an optimizer and one loss.
        batches: batches of `(x, y)` of all the epochs, one after the other, the same on every worker.
        epochs: their numbers.
        steps_per_epoch: batches in each.
        callbacks: as for `model.fit`.

    Returns:
        `keras.callbacks.History`.
    """
    import tensorflow as tf

    strategy, loss_of, optimizer = current(), model.loss, model.optimizer
    for _, layer in walk(model):
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = _synchronise.get()
    with strategy.scope():
        optimizer.build(model.trainable_variables)

    def replica_step(x, y, weights):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.cast(loss_of.call(y, model(x, training=True)), tf.float32) * weights)
        variables = [v.value for v in model.trainable_variables]
        optimizer.apply(tape.gradient(loss, variables), model.trainable_variables)  # Sums over the replicas.
        return loss

    @tf.function(reduce_retracing=True)
    def step(x, y, weights):
        return strategy.reduce("sum", strategy.run(replica_step, (x, y, weights)), axis=None)

    history = keras.callbacks.History()
    driven = keras.callbacks.CallbackList([*callbacks, history], model=model)
    model.stop_training = False
    driven.on_train_begin()
    each = 1
    remaining = iter(batches)
    for epoch in epochs:
        driven.on_epoch_begin(epoch)
        losses = []
        for i, (x, y) in enumerate(itertools.islice(remaining, steps_per_epoch)):
            driven.on_train_batch_begin(i)
            each = max(each, -(-len(y) // strategy.num_replicas_in_sync))
            losses.append(float(step(*_parts(strategy, x, y, each))))
            driven.on_train_batch_end(i, {"loss": losses[-1]})
        driven.on_epoch_end(epoch, {"loss": sum(losses) / max(1, len(losses))})
        if model.stop_training:
            break
    driven.on_train_end()
    return history


def evaluate(model: keras.Model, batches, loss, metrics: Sequence[keras.metrics.Metric]) -> dict[str, float]:
    """Returns a loss and metrics by name, in inference mode: every worker looks at all images, and none waits for another."""
    forward, total, number = predictor(model), 0.0, 0
    for x, y in batches:
        outputs = forward(x)
        total += float(keras.ops.sum(loss.call(y, outputs)))
        number += len(y)
        for metric in metrics:
            metric.update_state(y, outputs)
    return {"loss": total / max(1, number)} | {metric.name: float(metric.result()) for metric in metrics}


def predictor(model: keras.Model):
    """Returns a function that runs a model in inference mode on this worker alone: a batch to its outputs."""
    import tensorflow as tf

    return tf.function(lambda x: model(x, training=False), reduce_retracing=True)


@contextlib.contextmanager
def _scope(name: str) -> Iterator[None]:
    if keras.backend.backend() == "jax":
        yield from _jax_scope(name)
        return
    strategy = _make(name)
    if strategy is None:
        yield
        return
    with strategy.scope():
        yield


def _jax_scope(name: str) -> Iterator[None]:
    """Under JAX, `mirrored` parts batches among all devices with `keras.distribution.DataParallel`."""
    if name not in ("default", "mirrored"):
        raise ModelPatchError(
            f"--strategy={name} is one of TensorFlow's: with KERAS_BACKEND=jax give mirrored, which takes all devices"
        )
    before = keras.distribution.distribution()
    if name == "mirrored":
        keras.distribution.set_distribution(keras.distribution.DataParallel())
    try:
        yield
    finally:
        keras.distribution.set_distribution(before)


def _make(name: str):
    """Returns a new strategy of tf.distribute; None for `default`."""
    import tensorflow as tf

    if name == "default":
        return None
    if name == "mirrored":
        kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
        return tf.distribute.MirroredStrategy([device.name for device in tf.config.list_logical_devices(kind)])
    if name == "multi_worker":
        if "cluster" not in json.loads(os.environ.get("TF_CONFIG", "{}")):
            raise ModelPatchError(
                "--strategy=multi_worker needs TF_CONFIG, with the cluster's workers and this one's index: "
                "see docs/scaling.md"
            )
        return tf.distribute.MultiWorkerMirroredStrategy()
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(os.environ.get("TPU_NAME", "local"))
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return tf.distribute.TPUStrategy(resolver)
    except (ValueError, tf.errors.OpError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise ModelPatchError(f"--strategy=tpu finds no TPU ({reason}): set TPU_NAME, or choose another") from None


def _parts(strategy, x, y, each: int):
    """Returns a batch parted among the replicas, `each` examples for one: images, labels, and weights with the sum 1."""
    import tensorflow as tf

    number = len(y)
    rows = tf.range(each * strategy.num_replicas_in_sync)
    weights = tf.where(rows < number, 1.0 / number, 0.0)
    rows %= number

    def part(context, values):
        first = each * context.replica_id_in_sync_group
        return values[first : first + each]

    return [
        strategy.experimental_distribute_values_from_function(functools.partial(part, values=values))
        for values in (tf.gather(x, rows), tf.gather(y, rows), weights)
    ]
