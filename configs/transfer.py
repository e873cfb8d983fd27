"""Transfer: one task on a frozen trunk, trained in several ways and compared.

Command: `python scripts/transfer.py --trunk=bundled --data=digits --workdir=runs/digits`
Data: scikit-learn's digits, 1,797 real scans; nothing is downloaded. Figures, of configs/small/transfer.py: README.md.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the defaults of `scripts/transfer.py`; each field is a flag, and its comment the flag's help."""
    config = ConfigDict()
    config.trunk = "bundled"  # bundled | keras:NAME[?weights=imagenet] | file:PATH | hub:URL | slim:PATH | kerashub:..
    # digits | mnist | faces | textures | folder:PATH | csv:FILE | tfrecord:PATTERN | hf:NAME | idx:PATH | tfds:NAME
    config.data = "digits"  # Images, scheme:rest; several: a,b | folder:PATTERN | @FILE
    config.task_name = ""  # Name of the task in patch files; empty: the name of the data.
    config.train = (  # Ways to train, a row each: patch kinds and last joined by +, or full.
        *("last", "scale_bias", "scale_bias+last", "depthwise+last", "scale_bias+depthwise+last", "full"),
    )
    config.pooling = "auto"  # Of a trunk that gives tokens: class | mean | class+mean | auto: class if it has one.
    config.norm_statistics = "auto"  # Batch-norm statistics: of the batch, or the trunk's (frozen); auto: by kind.
    config.image_size = 0  # Height and width in pixels; 0: the trunk's own.
    config.resize = "squash"  # How images become square: squash | crop (the central square) | pad
    config.alpha = "white"  # What transparent images are laid on: white | #RRGGBB, or drop.
    config.epochs = 15  # Passes over the training images.
    config.batch_size = 64  # Images per step, on all devices together.
    config.optimizer = "adam"  # Optimizer.
    config.learning_rate = 0.0  # Highest learning rate; 0: the default for the optimizer and for what is trained.
    config.learning_rates: tuple[float, ...] = ()  # Several rates to compare, instead of learning_rate.
    config.schedule = "cosine"  # Learning-rate schedule.
    config.augmentation = "auto"  # none | shift, flip, crop, colour joined by + | auto: the data's, from 30 epochs on
    config.balance = "none"  # How classes of unequal size are counted: weights in the loss, or how often images come.
    config.validation_fraction = 0.0  # Share of training images that choose the best epoch, if no split does.
    config.patience = 0  # Stop after this many epochs without a better one on the validation images; 0: never.
    config.folds = 0  # Cross-validate on the training images, too, in this many folds; 0: do not.
    config.max_train_images = 0  # Train on the first N images; 0: all.
    config.max_test_images = 0  # Test on the first N images; 0: all.
    config.skip_bad_images = False  # Leave out image files that cannot be read.
    config.verify_images = False  # Decode every image of a folder before training, unless an earlier run did.
    config.remat = False  # Train with less memory and more time: most feature maps are recomputed for their gradients.
    config.report_images = 24  # Most thumbnails in each list of the report; 0: none, and the lists are tables.
    config.patch_dtype = "float32"  # Type of the values in patch files.
    config.runner = "local"  # Train rows one after the other here, or as tasks of a Ray cluster: local | ray
    config.cores_per_row = 1  # Cores that a row takes of a Ray cluster.
    config.seeds = (0,)  # Seeds, a row of results each, for example 0,1,2.
    return config
