"""Multi-task: three real offline tasks trained at once on one trunk, compared with three nets of their own.

Command: `python scripts/multitask.py --workdir=runs/multitask`
The paper's rows: `nothing`, independent nets; `trunk`, a private patch and head per task; `trunk+patch`, private heads
only. Data come with packages; nothing is downloaded. Figures, of configs/parity.py: docs/multitask.md.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the defaults of `scripts/multitask.py`; each field is a flag, and its comment the flag's help."""
    config = ConfigDict()
    config.trunk = "bundled"  # bundled | keras:NAME[?weights=imagenet] | file:PATH | hub:URL | slim:PATH | kerashub:..
    config.data = (
        "digits",
        "mnist",
        "textures",
    )  # One per task: digits | mnist | faces | folder:PATH | csv:FILE | tfds:NAME ..
    config.task_names: tuple[str, ...] = ()  # Names of the tasks; by default those of the data.
    config.image_sizes: tuple[int, ...] = ()  # Pixels, one per task, 0 for the trunk's own; by default that for all.
    config.resize = "squash"  # How images become square: squash | crop (the central square) | pad
    config.alpha = "white"  # What transparent images are laid on: white | #RRGGBB, or drop.
    config.resolutions: tuple[int, ...] = ()  # Image sizes at which one data set is trained, each a task.
    config.share = ("nothing", "trunk", "trunk+patch")  # What the tasks share, a row each: nothing, trunk, trunk+patch.
    config.train = "scale_bias+last"  # What is trained of each task: patch kinds and last joined by +.
    config.head = "auto"  # A head per task (own), or one for all (shared); auto: shared among resolutions.
    config.head_from = ""  # Patch file whose head all tasks use: adds a resolution to a frozen trunk.
    config.train_trunk = True  # Train the trunk on all tasks, or leave it frozen.
    config.pooling = "auto"  # Of a trunk that gives tokens: class | mean | class+mean | auto: class if it has one.
    config.norm_statistics = "auto"  # Batch-norm statistics: of the batch, or the trunk's (frozen).
    config.sampler = "uniform"  # How a step's images are split among the tasks.
    config.sampler_power = 0.5  # proportional: exponent of the number of images; annealed: the exponent at the end.
    config.task_weights: tuple[float, ...] = ()  # Weight of each task's mean loss; by default 1 each.
    config.epochs = 15  # Passes over as many images as all tasks have together.
    config.batch_size = 32  # Images per task and step, on average.
    config.optimizer = "adam"  # Optimizer.
    config.learning_rate = 0.0  # Highest learning rate; 0: the default for the optimizer and for what is trained.
    config.schedule = "cosine"  # Learning-rate schedule.
    config.augmentation = "auto"  # none | shift, flip, crop, colour joined by + | auto: the data's, from 30 epochs on
    config.validation_fraction = 0.1  # Share of training images that choose the best epoch, if no split does.
    config.patience = 0  # Stop after this many epochs without a better one on the validation images; 0: never.
    config.max_train_images = 0  # Train on the first N images of each task; 0: all.
    config.max_test_images = 0  # Test on the first N images of each task; 0: all.
    config.skip_bad_images = False  # Leave out image files that cannot be read.
    config.verify_images = False  # Decode every image of a folder before training, unless an earlier run did.
    config.patch_dtype = "float32"  # Type of the values in patch files.
    config.seeds = (0,)  # Seeds, a row of results each, for example 0,1,2.
    return config
