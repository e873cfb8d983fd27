"""A trunk: a Keras model from image to features whose weights all tasks share."""

import contextlib
import functools
import hashlib
from collections.abc import Iterable, Iterator

import keras
import numpy as np

from model_patch.errors import ModelPatchError, TrainingError
from model_patch.graph.calls import Call, calls, may_write, mixes_images, written
from model_patch.graph.inline import inline_layers
from model_patch.graph.rewrite import functional, resized, walk
from model_patch.kinds import offer_scale_bias
from model_patch.layers import variables
from model_patch.preprocessing import Preprocessing


class Trunk:
    """A net that tasks share, frozen from the moment it becomes a trunk.

    Attributes:
        model: functional Keras model, images `(batch, height, width, 3)` to features `(batch, channels)`, or to a
            feature map that tasks pool. `trainable` is off: its batch norms run in inference mode and keep their statistics.
        name: where it came from, the spec it was opened with; recorded in patches, not compared.
        preprocessing: the image size and scaling it takes.
    """

    def __init__(self, model: keras.Model, name: str, preprocessing: Preprocessing):
        """Makes a trunk of a model and freezes it.

        Layers inside other layers, and those of a subclassed model, are copied into a graph, see `inline_layers`; a model
        that is a graph of plain layers is used itself. One for images of any size is made one for those of `preprocessing`.

        Raises:
            ModelPatchError: the model cannot be followed as a graph, has more than one input or output, or has a layer
                that writes to its variables in inference, or one that mixes up the images of a batch.
        """
        model = functional(inline_layers(model, preprocessing.image_size))
        if len(model.inputs) != 1 or len(model.outputs) != 1:
            raise ModelPatchError(
                f"the trunk {name!r} has {len(model.inputs)} inputs and {len(model.outputs)} outputs: expected one image "
                "input and one feature output"
            )
        if model.input.shape[1:3] == (None, None):
            # Sizes must be known where zeros are padded, and where images of several tasks are one batch.
            size = preprocessing.image_size
            model = resized(model, (size, size, *model.input.shape[3:]), name)
        model.trainable = False
        offer_scale_bias(layer for _, layer in walk(model))
        self.model = model
        self.name = name
        self.preprocessing = preprocessing
        for path, call in calls(model).items():
            if mixes_images(call):
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
    def writing(self) -> set[str]:
        """The paths of layers that write to their variables in training, frozen or not: tasks run them in inference mode."""
        return {path for path, call in self._may_write().items() if written(call, training=True)}

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

    def num_parameters(self) -> int:
        """Returns the number of values in all variables, batch norm's statistics included."""
        return sum(int(np.prod(v.shape)) for v in self.variables().values())

    def fingerprint(self, keys: Iterable[str]) -> str:
        """Returns the SHA-256 (hex) of the named variables: key, shape and float32 value, in sorted order.

        It says whether a patch that leaves exactly these frozen belongs to this trunk. Layers' order, file formats and
        the variables that a patch replaces do not enter.
        """
        known = self.variables()
        digest = hashlib.sha256()
        for key in sorted(keys):
            value = np.ascontiguousarray(keras.ops.convert_to_numpy(known[key]), dtype="<f4")
            digest.update(f"{key} {value.shape}\n".encode())
            digest.update(value.tobytes())
        return digest.hexdigest()
