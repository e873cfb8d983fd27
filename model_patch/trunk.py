"""A trunk: a Keras model from image to features whose weights all tasks share."""

import contextlib
import dataclasses
import functools
import hashlib
import math
from collections.abc import Iterable, Iterator

import keras
import numpy as np

from model_patch.errors import ModelPatchError, TrainingError
from model_patch.graph.attention import open_attention
from model_patch.graph.calls import Call, calls, may_write, mixes_images, written
from model_patch.graph.inline import BATCH, inline_layers
from model_patch.graph.rewrite import functional, resized, rewrite, walk
from model_patch.graph.settings import check_settings, dtype_policy, with_policy
from model_patch.kinds import VERSION, offer_scale_bias
from model_patch.layers import is_unnamed, variables
from model_patch.preprocessing import Preprocessing
from model_patch.tasks import Task


class Trunk:
    """A net that tasks share, frozen from the moment it becomes a trunk.

    Attributes:
        model: functional Keras model, float32 images `(batch, image_size, image_size, 3)` to features `(batch, channels)`,
            to a feature map `(batch, rows, columns, channels)`, or to tokens `(batch, tokens, channels)`, which tasks pool.
            `trainable` is off: its batch norms run in inference mode and keep their statistics.
        name: where it came from, the spec it was opened with; recorded in patches, not compared.
        preprocessing: the image size and scaling it takes.
        prefix_tokens: how many tokens, the class token first, precede those of the patches; 0 where it gives no tokens.
    """

    def __init__(self, model: keras.Model, name: str, preprocessing: Preprocessing, prefix_tokens: int | None = None):
        """Makes a trunk of a model and freezes it.

        The model is used itself where it is a graph of plain layers. Its layers are copied where they are inside other
        layers or a subclassed model (see `inline_layers`), and where they were made under another dtype policy than
        `keras.config.dtype_policy()`: whatever precision a net was saved in, it computes in that of this process.

        Args:
            model: as above.
            name: as above.
            preprocessing: as above.
            prefix_tokens: as above; None for what is left of the tokens after the largest square, such as 1 of 197: the
                patches of a square image are a square.

        Raises:
            ModelPatchError: Keras is set to another layout or float type (see `check_settings`); the model cannot be
                followed as a graph, does not map one image of three channels to features, is for images of another size
                than that of `preprocessing`, has a layer that cannot compute under the dtype policy, that writes to its
                variables in inference, or that mixes up the images of a batch.
        """
        check_settings()
        is_graph = isinstance(model, keras.Sequential | keras.Function)
        model = inline_layers(image_graph(model, name) if is_graph else model, preprocessing.image_size)
        model, size = image_graph(model, name), preprocessing.image_size
        height, width = model.input.shape[1:3]
        if {height, width} - {None, size}:
            raise ModelPatchError(
                f"the trunk {name!r} takes images of {height} x {width} px and its preprocessing makes them {size} x "
                f"{size}: build the net for that size, or give the net's own to Preprocessing"
            )
        # Sizes must be known where zeros are padded, and where images of several tasks are one batch.
        model = open_attention(with_policy(resized(model, (size, size, 3), name), keras.config.dtype_policy()))
        model.trainable = False
        offer_scale_bias(layer for _, layer in walk(model))
        self.model = model
        self.name = name
        self.preprocessing = preprocessing
        self.prefix_tokens = _prefix_tokens(model.output.shape, prefix_tokens, name)
        for path, call in calls(model).items():
            if mixes_images(call) and self._mixes_images:
                raise ModelPatchError(
                    f"the layer {path!r} ({type(call.layer).__name__}) of the trunk {name!r} computes an image otherwise with "
                    "others in its batch, and tasks share batches: keep it from the first axis"
                )
        for path, call in self._may_write().items():
            changed = written(call, training=False)
            if changed:
                raise ModelPatchError(
                    f"the layer {path!r} ({type(call.layer).__name__}) of the trunk {name!r} writes to {', '.join(changed)} "
                    "whenever it is called, in inference too, and a trunk must stay unchanged: leave that layer out"
                )

    @functools.cached_property
    def _mixes_images(self) -> bool:
        """Whether the features of an image depend on the others in its batch: not in Swin, whose layers take windows as images."""
        shape = (3, *self.model.input.shape[1:])
        images = self.preprocessing.scale(np.random.default_rng(0).uniform(0, 255, shape).astype("float32"))
        together, *alone = (
            np.asarray(keras.ops.convert_to_numpy(self.model(x, training=False)), "float64")
            for x in (images, *np.split(images, len(images)))
        )
        if len(together) != len(images) or any(len(each) != 1 for each in alone):
            return True
        expected = np.concatenate(alone)
        return bool(np.abs(together - expected).max() > 1e-4 * np.abs(expected).max())

    @functools.cached_property
    def writing(self) -> set[str]:
        """The paths of layers that write to their variables in training, frozen or not: tasks run them in inference mode."""
        return {path for path, call in self._may_write().items() if written(call, training=True)}

    @functools.cached_property
    def splits_images(self) -> set[str]:
        """The paths of layers that take parts of images as a batch, as in the windows of Swin, and not images."""
        if not any(mixes_images(call) for call in calls(self.model).values()):
            return set()  # A single operation then takes images and gives something else.
        taken: dict[int, bool] = {}

        def call(layer, *args, **kwargs):
            tensors = keras.tree.flatten((args, kwargs))
            sizes = {x.shape[0] for x in tensors if isinstance(x, keras.KerasTensor)}
            # A nested graph, such as an opened attention, says nothing itself: it was rebuilt for whole images.
            for each in [inner for _, inner in walk(layer)] if isinstance(layer, keras.Model) else [layer]:
                taken[id(each)] = taken.get(id(each), False) or sizes != {BATCH}
            return layer(*args, **kwargs)

        rewrite(self.model, lambda path, layer: layer, call, reshape=lambda shape: (BATCH, *shape[1:]))
        return {path for path, layer in self.layers().items() if taken.get(id(layer))}

    def require_whole_images(self, path: str, what: str):
        """Checks that a layer takes as many examples as there are images.

        Raises:
            ModelPatchError: it does not; `what`, such as `joined`, says what needs it.
        """
        if path in self.splits_images:
            raise ModelPatchError(
                f"the layer {path!r} of {self.name} computes with parts of images and cannot be {what}: leave the kind out "
                "that owns it, or bind its tasks one by one"
            )

    def _may_write(self) -> dict[str, Call]:
        layers = {path for path, layer in self.layers().items() if may_write(layer)}
        return {path: call for path, call in calls(self.model).items() if path in layers} if layers else {}

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[None]:
        """Checks at the end of the context that no variable of the trunk has changed in it, to the last bit.

        Raises:
            TrainingError: some have.
        """
        before = self._digests()
        yield
        changed = [key for key, digest in self._digests().items() if digest != before[key]]
        if changed:
            more = f" and {len(changed) - 8} more" if len(changed) > 8 else ""
            raise TrainingError(
                f"training changed the frozen trunk {self.name}, in {', '.join(changed[:8])}{more}: its other tasks would "
                "change with it, so open the trunk again and leave out the layers that write to these"
            )

    def _digests(self) -> dict[str, bytes]:
        values = ((key, keras.ops.convert_to_numpy(v)) for key, v in self.variables().items())
        return {key: hashlib.sha256(np.ascontiguousarray(value).tobytes()).digest() for key, value in values}

    @functools.cached_property
    def in_float32(self) -> "Trunk":
        """This trunk computing in float32, with copies of the layers that compute in another type; itself where none do."""
        with dtype_policy("float32"):
            is_float32 = with_policy(self.model, keras.config.dtype_policy()) is self.model
            return self if is_float32 else Trunk(self.model, self.name, self.preprocessing, self.prefix_tokens)

    def pooled(self, task: Task) -> Task:
        """Returns a task with the pooling that it has on this trunk, see `Task.pooling`.

        Raises:
            ModelPatchError: the trunk has no class token, or gives features that are pooled already.
        """
        rank = len(self.model.output.shape)
        if rank != 3:
            if task.pooling == "auto" or (rank == 4 and task.pooling == "mean"):
                return dataclasses.replace(task, pooling="auto", prefix_tokens=None)
            raise ModelPatchError(
                f"pooling={task.pooling} needs tokens, and {self.name} gives {tuple(self.model.output.shape)}: leave it auto"
            )
        if task.prefix_tokens is not None and task.pooling != "auto":
            return task  # It was bound before, and is pooled as it was then.
        pooling = task.pooling if task.pooling != "auto" else "class" if self.prefix_tokens else "mean"
        if "class" in pooling and not self.prefix_tokens:
            raise ModelPatchError(f"pooling={pooling} needs a class token, and {self.name} has none: use mean")
        return dataclasses.replace(task, pooling=pooling, prefix_tokens=self.prefix_tokens)

    def require_graph(self, what: str):
        """Checks that the net's own layers are known, not one layer that runs it as a whole, see `trunks.hub`.

        Raises:
            ModelPatchError: they are not; `what`, such as `a join`, says what needs them.
        """
        if any(hasattr(layer, "_mp_slots") for layer in self.layers().values()):
            raise ModelPatchError(
                f"{what} needs the layers of the trunk {self.name}, which runs as a single layer: open another one"
            )

    def layers(self) -> dict[str, keras.Layer]:
        """Returns every layer by path, in graph order."""
        return dict(walk(self.model))

    def variables(self) -> dict[str, keras.Variable]:
        """Returns every variable by key, in graph order."""
        return {key: v for path, layer in walk(self.model) for key, v in variables(path, layer).items()}

    def width(self) -> float:
        """Returns the mean number of channels of its layers: the mean length of its scales, biases and statistics; 1 without any."""
        lengths = [v.shape[0] for v in self.variables().values() if len(v.shape) == 1]
        return float(np.mean(lengths)) if lengths else 1.0

    def num_parameters(self) -> int:
        """Returns the number of values in all variables, batch norm's statistics included."""
        return sum(int(np.prod(v.shape)) for v in self.variables().values())

    def fingerprint(self, keys: Iterable[str], version: int = VERSION) -> str:
        """Returns the SHA-256 (hex) of the named variables: key, shape and float32 value, in sorted order.

        It says whether a patch that leaves exactly these frozen belongs to this trunk. Layers' order, file formats and
        the variables that a patch replaces do not enter.

        Args:
            keys: keys of the variables.
            version: version of the patch, see `kinds.VERSION`: in version 1 unnamed variables have the names that Keras counts.
        """
        known, names = self.variables(), self.counted_keys() if version == 1 else {}
        digest = hashlib.sha256()
        for name, key in sorted((names.get(key, key), key) for key in keys):
            value = np.ascontiguousarray(keras.ops.convert_to_numpy(known[key]), dtype="<f4")
            digest.update(f"{name} {value.shape}\n".encode())
            digest.update(value.tobytes())
        return digest.hexdigest()

    def counted_keys(self) -> dict[str, str]:
        """Returns, by key, those keys under which patches of version 1 hold variables that have no name."""
        return {
            key: f"{path}/{variable.path.rpartition(f'{layer.name}/')[2]}"
            for path, layer in walk(self.model)
            for key, variable in variables(path, layer).items()
            if is_unnamed(variable)
        }


