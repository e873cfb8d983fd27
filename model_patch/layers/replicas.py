"""Numbers that the replicas of a strategy of tf.distribute have to agree on while each computes its part of a step."""

import keras


def mean_over_replicas(x):
    """Returns the mean of a tensor over the replicas that compute a step together; the tensor itself where there is one.

    Every replica must call it, and gets the same. With equal parts of a batch, the mean of their means is that of the
    batch. JAX needs none of this: there, a step is written for the whole batch, however many devices hold it.
    """
    if keras.backend.backend() != "tensorflow":
        return x
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    return context.all_reduce("mean", x) if context and context.num_replicas_in_sync > 1 else x
