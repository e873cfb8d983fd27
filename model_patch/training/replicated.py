"""Training on the replicas of a strategy of tf.distribute.

Keras' own `fit` fails with several workers (`PerReplica` values reach code that expects tensors), so wherever more than one
replica computes, the step is written out here, for one output and for several. It drives the same callbacks.
"""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import keras
import numpy as np

from model_patch.bind import BoundTask
from model_patch.data.autograph import without_autograph
from model_patch.data.share import Share
from model_patch.graph.fused_norm import fuse_norms
from model_patch.graph.keras_private import layers_within, takes_training
from model_patch.progress import progress
from model_patch.training import strategies

Metrics = Sequence[keras.metrics.Metric]

ONLY = "output"
"""What the output of a model is called here if it has one, without a name."""


def fit(
    model: keras.Model,
    batches,
    epochs: range,
    steps_per_epoch: int,
    callbacks: Sequence[keras.callbacks.Callback],
    *,
    metrics: Metrics | Mapping[str, Metrics] = (),
    weights: Mapping[str, float] | None = None,
) -> keras.callbacks.History:
    """Trains a compiled model on all replicas of the current strategy, as `model.fit` does on one.

    Every replica takes an equal part of a batch, of each output's where there are several. What they cannot share evenly is
    filled up with copies, fewer than there are replicas. Those count nothing in losses and metrics, but batch norms see them.

    The logs have the names that `model.fit` gives them: `loss` and the metrics, and with several outputs `<output>_loss` and
    `<output>_<metric>`. All are means of the epoch so far.

    Args:
        model: made inside the strategy's scope; compiled with an optimizer and a loss, or a dict of losses by output.
        batches: batches of `(x, y)` of all the epochs, one after the other, the same on every worker. With a dict of losses
            both are dicts by output, whose parts may differ in size. Or batches of `(x, y, number)`: the rows of `own_share`
            alone, and the size of the whole batch.
        epochs: their numbers.
        steps_per_epoch: batches in each.
        callbacks: as for `model.fit`.
        metrics: those of the output, or a dict of those of each; their states must add up, as those of means do.
        weights: what each loss counts in the sum, by output; 1 each by default.
    """
    history = keras.callbacks.History()
    driven = keras.callbacks.CallbackList([*callbacks, history], model=model)
    model.stop_training = False
    with _synchronised(model, strategies.synchronises()):
        step = _Step(model, metrics, weights or {})
        driven.on_train_begin()
        remaining = iter(batches)
        for epoch in epochs:
            driven.on_epoch_begin(epoch)
            means = _Means(step.metrics)
            for i, batch in enumerate(itertools.islice(remaining, steps_per_epoch)):
                driven.on_train_batch_begin(i)
                means.add(*step(*batch))
                driven.on_train_batch_end(i, means.logs())
            driven.on_epoch_end(epoch, means.logs())
            if model.stop_training:
                break
        driven.on_train_end()
    return history


