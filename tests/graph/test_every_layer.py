"""Random nets of every layer class: what a patch, a join, a bank, a fold and an export compute is what plain Keras does, or
the net is refused in one sentence.
"""

import keras
import numpy as np
import pytest

from model_patch import Bank, ModelPatchError, Preprocessing, Task, Trunk, bind, fold, join
from model_patch.export import FORMATS, export
from model_patch.graph.rewrite import walk
from model_patch.layers import variables
from tests.backends import tensorflow_only
from tests.conftest import same, snapshot
from tests.graph.generated_nets import FIRST, NO_IMAGES, OPERATIONS, RECIPES, SIZE, classes, net

NAMES = sorted(RECIPES | FIRST | OPERATIONS)
NETS = 200
PREPROCESSING = Preprocessing(SIZE, "none")
KINDS = ("scale_bias+last", "last", "full", "depthwise+last", "bias+last")
TOLERANCE = 2e-4


def images(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (number, SIZE, SIZE, 3)).astype("float32")


class Journey:
    """One net's way through the package.

    Attributes:
        refused: what said no, with its sentence.
        passed: what gave what plain Keras gives.
    """

    def __init__(self, name: str, seed: int):
        self.name, self.seed = name, seed
        self.refused: dict[str, str] = {}
        self.passed: list[str] = []
        self.plain = net(name, seed)
        self.added: dict[str, np.ndarray] = {}
        for layer in self.plain.layers:
            if isinstance(layer, keras.layers.RMSNormalization):  # A patch adds a bias.
                layer.call = lambda x, layer=layer, call=layer.call: call(x) + self.added[layer.name]
        self.values = snapshot(self._plain_variables())

    def _plain_variables(self):
        return {key: v for path, layer in walk(self.plain) for key, v in variables(path, layer).items()}

    def attempt(self, what: str, action):
        try:
            result = action()
        except ModelPatchError as error:
            assert "\n" not in str(error) and len(str(error)) < 900, (self.name, self.seed, what, str(error))
            self.refused[what] = str(error)
            return None
        except Exception as error:
            raise AssertionError(f"{self.name}, seed {self.seed}: {what}: {type(error).__name__}: {error}") from error
        self.passed.append(what)
        return result

    def logits(self, bound, x) -> np.ndarray:
        """What plain Keras gives: the net as it was made, the task's values in it, and its last layer."""
        values = bound.patch().values
        for key, variable in self._plain_variables().items():
            variable.assign(values.get(key, self.values[key]))
        self.added = {path: values.get(f"{path}/beta", np.float32(0)) for path, _ in walk(self.plain)}
        features = np.asarray(self.plain(x, training=False), "float64")
        features = features.mean((1, 2)) if features.ndim == 4 else features
        return features @ values["head.kernel"] + values["head.bias"]

    def check(self, what: str, given, expected):
        given = np.asarray(given, "float64")
        largest = max(1.0, float(np.abs(expected).max()))
        difference = float(np.abs(given - expected).max())
        assert difference <= TOLERANCE * largest, f"{self.name}, seed {self.seed}: {what} differs by {difference:.3g}"

    def run(self, kinds, formats=(), folder=None):
        trunk = self.attempt("trunk", lambda: Trunk(net(self.name, self.seed), "generated", PREPROCESSING))
        if trunk is None:
            return self
        before = snapshot(trunk.variables())
        tasks = [Task(f"task{i}", tuple("abcd"[: i + 2]), PREPROCESSING) for i in range(2)]
        x, y = images(4), np.array([0, 1, 1, 0])
        for kind in kinds:
            bounds = [self.attempt(f"bind {kind}", lambda t=t, kind=kind: bind(trunk, t, kind)) for t in tasks]
            if bounds[0] is None:
                continue
            for bound in bounds:
                self.check(f"bind {kind}", bound.model(x, training=False), self.logits(bound, x))
                bound.model.compile(keras.optimizers.SGD(0.01), bound.task.loss(), run_eagerly=True)
                bound.model.train_on_batch(x, y)
                assert same(before, snapshot(trunk.variables())), (
                    f"{self.name}, seed {self.seed}: {kind} moved the trunk"
                )
                self.check(f"trained {kind}", bound.model(x, training=False), self.logits(bound, x))
            self._together(trunk, bounds, kind, before)
            self._export(bounds, kind, formats, folder)
        assert same(before, snapshot(trunk.variables()))
        return self

    def _together(self, trunk, bounds, kind, before):
        for bound in bounds[:1]:
            folded = self.attempt(f"fold {kind}", lambda b=bound: fold(b, tolerance=1e-3))
            if folded is not None:
                self.check(f"fold {kind}", folded.model(images(3), training=False), self.logits(bound, images(3)))
        joined = self.attempt(f"join {kind}", lambda: join(trunk, [bound.task for bound in bounds], kind))
        if joined is not None:
            x = {bound.task.name: images(i + 2) for i, bound in enumerate(bounds)}
            for bound in bounds:
                joined.tasks[bound.task.name].load(bound.patch())
            for step in (0, 1):
                if step:
                    joined.model.compile(keras.optimizers.SGD(0.01), joined.losses(), run_eagerly=True)
                    joined.model.train_on_batch(x, {name: np.arange(len(each)) % 2 for name, each in x.items()})
                    assert same(before, snapshot(trunk.variables())), f"{self.name}, seed {self.seed}: join {kind}"
                outputs = joined.model(x, training=False)
                for name, bound in joined.tasks.items():
                    self.check(f"join {kind}", outputs[name], self.logits(bound, x[name]))
        bank = None
        if kind != "full":
            parts = [part for part in kind.split("+") if part != "last"]
            bank = self.attempt(
                f"bank {kind}", lambda: Bank(trunk, "+".join(parts) or "scale_bias", capacity=2, classes=3)
            )
        for number in (1, 5, 33) if bank else ():
            names = [bounds[i % 2].task.name for i in range(number)]
            for bound in bounds:
                if bound.task.name not in bank.tasks:
                    bank.add(bound)
            outputs = self.attempt(f"bank {kind}", lambda n=number, names=names: np.asarray(bank(images(n), names)))
            for i, bound in enumerate(bounds):
                mine = slice(i, None, 2)
                if number > i:
                    given = outputs[mine, : len(bound.task.labels)]
                    self.check(f"bank {kind}, {number} images", given, self.logits(bound, images(number))[mine])

    def _export(self, bounds, kind, formats, folder):
        for format in formats:
            output = folder / f"{self.name}_{self.seed}_{kind}_{format}"
            written = self.attempt(f"{format} {kind}", lambda f=format, o=output: export(f, bounds, o) or True)
            if written:
                for bound, given in zip(bounds, predictions(format, output, bounds, images(2)), strict=True):
                    self.check(f"{format} {kind}", given, self.logits(bound, images(2)))


