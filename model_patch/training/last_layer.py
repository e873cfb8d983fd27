"""The last layer alone: a generalised linear model on the trunk's features, a convex problem with one solution.

    minimise  mean loss(link(features kernel + bias), targets) + weight_decay / 2 |kernel|^2

by L-BFGS, with the weight decay of lowest loss in cross-validation. The loss is that of the task's type: cross-entropy after a
softmax or after sigmoids, or the squared error. No learning rate is involved. It is also where
patches start from (Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution"). They
keep the weight decay, so that all minimise one objective, the last layer alone over fewer parameters.
"""

from collections.abc import Callable

import numpy as np
from keras import ops
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from model_patch.bind import BoundTask

WEIGHT_DECAYS = tuple(10.0 ** (-exponent / 2) for exponent in range(4, 15))
"""From strong to weak, for features whose mean squared distance from their mean is 1."""

SPREAD_POWER = 0.5
"""Each channel is divided by this power of its standard deviation: halfway between leaving channels unchanged, which a few
strong ones rule, and making all equal, which raises the noise of the weak ones. See docs/choices.md."""

ITERATIONS = 50
"""Steps of L-BFGS for each weight decay; each starts from the solution for the one before."""

FOLDS = 5
MOST_CROSS_VALIDATED = 2000
"""With up to this many images, every fold is held out once; with more, the first fold alone."""

SMALL = 2**25
"""Images times channels times classes: up to this NumPy, with one thread, takes less time for a step than a framework takes to
start its operations: 1.4 ms and 3.7 ms for 1,000 x 1,280 x 10, 4.8 ms and 6.1 ms for 3,000, on two idle cores."""

MOST_WORK = 2**28
"""Images times channels times classes: the weight decay is chosen on as many images as keep within it."""


LEAST_SPREAD = 0.01
"""Where features differ less from their mean, relative to their size, a last layer trained on them is no start for a patch: it
enlarges these differences so much that one relative step of training, about as large, drowns them. Random trunks are so."""


