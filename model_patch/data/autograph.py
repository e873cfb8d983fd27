"""AutoGraph is not used: it would rewrite the source of every function of a data set, which takes longer than tracing it."""

import functools
from collections.abc import Callable


def without_autograph(function: Callable) -> Callable:
    """Decorator: what TensorFlow traces during a call runs as plain Python, so that it must use `tf.cond` and `tf.where`."""

    @functools.wraps(function)
    def call(*args, **kwargs):
        import tensorflow as tf

        return tf.autograph.experimental.do_not_convert(function)(*args, **kwargs)

    return call