@without_autograph
def filled_up(batches, devices: int):
    """Returns batches that the devices can share evenly, with weights: `(x, y, weights)` instead of `(x, y)`.

    JAX parts no others. Losses stay those of the batches without the copies.

    Args:
        batches: `tf.data.Dataset` of pairs, both of tensors or of dicts of them.
        devices: how many.
    """
    import tensorflow as tf

    def fill(x, y):
        def rows(labels):
            number = tf.shape(labels)[0]
            return tf.range(-(-number // devices) * devices), number

        def taken(values, labels):
            place, number = rows(labels)
            return tf.gather(values, place % number)

        def weights(labels):
            place, number = rows(labels)
            return tf.where(
                place < number, tf.cast(tf.size(place) / number, "float32"), 0.0
            )  # A mean over all of them is one over the batch.

        each = tf.nest.map_structure
        return each(taken, x, y), each(taken, y, y), each(weights, y)

    return batches.map(fill, tf.data.AUTOTUNE)


def outputs_and_labels(
    forward: Callable, batches, what: str = "", num_batches: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Runs a model over batches, on this worker alone: every worker looks at all images, and none waits for another.

    Args:
        forward: what `predictor` made of the model.
        batches: `tf.data.Dataset` of `(x, labels)`.
        what: text before the progress bar.
        num_batches: for the bar.

    Returns:
        The outputs for all images, float32, and their labels.
    """
    # As arrays: under another backend than TensorFlow, Keras takes none of its tensors.
    found = [
        (np.asarray(forward(x.numpy())), np.asarray(labels))
        for x, labels in progress(batches, what, num_batches, "batch")
    ]
    outputs, labels = (np.concatenate(part) for part in zip(*found, strict=True))
    return outputs.astype("float32"), labels


def features_and_labels(bound: BoundTask, batches, num_images: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the features of batches of images, float32 `(images, channels)`, and their labels, see `outputs_and_labels`."""
    number = math.ceil(num_images / batch_size)
    return outputs_and_labels(predictor(bound.features), batches, f"features of {bound.task.name}", number)


def predictor(layer: keras.Layer) -> Callable:
    """Returns a function that runs a layer or a model in inference mode on this worker alone: a batch to its outputs.

    Later calls for one layer return the same function. On TensorFlow, it has one graph for batches of all sizes, which is
    traced on the first.
    """
    if not hasattr(layer, "_mp_predictor"):
        layer._mp_predictor = _predictor(layer)
    return layer._mp_predictor


def _predictor(layer: keras.Layer) -> Callable:
    options = {"training": False} if takes_training(layer) else {}
    if keras.backend.backend() == "jax":
        import jax

        forward = jax.jit(lambda trainable, others, x: layer.stateless_call(trainable, others, x, **options)[0])
        return lambda x: forward(
            *([v.value for v in variables] for variables in (layer.trainable_variables, layer.non_trainable_variables)),
            np.asarray(x),
        )
    import tensorflow as tf

    spec = tf.TensorSpec(layer.input.shape, layer.input.dtype)
    forward = fuse_norms(layer, training=False) if isinstance(layer, keras.Model) else layer
    return tf.function(lambda x: forward(x, **options), input_signature=[spec], autograph=False)


def own_share() -> Share | None:
    """Returns the part of every batch that this process trains on; None where that is all of it."""
    strategy, own = strategies.current(), []
    if strategy is None:
        return None

    def note(context):
        own.append(context.replica_id_in_sync_group)
        return np.int64(0)

    strategy.experimental_distribute_values_from_function(note)
    number = strategy.num_replicas_in_sync
    return Share(min(own), len(own), number) if len(own) < number else None


def read_together(make: Callable):
    """Returns whole batches `(x, y)`, of which each process decodes its own share and receives the others'.

    Results are those of one process, whatever is computed of the batches. All processes must go through them alike.

    Args:
        make: `make(share=None)` returns batches `(x, y)`, of tensors or of dicts of them; with the share of this process
            `(x, y, number)`, its rows and the sizes of the whole batches, as `data.pipeline.batches`.
    """
    share = own_share()
    return make() if share is None else _Gathered(make(share=share), share)


class _Gathered:
    """Goes through batches of this process' rows, again and again, and yields the whole ones."""

    def __init__(self, batches, share: Share):
        self._batches, self._share, self._strategy = batches, share, strategies.current()

    def __iter__(self):
        for x, y, number in self._batches:
            if isinstance(number, Mapping):
                yield tuple({name: self._whole(part[name], number[name]) for name in number} for part in (x, y))
                continue
            x, y = self._whole(x, number), self._whole(y, number)
            is_there = np.ones(len(y), bool)
            if y.shape.rank <= 2:  # More have boxes, of which none are missing.
                first = np.asarray(y).reshape(len(y), -1)[:, 0]
                is_there = ~np.isnan(first) if y.dtype.is_floating else first >= 0
            if is_there.any():
                yield x[is_there], y[is_there]

    def _whole(self, values, number):
        of_each = len(values) // self._share.own

        def of_replica(context):
            start = (context.replica_id_in_sync_group - self._share.first) * of_each
            return values[start : start + of_each]

        parts = self._strategy.experimental_distribute_values_from_function(of_replica)
        return self._strategy.gather(parts, axis=0)[:number]


class _Step:
    """A training step on all replicas, called with a batch `(x, y)`.

    Attributes:
        metrics: by their names in the logs.
    """

    def __init__(self, model: keras.Model, metrics, weights: Mapping[str, float]):
        import tensorflow as tf

        strategy, optimizer = tf.distribute.get_strategy(), model.optimizer
        self._strategy, self._is_dict = strategy, isinstance(model.loss, Mapping)
        self._first = share.first if (share := own_share()) else 0
        losses = self._by_output(model.loss)
        prefixes = {name: f"{name}_" if len(losses) > 1 else "" for name in losses}
        of_output = self._by_output(metrics) if metrics else {}
        self.metrics = {f"{prefixes[name]}{each.name}": each for name, all_ in of_output.items() for each in all_}
        with strategy.scope():
            optimizer.build(model.trainable_variables)

        def replica_step(x, y, shares):
            with tf.GradientTape() as tape:
                outputs = self._by_output(model(x, training=True))
                parts = {
                    name: tf.reduce_sum(tf.cast(loss.call(y[name], outputs[name]), "float32") * shares[name])
                    for name, loss in losses.items()
                }
                total = sum(weights.get(name, 1.0) * part for name, part in parts.items())
                total += sum(model.losses) / strategy.num_replicas_in_sync  # Those of layers, such as weight decay.
            variables = [v.value for v in model.trainable_variables]
            optimizer.apply(tape.gradient(total, variables), model.trainable_variables)  # Sums over the replicas.
            states = {
                f"{prefixes[name]}{each.name}": each.stateless_update_state(
                    each.stateless_reset_state(), y[name], outputs[name], tf.sign(shares[name])
                )
                for name, all_ in of_output.items()
                for each in all_
            }
            own = {f"{prefixes[name]}loss": part for name, part in parts.items()} if len(parts) > 1 else {}
            return own | {"loss": total}, states

        @tf.function(reduce_retracing=True, autograph=False)
        def step(x, y, shares):
            of_replicas = strategy.run(replica_step, (x, y, shares))
            return tf.nest.map_structure(lambda each: strategy.reduce("sum", each, axis=None), of_replicas)

        self._step = step

    def __call__(self, x, y, number=None):
        """Returns how many examples there are, and by name their losses and the states of the metrics."""
        x, y, shares = self._by_output(x), self._by_output(y), {}
        of_outputs = {name: len(each) for name, each in y.items()} if number is None else self._by_output(number)
        for name in y:
            rows, share = _plan(int(of_outputs[name]), self._strategy.num_replicas_in_sync)
            if number is not None:
                rows = np.arange(rows.size).reshape(rows.shape) - self._first * rows.shape[1]
            x[name], y[name] = self._parted(x[name], rows), self._parted(y[name], rows)
            shares[name] = self._parted(share.ravel(), np.arange(share.size).reshape(share.shape))
        losses, states = self._step(x if self._is_dict else x[ONLY], y, shares)
        return sum(map(int, of_outputs.values())), {name: float(each) for name, each in losses.items()}, states

    def _by_output(self, each) -> dict:
        return dict(each) if self._is_dict else {ONLY: each}

    def _parted(self, values, rows: np.ndarray):
        """Hands every replica those of the values that `rows` `(replicas, number for each)` gives it."""
        import tensorflow as tf

        def part(context):
            return tf.gather(values, rows[context.replica_id_in_sync_group])

        return self._strategy.experimental_distribute_values_from_function(part)


class _Means:
    """Means over the batches of an epoch: of losses by their examples, of metrics as they define it."""

    def __init__(self, metrics: Mapping[str, keras.metrics.Metric]):
        self.metrics, self.number = metrics, 0
        self.losses: dict[str, float] = {}
        self.states: dict[str, list] = {}

    def add(self, number: int, losses: Mapping[str, float], states: Mapping[str, Sequence]):
        self.number += number
        for name, loss in losses.items():
            self.losses[name] = self.losses.get(name, 0.0) + loss * number
        for name, state in states.items():
            before = self.states.get(name, [0.0] * len(state))
            self.states[name] = [old + new for old, new in zip(before, state, strict=True)]

    def logs(self) -> dict[str, float]:
        """Returns the means so far, by name."""
        means = {name: total / self.number for name, total in self.losses.items()}
        return means | {
            name: float(metric.stateless_result(self.states[name]))
            for name, metric in self.metrics.items()
            if name in self.states
        }


@contextlib.contextmanager
def _synchronised(model: keras.Model, synchronise: bool) -> Iterator[None]:
    """Lets batch norms look at the batch of all replicas, or of each its own, for as long as the context lasts."""
    norms = [layer for layer in layers_within(model) if isinstance(layer, keras.layers.BatchNormalization)]
    before = [norm.synchronized for norm in norms]
    try:
        for norm in norms:
            norm.synchronized = synchronise
        yield
    finally:
        # It is in their configuration, which is written with a trunk: other backends could not open it.
        for norm, was in zip(norms, before, strict=True):
            norm.synchronized = was


def _plan(number: int, replicas: int) -> tuple[np.ndarray, np.ndarray]:
    """Shards a batch across replicas.

    Returns:
        Which examples each takes, int64 `(replicas, number for each)`, and what each of them counts in a mean, float32 of
        the same shape, with the sum 1: copies, which come last, count nothing.
    """
    place = np.arange(replicas * -(-number // replicas)).reshape(replicas, -1)
    return place % number, np.where(place < number, 1.0 / number, 0.0).astype("float32")