# On vectors this short BLAS' threads wait for each other, on a busy machine for long.
@threadpool_limits.wrap(limits=1, user_api="blas")
def learn_last_layer(
    bound: BoundTask,
    features: np.ndarray,
    labels: np.ndarray,
    class_weights: np.ndarray | None = None,
    least_spread: float = 0.0,
) -> np.ndarray | None:
    """Sets the last layer of a task to the solution.

    Args:
        bound: its head changes, nothing else.
        features: what the head takes, of each training image, float32 `(images, channels)`.
        labels: labels of the images, as the data have them.
        class_weights: how much an image of each class counts, float32 `(classes,)`, with the mean 1 over all images; by
            default 1 each.
        least_spread: leaves the last layer unchanged where the features' root mean square distance from their mean is less than
            this part of their root mean square.

    Returns:
        The weight decay that was chosen, for each row of the kernel as the features are: float32 `(channels, 1)`. None where the
        last layer is unchanged.
    """
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    scale = (deviation + 0.01 * np.sqrt(np.mean(np.square(deviation))) + 1e-12) ** SPREAD_POWER
    centred = (features - mean) / scale
    distance = np.sqrt(np.mean(np.sum(np.square(centred), axis=1)))
    if distance < least_spread * np.sqrt(np.mean(np.sum(np.square(features / scale), axis=1))):
        return None
    distance = distance or 1.0
    centred, scale = (centred / distance).astype("float32"), scale * distance
    targets, link = bound.task.targets(labels), LINKS[str(bound.task.link)]
    outputs = targets.shape[1]
    if class_weights is not None:
        targets *= class_weights[labels, None]
    few = max(outputs, MOST_WORK // (outputs * features.shape[1]))
    weight_decay = choose_weight_decay(centred[:few], targets[:few], link)
    enough = min(1.0, few / len(labels))  # Noise averages out over more images, so that they need less weight decay.
    weights = np.zeros((features.shape[1] + 1, outputs))
    for each in WEIGHT_DECAYS[: WEIGHT_DECAYS.index(weight_decay) + 1]:
        weights = _solve(centred, targets, each * enough, weights, link)
    kernel = weights[:-1] / scale[:, None]
    bound.head.set_weights([kernel, weights[-1] - mean @ kernel])
    return (weight_decay * enough * np.square(scale)).astype("float32")[:, None]


def softmax_loss(logits, targets, xp) -> tuple:
    """Returns the sum over images of the cross-entropy after a softmax, and its gradient with respect to the logits.

    Args:
        logits, targets: float32 `(images, outputs)`; targets are one-hot, times the weight of the image.
        xp: what computes, NumPy or Keras' operations.
    """
    logits = logits - xp.max(logits, axis=1, keepdims=True)
    log_probabilities = logits - xp.log(xp.sum(xp.exp(logits), axis=1, keepdims=True))
    error = xp.exp(log_probabilities) * xp.sum(targets, axis=1, keepdims=True) - targets
    return -xp.sum(targets * log_probabilities), error


def sigmoid_loss(logits, targets, xp) -> tuple:
    """As `softmax_loss`, of the mean over outputs of the cross-entropy after a sigmoid; targets are in 0..1."""
    softplus = xp.maximum(logits, 0.0) + xp.log1p(xp.exp(-xp.abs(logits)))
    error = (0.5 + 0.5 * xp.tanh(0.5 * logits) - targets) / targets.shape[1]
    return xp.sum(softplus - targets * logits) / targets.shape[1], error


def squared_loss(logits, targets, xp) -> tuple:
    """As `softmax_loss`, of the mean over outputs of the squared error."""
    error = logits - targets
    return xp.sum(xp.square(error)) / targets.shape[1], 2.0 * error / targets.shape[1]


LINKS = {"softmax": softmax_loss, "sigmoid": sigmoid_loss, "identity": squared_loss}
"""By `Task.link`: the loss that the task's own is the mean over images of."""


def choose_weight_decay(features: np.ndarray, targets: np.ndarray, link: Callable = softmax_loss) -> float:
    """Returns the one of `WEIGHT_DECAYS` with the lowest loss in cross-validation.

    Folds split each class evenly. As weight decay falls, that loss falls and then rises: the search ends there.

    Args:
        features: centred and scaled, float32 `(images, channels)`.
        targets: float32 `(images, outputs)`, see `LINKS`.
        link: one of `LINKS`.
    """
    if len(features) < 2 * FOLDS:
        return WEIGHT_DECAYS[0]
    fold = np.empty(len(targets), "int64")
    fold[np.argsort(targets.argmax(axis=1), kind="stable")] = np.arange(len(targets)) % FOLDS
    folds = range(FOLDS if len(features) <= MOST_CROSS_VALIDATED else 1)
    weights: dict[int, np.ndarray] = {}
    best, best_loss = WEIGHT_DECAYS[0], np.inf
    for weight_decay in WEIGHT_DECAYS:
        loss = 0.0
        for i in folds:
            train, held_out = fold != i, fold == i
            weights[i] = _solve(features[train], targets[train], weight_decay, weights.get(i), link)
            loss += _objective(weights[i], features[held_out], targets[held_out], 0.0, link)[0]
        if loss >= best_loss:
            break
        best, best_loss = weight_decay, loss
    return best


def _solve(features, targets, weight_decay: float, start: np.ndarray | None, link: Callable) -> np.ndarray:
    """Starts from zeros or from another solution; returns kernel and, as the last row, bias: float32 `(channels + 1, outputs)`."""
    shape = (features.shape[1] + 1, targets.shape[1])
    xp = np if features.size * targets.shape[1] <= SMALL else ops
    features, targets = xp.array(features), xp.array(targets)

    def objective(flat):
        loss, gradient = _objective(flat.reshape(shape), features, targets, weight_decay, link, xp)
        return loss, gradient.ravel()

    first = np.zeros(shape) if start is None else start
    options = {"maxiter": ITERATIONS, "ftol": 1e-7}
    return minimize(objective, first.ravel(), jac=True, method="L-BFGS-B", options=options).x.reshape(shape)


def _objective(
    weights: np.ndarray, features, targets, weight_decay: float, link: Callable, xp=np
) -> tuple[float, np.ndarray]:
    """Returns the objective and its gradient with respect to `weights`, float64 `(channels + 1, outputs)`.

    Args:
        weights, features, targets, weight_decay, link: as for `_solve`.
        xp: what computes, NumPy or Keras' operations, in float32.
    """
    kernel, bias = xp.array(weights[:-1], "float32"), xp.array(weights[-1], "float32")
    loss, error = link(xp.matmul(features, kernel) + bias, targets, xp)
    error = error / len(features)
    gradient = xp.matmul(xp.transpose(features), error) + weight_decay * kernel
    loss = weight_decay / 2 * xp.sum(xp.square(kernel)) + loss / len(features)
    rows = [ops.convert_to_numpy(part) for part in (gradient, xp.sum(error, axis=0, keepdims=True))]
    return float(loss), np.concatenate(rows).astype("float64")
