"""What `scripts/benchmark.py` times: MobileNetV2 1.0 at 96 px by default.

Commands: `python scripts/benchmark.py --suite=serving --workdir=runs/serving`, and `--suite=joint`, `--suite=training`,
`--suite=data`, `--suite=scale`, `--suite=lora`, `--suite=gpu`. Figures and the machine they were measured on are in
docs/serving.md, docs/multitask.md, docs/speed.md and docs/data.md.
Weights are random: they do not change the time.
"""

from ml_collections import ConfigDict

from model_patch.experiments.real_bench import specs


def get_config() -> ConfigDict:
    """Returns the defaults of `scripts/benchmark.py`; each field is a flag, and its comment the flag's help."""
    config = ConfigDict()
    config.trunk = "keras:MobileNetV2?weights=none"  # The trunk of serving and joint, scheme:rest.
    config.image_size = 96  # Its height and width in pixels.
    config.kinds = "scale_bias"  # Patch kinds of the tasks, which have a last layer of their own besides.
    config.classes = 10  # Number of classes of each task.
    config.rounds = 30  # Maximum number of rounds; in each, all forms take a turn.
    config.tasks = (1, 8, 64, 1024)  # serving: numbers of tasks.
    config.mixes = ("identical", "uniform", "skewed", "distinct")  # serving: how the tasks of a batch are drawn.
    config.batch_sizes = (1, 16, 64)  # serving: images per batch.
    config.forms = (  # serving: ways to serve; LiteRT, ONNX Runtime and PyTorch where installed.
        *("separate", "switch", "sub-batches", "litert set", "litert set, 1 thread"),
        *("bank", "folded", "litert", "litert, 1 thread", "onnx", "torch"),
    )
    config.memory_of = (  # serving: forms whose memory is measured, each in a process of its own.
        *("separate", "switch", "sub-batches", "bank", "folded"),
    )
    config.max_separate = 64  # serving: maximum number of separate models; each is compiled and holds all weights.
    config.seconds = 6.0  # serving: for each number of tasks, mix and batch size; at least three rounds are run.
    config.op_threads = 0  # serving: threads of an operation (intra_op_parallelism_threads); 0: the number of cores.
    config.joint_tasks = 4  # joint: number of tasks.
    config.joint_images_per_task = 8  # joint: images of each task in a step.
    config.joint_seconds = 30.0  # joint: for each setting.
    config.training_trunks = ("keras:MobileNetV2?weights=none", "keras:InceptionV3?weights=none")  # training: trunks.
    config.training_sizes = (96, 224)  # training: image sizes in pixels.
    config.training_batches = (8, 32)  # training: images per step.
    config.training_forms = (  # training: ways to train; names that hold a comma in double quotes.
        *(
            "last",
            "last, cached",
            "features",
            "features, litert",
            "features, onnx",
            "features, torch",
            "bias+last",
            "scale_bias+last",
            "scale_bias+last, batch",
        ),
        *("scale_bias+last, remat", "depthwise+last", "full", "full, remat"),
        *("keras full", "keras scale_bias+last, batch", "keras last"),
        *("torch full", "torch scale_bias+last, batch", "torch scale_bias+last, frozen", "torch last"),
        *("torch full, channels first", "torch scale_bias+last, batch, channels first"),
    )
    config.training_memory_of = (  # training: forms whose peak memory is measured, each in a process of its own.
        *("last", "scale_bias+last", "scale_bias+last, remat", "scale_bias+last, batch"),
        *("depthwise+last", "full", "full, remat", "keras full"),
    )
    config.training_seconds = 60.0  # training: for each trunk, size and batch size; at least three rounds are run.
    config.training_epochs_of = (  # training: forms of which whole epochs are timed.
        *("last, on images", "last, features kept", "scale_bias+last, images kept", "scale_bias+last, from files"),
    )
    config.training_epoch_images = 1024  # training: JPEG files per epoch; the first trunk and size, batches of 32.
    config.training_epochs = 4  # training: number of epochs.
    config.data_sides = (2000, 500, 96)  # data: widths of the photographs in pixels.
    config.data_size = 224  # data: the size that they are brought to.
    config.data_images = 8  # data: photographs of each width.
    config.data_seconds = 20.0  # data: for each width, and for the training step.
    config.scale_parts = ("joint", "bank", "data")  # scale: parts to run.
    config.scale_tasks = (1, 2, 4, 8, 16, 32, 64)  # scale: numbers of tasks in joint training.
    config.scale_joint_trunk = "bundled"  # scale: trunk of joint training, scheme:rest.
    config.scale_joint_train = "scale_bias+last"  # scale: what joint training trains.
    config.scale_images_per_task = 4  # scale: images of each task in a step of joint training.
    config.scale_joint_seconds = 40.0  # scale: for joint training.
    config.scale_patches = (1, 16, 256, 4096)  # scale: numbers of patches in the bank.
    config.scale_bank_trunk = "keras:MobileNetV2?weights=none"  # scale: trunk of the bank, scheme:rest.
    config.scale_bank_size = 96  # scale: image size of the bank in pixels.
    config.scale_bank_seconds = 30.0  # scale: for the bank.
    config.scale_images = (1_000, 10_000, 100_000, 1_000_000)  # scale: numbers of images on disk, multiples of 1,000.
    bench = specs()  # What `python scripts/real_bench.py` fetches.
    config.lora_trunks = (  # lora: trunks; convnext: a small one that the suite trains first.
        *(bench["trunk"][name] for name in ("mobilenet_v2", "efficientnet_lite0", "dinov2_small")),
        "convnext",
    )
    config.lora_size = 70  # lora: image size in pixels of all but the ConvNeXt; that of DINOv2's file.
    config.lora_data = bench["data"]["sprites"]  # lora: data of the task.
    config.lora_train_images = 256  # lora: training images.
    config.lora_epochs = 5  # lora: passes over them.
    config.lora_seeds = (0, 1, 2)  # lora: seeds.
    config.lora_rates = (0.0005, 0.002)  # lora: learning rates tried for the adapters.
    config.lora_pretrain_data = bench["data"]["fashion"]  # lora: data on which the ConvNeXt is trained.
    config.lora_pretrain_images = 2000  # lora: training images of them.
    config.lora_pretrain_epochs = 3  # lora: passes over them.
    config.lora_seconds = 20.0  # lora: for the time of a step, for each trunk; at least three rounds are run.
    config.gpu_size = 224  # gpu: image size in pixels.
    config.gpu_batches = (32, 128, 512)  # gpu: images per step and per prediction.
    config.gpu_forms = (  # gpu: ways to train and to predict; those of PyTorch where installed.
        *("scale_bias+last", "scale_bias+last, batch", "full", "joint"),
        *("torch scale_bias+last, frozen", "torch scale_bias+last, frozen, compiled"),
        *("torch scale_bias+last, batch", "torch scale_bias+last, batch, compiled"),
        *("torch full", "torch full, compiled"),
        *("bank", "bank, one task", "folded", "torch", "torch, compiled"),
    )
    config.gpu_tasks = 8  # gpu: number of tasks in joint training.
    config.gpu_seconds = (
        20.0  # gpu: for the steps and for the predictions of each batch size; at least three rounds are run.
    )
    return config
