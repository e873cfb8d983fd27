"""What `scripts/benchmark.py` times: MobileNetV2 1.0 at 96 px, unless told otherwise.

Commands: `python scripts/benchmark.py --suite=serving --workdir=runs/serving`, and `--suite=joint`, `--suite=training`,
`--suite=scale` likewise. Figures, and the machine they were taken on, are in docs/serving.md, docs/multitask.md and
docs/speed.md. Weights are random: they do not matter to time.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the defaults of `scripts/benchmark.py`."""
    config = ConfigDict()
    config.trunk = "keras:MobileNetV2?weights=none"
    config.image_size = 96  # Pixels.
    config.kinds = "scale_bias"  # What tasks have of their own besides the last layer.
    config.classes = 10  # Of each task.
    config.rounds = 30  # At most; of each, in turns.
    # serving
    config.tasks = (1, 8, 64, 1024)
    config.mixes = ("identical", "uniform", "skewed", "distinct")
    config.batch_sizes = (1, 16, 64)
    config.forms = ("separate", "switch", "sub-batches", "bank", "folded")
    config.memory_of = config.forms  # Forms whose memory is measured, each in a process of its own.
    config.max_separate = (
        64  # Beyond so many tasks no separate models are made: each is compiled, and holds all weights.
    )
    config.seconds = 6.0  # For each number of tasks, mix and batch size; three rounds there always are.
    config.op_threads = 0  # Threads of each operation (TensorFlow's intra_op_parallelism_threads); 0: as many as cores.
    # joint
    config.joint_tasks = 4
    config.joint_images_per_task = 8
    config.joint_seconds = 30.0  # For each setting.
    # training
    config.training_trunks = ("keras:MobileNetV2?weights=none", "keras:InceptionV3?weights=none")
    config.training_sizes = (96, 224)
    config.training_batches = (8, 32)
    config.training_forms = (
        *("last", "last, cached", "features", "bias+last", "scale_bias+last", "scale_bias+last, batch"),
        *(
            "scale_bias+last, remat",
            "depthwise+last",
            "full",
            "full, remat",
            "keras full",
            "keras scale_bias+last, batch",
            "keras last",
        ),
        *("torch full", "torch scale_bias+last, batch", "torch scale_bias+last, frozen", "torch last"),
        *("torch full, channels first", "torch scale_bias+last, batch, channels first"),
    )
    config.training_memory_of = ("last", "scale_bias+last", "scale_bias+last, remat", "scale_bias+last, batch")
    config.training_memory_of += ("depthwise+last", "full", "full, remat", "keras full")
    config.training_seconds = 60.0  # For each net, image size and batch size; three rounds there always are.
    config.training_epochs_of = ("last, on images", "last, features kept", "scale_bias+last, images kept")
    config.training_epochs_of += ("scale_bias+last, from files",)
    config.training_epoch_images = 1024  # JPEG files; of the first net, image size and batch size of 32.
    config.training_epochs = 4
    # scale
    config.scale_parts = ("joint", "bank", "data")
    config.scale_tasks = (1, 2, 4, 8, 16, 32, 64)
    config.scale_joint_trunk = "bundled"
    config.scale_joint_train = "scale_bias+last"
    config.scale_images_per_task = 4
    config.scale_joint_seconds = 40.0
    config.scale_patches = (1, 16, 256, 4096)
    config.scale_bank_trunk = "keras:MobileNetV2?weights=none"
    config.scale_bank_size = 96
    config.scale_bank_seconds = 30.0
    config.scale_images = (1_000, 10_000, 100_000, 1_000_000)  # Multiples of 1,000.
    return config