def predictions(format, folder, bounds, x):
    """What exported files give, in this process: the tests of tests/export ask in others."""
    import onnxruntime
    import tensorflow as tf

    for bound in bounds:
        name, classes = bound.task.name, len(bound.task.labels)
        if format.startswith("litert"):
            from ai_edge_litert.interpreter import Interpreter
            from safetensors.numpy import load_file

            file = folder / ("net.tflite" if format == "litert_set" else f"{name}.tflite")
            vector = load_file(folder / f"{name}.safetensors") if format == "litert_set" else {}
            runner = Interpreter(str(file)).get_signature_runner("serving_default")
            yield runner(images=x, **vector)["logits"][:, :classes]
            continue
        if format == "onnx":
            session = onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])
            yield session.run(["logits"], {"images": x})[0]
            continue
        path = folder / name if format == "saved_model" else folder
        signatures = tf.saved_model.load(str(path)).signatures
        if format == "bank":
            outputs = signatures["serving_default"](images=tf.constant(x), tasks=tf.fill([len(x)], name))
        else:
            outputs = signatures[name if format == "signatures" else "serving_default"](images=tf.constant(x))
        yield outputs["logits"].numpy()[:, :classes]


def test_every_layer_class_of_keras_is_tried_or_left_out_for_a_reason():
    assert set(classes()) == set(RECIPES) | set(FIRST) | set(NO_IMAGES)


@tensorflow_only
@pytest.mark.parametrize(
    ("name", "kind"),
    zip(("MultiHeadAttention", "Normalization", "split", "SpectralNormalization"), KINDS[:2] * 2, strict=True),
)
def test_a_generated_net_computes_what_plain_keras_does(name, kind):
    assert Journey(name, NAMES.index(name)).run([kind]).passed


@pytest.mark.soak
@tensorflow_only
@pytest.mark.parametrize("seed", range(NETS))
def test_no_generated_net_is_silently_wrong(seed, tmp_path):
    name, first = NAMES[seed % len(NAMES)], (seed + seed // len(NAMES)) % len(KINDS)
    journey = Journey(name, seed)
    for kind in KINDS[first:] + KINDS[:first]:  # One kind a net, in turns, that it has slots for and that is shared.
        journey.run([kind], FORMATS, tmp_path)
        if "trunk" in journey.refused or (kind != "full" and f"bind {kind}" in journey.passed):
            break
    print(name, "passed:", len(journey.passed), "refused:", journey.refused)
