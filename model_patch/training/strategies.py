"""Training on several devices: a strategy of tf.distribute, or of keras.distribution under JAX.

The batch size of a recipe is that of all devices together: each step shards one batch across them, sums their gradients, and so
takes the step that one device would take. Each worker decodes its own part of a batch, see `data.share`.
"""

import contextlib
import json
import os
from collections.abc import Iterator

import keras

from model_patch.errors import ModelPatchError, unknown
from model_patch.files import as_path
from model_patch.training import STRATEGIES

MIXED_PRECISION = "mixed_bfloat16"
"""Half the memory per value, with the range of float32, so that no loss needs scaling."""


@contextlib.contextmanager
def devices(strategy: str = "default", *, mixed_precision: bool = False, synchronise: bool = True) -> Iterator[None]:
    """Runs what is inside on the devices of a strategy: nets must be opened inside, and are then trained on all of them.

    Args:
        strategy: one of `STRATEGIES`.
        mixed_precision: compute in bfloat16; variables, statistics, logits and losses stay float32.
        synchronise: batch norms that train with statistics of the batch take those of the global batch, as on one device;
            without, each replica those of its part, which is faster.

    Raises:
        ModelPatchError: the strategy is unknown, is not one of Keras' backend, or its devices cannot be had.
    """
    if strategy not in STRATEGIES:
        raise unknown("strategy", strategy, STRATEGIES)
    policy = keras.mixed_precision.dtype_policy()
    if mixed_precision:
        keras.mixed_precision.set_dtype_policy(MIXED_PRECISION)
    try:
        with _scope(strategy, synchronise):
            yield
    finally:
        keras.mixed_precision.set_dtype_policy(policy)


def current():
    """Returns the strategy of tf.distribute inside `devices`, where more than one replica computes; else None."""
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    strategy = tf.distribute.get_strategy()
    return strategy if strategy.num_replicas_in_sync > 1 else None


def num_devices() -> int:
    """Returns how many devices a batch is sharded across inside `devices`, on any backend."""
    if keras.backend.backend() == "jax":
        distribution = keras.distribution.distribution()
        return distribution.device_mesh.devices.size if distribution else 1
    strategy = current()
    return strategy.num_replicas_in_sync if strategy else 1


def own_workdir(workdir: str, strategy: str) -> str:
    """Returns the folder that this process writes to: the first worker's is the workdir, others have one beside it.

    All workers must know the same of which rows are finished, and two processes must not write one file.
    """
    index = json.loads(os.environ.get("TF_CONFIG", "{}")).get("task", {}).get("index", 0)
    if strategy != "multi_worker" or not index:
        return workdir
    path = as_path(workdir)
    return str(path.with_name(f"{path.name}-worker{index}"))


def synchronises() -> bool:
    """Whether batch norms take the statistics of the whole batch: what `devices` noted on the strategy it made."""
    return getattr(current(), "_mp_synchronise", True)


@contextlib.contextmanager
def _scope(name: str, synchronise: bool) -> Iterator[None]:
    if keras.backend.backend() == "jax":
        yield from _jax_scope(name)
        return
    strategy = _make(name)
    if strategy is None:
        yield
        return
    strategy._mp_synchronise = synchronise
    with strategy.scope():
        yield


def _jax_scope(name: str) -> Iterator[None]:
    """Under JAX, `mirrored` parts batches among all devices; a step is still written for the whole batch."""
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