def image_graph(model: keras.Model, name: str) -> keras.Model:
    """Returns a graph over the same layers that takes one tensor of images and gives one tensor of features.

    Lists and dicts of one tensor, which Keras models may take and give, become the tensor.

    Args:
        model: functional or sequential.
        name: what the trunk is called in errors.

    Raises:
        ModelPatchError: the model was never built, takes anything else than images of three channels, or gives anything
            else than features.
    """
    model = functional(model)
    inputs, outputs = model.inputs, model.outputs
    if len(inputs) != 1 or inputs[0].ndim != 4 or inputs[0].shape[-1] not in (3, None):
        found = ", ".join(str(tuple(x.shape)) for x in inputs)
        raise ModelPatchError(f"the trunk {name!r} takes {found}: expected one image (batch, height, width, 3)")
    is_features = len(outputs) == 1 and outputs[0].ndim in (2, 3, 4) and outputs[0].shape[-1]
    if not is_features or "float" not in outputs[0].dtype:
        found = ", ".join(f"{x.dtype} {tuple(x.shape)}" for x in outputs)
        raise ModelPatchError(
            f"the trunk {name!r} gives {found}: expected features (batch, channels), a feature map (batch, rows, columns, "
            "channels) or tokens (batch, tokens, channels)"
        )
    if model.input is inputs[0] and model.output is outputs[0]:
        return model
    return keras.Model(inputs[0], outputs[0], name=model.name)


def _prefix_tokens(shape: tuple, given: int | None, name: str) -> int:
    """Returns how many of the tokens of an output shape are none of patches."""
    if len(shape) != 3:
        if given:
            raise ModelPatchError(f"prefix_tokens={given} for {name!r}, which gives no tokens: leave it out")
        return 0
    tokens = shape[1]
    if tokens is None or (given is not None and not 0 <= given < tokens):
        raise ModelPatchError(f"the trunk {name!r} gives {tokens} tokens, with prefix_tokens={given}: expected fewer")
    return tokens - math.isqrt(tokens) ** 2 if given is None else given
