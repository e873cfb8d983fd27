"""Rematerialisation: training that keeps few of a net's maps, and computes the others again when their gradients are due.

A net is cut into segments where a single tensor joins what is before with what is after, as between the blocks of most nets.
Of each segment only the input is kept. One more forward pass is the price, whatever the number of segments.
"""

import itertools
import math
from collections.abc import Sequence

import keras

from model_patch.graph.keras_private import nodes
from model_patch.graph.rewrite import functional


class Segments:
    """A functional graph with one input and one output, run in training segment by segment.

    The values and gradients are those of the graph, whatever its layers do: moving averages move once, and dropout draws
    the same numbers again.

    Attributes:
        parts: the segments in their order, over the layers of the graph.
    """

    def __init__(self, graph: keras.Model):
        self.parts = segments(graph)

    def __call__(self, x, training=True):
        for part in self.parts[:-1]:
            x = _recomputed(part, x)
        # Its gradients come first: all that it would forget would be computed again at once.
        return self.parts[-1](x, training=training)


def segments(graph: keras.Model) -> list[keras.Model]:
    """Cuts a graph with one input and one output so that the least memory is needed.

    What is needed is taken to be the inputs of all segments, and all maps of the largest one. Where no single tensor parts a
    graph, there is one segment.
    """
    graph = functional(graph)
    steps = nodes(graph)
    last_read = {id(tensor): i for i, node in enumerate(steps) for tensor in node.input_tensors}
    cuts = [(0, graph.input, 0)]  # After how many steps, the tensor that is kept, its size.
    alive: dict[int, keras.KerasTensor] = {}
    for i, node in enumerate(steps):
        alive |= {id(tensor): tensor for tensor in node.output_tensors}
        alive = {key: tensor for key, tensor in alive.items() if last_read.get(key, len(steps)) > i}
        if len(alive) == 1 and not node.is_input:
            (tensor,) = alive.values()
            cuts.append((i + 1, tensor, _size(tensor)))
    made = [0]
    for node in steps:
        made.append(made[-1] + (0 if node.is_input else sum(map(_size, node.output_tensors))))
    chosen = _least([cut[2] for cut in cuts], [made[cut[0]] for cut in cuts])
    ends = [cuts[k][1] for k in chosen]
    return [keras.Model(first, last) for first, last in itertools.pairwise(ends)]


def _least(kept: Sequence[int], made: Sequence[int]) -> list[int]:
    """Chooses cuts, the first and the last among them, with the least sum of what is kept and of the largest segment.

    Args:
        kept: size of the tensor at each cut.
        made: size of all that is computed before each cut.
    """
    last, best = len(kept) - 1, (math.inf, [0, len(kept) - 1])
    for most in (made[last] * 0.95**k for k in range(100)):  # From all of it to a hundredth and a half.
        # The least that is kept up to each cut, if no segment is larger than `most`, and the cut before it.
        sums: list[tuple[float, int]] = [(0.0, -1)]
        for j in range(1, last + 1):
            within = [(sums[i][0] + kept[i], i) for i in range(j) if made[j] - made[i] <= most]
            sums.append(min(within, default=(math.inf, -1)))
        if sums[last][0] + most < best[0]:
            path = [last]
            while path[-1] > 0:
                path.append(sums[path[-1]][1])
            best = (sums[last][0] + most, path[::-1])
    return best[1]


def _recomputed(part: keras.Model, x):
    """Calls a model in training so that of all that it computes nothing is kept for its gradients."""
    import tensorflow as tf

    # A pure function of these, which the second run finds as the first one did: that moves averages and random states.
    state = [tf.identity(tf.convert_to_tensor(v)) for v in part.non_trainable_variables]
    updated = []

    def call(x, *trained):
        outputs, after = part.stateless_call(list(trained), state, x, training=True)
        updated.append(after)
        return outputs

    outputs = keras.remat(call)(x, *(tf.convert_to_tensor(v) for v in part.trainable_variables))
    for variable, before, after in zip(part.non_trainable_variables, state, updated[0], strict=True):
        if after is not before:
            variable.assign(after)
    return outputs


def _size(tensor: keras.KerasTensor) -> int:
    """Returns the number of values for one image."""
    return math.prod(n or 1 for n in tensor.shape[1:])
