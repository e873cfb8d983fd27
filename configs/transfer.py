"""Transfer: one task on a frozen trunk, learnt in several ways and compared.

Command: `python scripts/transfer.py --trunk=bundled --data=digits --workdir=runs/digits`
Data: scikit-learn's digits, 1,797 real scans; nothing is downloaded. Run with `--seeds=0,1,2` on two CPU cores: README.md.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the defaults of `scripts/transfer.py`; each field is also a flag of it."""
    config = ConfigDict()
    config.trunk = "bundled"  # Which trunk, scheme:rest.
    config.data = "digits"  # Which images, scheme:rest.
    config.task_name = ""  # Name of the task in patch files; empty: the data's own name.
    config.train = ("last", "scale_bias", "scale_bias+last", "depthwise+last", "scale_bias+depthwise+last", "full")
    config.norm_statistics = "auto"  # batch: own statistics, as in the paper; frozen: the trunk's; auto: by kind.
    config.image_size = 0  # Pixels; 0: the trunk's own.
    config.epochs = 15
    config.batch_size = 64
    config.optimizer = "adam"
    config.learning_rate = 0.0  # 0: the default for the optimizer and for what is trained.
    config.learning_rates = ()  # Several: all rows at each of them, compared; the one above is not looked at.
    config.schedule = "cosine"
    config.augmentation = "auto"  # auto: what the data recommend.
    config.max_train_images = 0  # 0: all.
    config.max_test_images = 0
    config.skip_bad_images = False
    config.remat = False  # Train with less memory and more time: most maps are computed again for their gradients.
    config.patch_dtype = "float32"
    config.seeds = (0,)
    return config
