"""The form `peft` of the suite `lora`: low-rank adapters of PEFT on a vision transformer of PyTorch with a trunk's weights.

Data, batches, the solved last layer, its weight decay, loss, optimizer and schedule are those of the other forms. An adapter
of PEFT is on the value projection as a whole, while that of Keras has a row for each head, so that ranks differ.
"""

import functools
import importlib
import importlib.util
import math
from collections.abc import Callable

import keras
import numpy as np

import model_patch as mp
from model_patch.data import pipeline
from model_patch.experiments.benchmark.torch_nets import import_torch
from model_patch.experiments.report.machine import num_cores
from model_patch.training.last_layer import learn_last_layer

PATCH, MERGED = "torch patch", "torch merged"
"""What steps and batches of `peft` are compared with: the norms' and layer scales' parameters, and the net of one task."""


def why_not(trunk: mp.Trunk) -> str | None:
    """Returns why the form is not run on a trunk, or None."""
    if not all(importlib.util.find_spec(name) for name in ("torch", "torchvision", "peft")):
        return "PEFT is not installed: pip install 'model_patch[torch]'"
    names = {layer.name for layer in trunk.model.layers}
    if not {"patches", "positions", "block_0_attention"} <= names:
        return "only vision transformers named as real_bench's DINOv2 are written in PyTorch"
    return None


def transformer(model: keras.Model):
    """Returns a net of `converted_nets.dinov2_small` as a PyTorch module: float32 images, channels last, to class tokens."""
    torch, _ = import_torch()
    nn = torch.nn
    torch.set_num_threads(num_cores())

    def weights(name: str) -> list:
        return [torch.tensor(value) for value in model.get_layer(name).get_weights()]

    def linear(kernel, bias):
        """Kernels of attention have an axis of heads; biases have as many values as there are outputs."""
        kernel = kernel.reshape(-1, bias.numel())
        made = nn.Linear(*kernel.shape)
        made.load_state_dict({"weight": kernel.T, "bias": bias.flatten()})
        return made

    def norm(name: str):
        scale, bias = weights(name)
        made = nn.LayerNorm(len(scale), model.get_layer(name).epsilon)
        made.load_state_dict({"weight": scale, "bias": bias})
        return made

    class Block(nn.Module):  # type: ignore[name-defined]
        def __init__(self, name: str):
            super().__init__()
            attention = weights(f"{name}_attention")
            self.head_width = attention[0].shape[-1]
            self.query, self.key, self.value, self.output = map(linear, attention[::2], attention[1::2])
            self.norm1, self.norm2 = norm(f"{name}_norm1"), norm(f"{name}_norm2")
            self.scale1, self.scale2 = (nn.Parameter(*weights(f"{name}_layer_scale{i}")) for i in (1, 2))
            self.fc1, self.fc2 = (linear(*weights(f"{name}_mlp.fc{i}")) for i in (1, 2))

        def forward(self, x):
            y = self.norm1(x)
            heads = [
                project(y).unflatten(-1, (-1, self.head_width)).transpose(1, 2)
                for project in (self.query, self.key, self.value)
            ]
            y = nn.functional.scaled_dot_product_attention(*heads)
            x = x + self.scale1 * self.output(y.transpose(1, 2).flatten(2))
            return x + self.scale2 * self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))

    class Transformer(nn.Module):  # type: ignore[name-defined]
        def __init__(self):
            super().__init__()
            kernel, bias = weights("patches")
            self.side = len(kernel)
            self.patches = linear(kernel.reshape(-1, len(bias)), bias)
            self.register_buffer("positions", -torch.tensor(np.asarray(model.get_layer("positions").mean))[0])
            blocks = [layer.name.removesuffix("_attention") for layer in model.layers if "_attention" in layer.name]
            self.blocks = nn.Sequential(*map(Block, blocks))
            self.layernorm = norm("layernorm")

        def forward(self, images):
            x = images.unflatten(2, (-1, self.side)).unflatten(1, (-1, self.side)).transpose(2, 3)
            x = nn.functional.pad(self.patches(x.flatten(3).flatten(1, 2)), (0, 0, 1, 0)) + self.positions
            return self.layernorm(self.blocks(x))[:, 0]

    return Transformer().requires_grad_(False)


def adapted(trunk: mp.Trunk, size: int, seed: int = 0):
    """Returns a trunk's net with adapters on the value projections, about `size` parameters in all."""
    torch, _ = import_torch()
    net = transformer(trunk.model)
    torch.manual_seed(seed)
    values = [block.value for block in net.blocks]
    rank = max(1, round(size / sum(each.in_features + each.out_features for each in values)))
    return _peft().get_peft_model(net, _config(rank))


