"""Multi-task: three real offline tasks trained at once on one trunk, compared with three nets of their own.

Command: `python scripts/multitask.py --workdir=runs/multitask`
The paper's rows: `nothing`, independent nets; `trunk`, a private patch and head per task; `trunk+patch`, private heads
only. Data come with packages; nothing is downloaded. Figures, of configs/parity.py:
docs/multitask.md.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the defaults of `scripts/multitask.py`; each field is also a flag of it."""
    config = ConfigDict()
    config.trunk = "bundled"  # Which trunk, scheme:rest.
    config.data = ("digits", "mnist", "textures")  # Which images, scheme:rest, one per task.
    config.task_names = ()  # Names of the tasks; empty: the data's own.
    config.image_sizes = ()  # Pixels, one per task, 0 for the trunk's own; empty: the trunk's own for all.
    config.resolutions = ()  # Instead of several data: image sizes at which one is learnt, each a task.
    config.share = ("nothing", "trunk", "trunk+patch")  # What the tasks share, a row each.
    config.train = "scale_bias+last"  # What of a task is learnt; full where nothing is shared.
    config.head = "auto"  # own: a head per task; shared: one for all; auto: shared among resolutions.
    config.head_from = ""  # Patch file whose head all tasks take and keep: adds a resolution to a frozen trunk.
    config.train_trunk = True  # Whether the trunk is learnt from all tasks, or stays as it is.
    config.norm_statistics = "auto"  # batch: tasks' own statistics; frozen: the trunk's; auto: batch if it is trained.
    config.sampler = "uniform"  # Which share of a step's images each task has: uniform, proportional, annealed.
    config.sampler_power = 0.5  # proportional: exponent of the data's sizes; annealed: the exponent at the end.
    config.task_weights = ()  # What a task's mean loss counts in the sum; empty: 1 each.
    config.epochs = 15  # One epoch: as many images as all tasks have together.
    config.batch_size = 32  # Images per task and step, on average.
    config.optimizer = "adam"
    config.learning_rate = 0.0  # 0: the default for the optimizer and for what is trained.
    config.schedule = "cosine"
    config.augmentation = "auto"  # auto: what each task's data recommend.
    config.validation_fraction = 0.1  # Of the training images, held out to choose the best epoch; 0: the last one.
    config.max_train_images = 0  # Of each task; 0: all.
    config.max_test_images = 0
    config.skip_bad_images = False
    config.patch_dtype = "float32"
    config.seeds = (0,)
    return config