def num_parameters(net) -> int:
    """Returns the number of trainable parameters."""
    return sum(each.numel() for each in net.parameters() if each.requires_grad)


def train(trunk: mp.Trunk, data: mp.ImageData, recipe: mp.Recipe, size: int, seed: int) -> float:
    """Trains adapters of about `size` parameters and a last layer; returns the test accuracy in 0..1."""
    torch, _ = import_torch()
    net = adapted(trunk, size, seed)
    number = data.train.take(recipe.max_train_images or None)
    batches = functools.partial(pipeline.batches, preprocessing=trunk.preprocessing, batch_size=recipe.batch_size)
    of_training = functools.partial(batches, data.train, max_images=number)

    def features(images) -> tuple[np.ndarray, np.ndarray]:
        with torch.no_grad():
            found = [(net(torch.tensor(x)).numpy(), y) for x, y in images.as_numpy_iterator()]
        outputs, labels = zip(*found, strict=True)
        return np.concatenate(outputs), np.concatenate(labels)

    bound = mp.bind(trunk, mp.Task(data.name, data.labels, trunk.preprocessing), "last", seed=seed)
    decay = torch.tensor(learn_last_layer(bound, *features(of_training())))
    kernel, bias = (torch.nn.Parameter(torch.tensor(each)) for each in bound.head.get_weights())
    trained = [kernel, bias, *(each for each in net.parameters() if each.requires_grad)]
    optimizer = torch.optim.Adam(trained, recipe.learning_rate, eps=1e-7)
    steps = recipe.epochs * math.ceil(number / recipe.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for images, labels in of_training(shuffle_seed=seed, epochs=range(recipe.epochs)).as_numpy_iterator():
        optimizer.zero_grad()
        logits = net(torch.tensor(images)) @ kernel + bias
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(labels)) + (decay * kernel.square()).sum() / 2
        loss.backward()
        optimizer.step()
        schedule.step()
    found, labels = features(batches(data.test.first(recipe.max_test_images or None)))
    logits = found @ kernel.detach().numpy() + bias.detach().numpy()
    return float(np.mean(logits.argmax(axis=1) == labels))


def step_forms(trunk: mp.Trunk, size: int, images: np.ndarray, labels: np.ndarray, classes: int) -> dict[str, Callable]:
    """Returns a training step on one batch with adapters, and one of the parameters that a patch holds, by form."""
    torch, _ = import_torch()
    patched = transformer(trunk.model)
    for name, parameter in patched.named_parameters():
        parameter.requires_grad = "norm" in name or "scale" in name
    x, y = torch.tensor(images), torch.tensor(labels)

    def step(net) -> Callable[[], object]:
        head = torch.nn.Linear(net(x[:1]).shape[-1], classes)
        trained = [each for each in (*net.parameters(), *head.parameters()) if each.requires_grad]
        optimizer = torch.optim.Adam(trained, 1e-4)

        def run():
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(head(net(x)), y)
            loss.backward()
            optimizer.step()
            return loss.item()

        return run

    return {"peft": step(adapted(trunk, size)), PATCH: step(patched)}


def batch_forms(trunk: mp.Trunk, size: int, images: np.ndarray, classes: int) -> dict[str, Callable]:
    """Returns the forward pass of a batch in which each image has its own task, and that of the net of one task, by form."""
    torch, _ = import_torch()
    tasks = [f"task{i}" for i in range(len(images))]
    merged, mixed = transformer(trunk.model), adapted(trunk, size)
    (rank,) = {each.r for each in mixed.peft_config.values()}
    for name in tasks:
        mixed.add_adapter(name, _config(rank))
    mixed.eval()
    x = torch.tensor(images)
    heads = torch.randn(len(images), merged(x[:1]).shape[-1], classes)

    @torch.no_grad()
    def of_tasks():
        return torch.einsum("bi,bio->bo", mixed(x, adapter_names=tasks), heads)

    @torch.no_grad()
    def of_one():
        return merged(x) @ heads[0]

    return {"peft": of_tasks, MERGED: of_one}


def _peft():
    import_torch()  # First: see there.
    return importlib.import_module("peft")


def _config(rank: int):
    """Returns a configuration in which the product of the two factors is added without a scale, as Keras does."""
    return _peft().LoraConfig(r=rank, lora_alpha=rank, target_modules=["value"])
