"""Detection offline: SSDLite on MobileNetV2 0.35 at 96 px, from random weights, on scenes of Fashion-MNIST.

Command: `python scripts/detect.py train --workdir=runs/detect`
Data: 70,000 images in MNIST's format, for example from Debian's package dataset-fashion-mnist; without it `--data=scenes:mnist`
works on any computer. Two cores, 13 minutes per seed: mAP@50 0.78, see docs/detection.md.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the defaults of `scripts/detect.py train`; each field is a flag, and its comment the flag's help."""
    config = ConfigDict()
    config.trunk = "keras:MobileNetV2?alpha=0.35&weights=none"  # scheme:rest; by default a detector's own.
    config.data = "scenes:idx:/usr/share/datasets/fashion-mnist?size=96&train=8000&test=1000"  # or coco: or tfds:
    config.task_name = ""  # Name of the task in patch files; empty: the name of the data.
    config.train = "full"  # full: the trunk is trained and written, too; or patch kinds, and last, joined by +.
    config.norm_statistics = "auto"  # Batch-norm statistics: of the batch, or the trunk's (frozen); auto: by kind.
    config.image_size = 96  # Height and width in pixels.
    # The head: objects of a fifth of the side need a map of stride 8 beside those of stride 16 and 32.
    config.layers: tuple[str, ...] = ()  # Layers of the trunk to detect on; by default the last of each size.
    config.num_trunk_maps = 3  # Number of the trunk's maps to detect on, the coarsest resolutions.
    config.num_maps = 5  # Number of maps with the coarser ones of the head; fewer where one has a single cell.
    config.width = 0.35  # Width multiplier of the head's own maps.
    config.confidence = "softmax"  # softmax, with hard negative mining, or focal.
    config.min_scale = 0.2  # Side of the default boxes on the finest map, as a fraction of the image's.
    config.max_scale = 0.8  # Side of the default boxes on the coarsest map.
    config.aspect_ratios = (1.0, 2.0, 1 / 2)  # Width by height of the default boxes.
    config.reduce_lowest = False  # Use three default boxes only on the finest map.
    config.epochs = 20  # Passes over the training images.
    config.batch_size = 32  # Images per step, on all devices together.
    config.optimizer = "adam"  # Optimizer.
    config.learning_rate = 0.0  # Highest learning rate; 0: the default for the optimizer and for what is trained.
    config.schedule = "cosine"  # Learning-rate schedule.
    config.augmentation = "auto"  # none | flip, crop, colour joined by + | auto: what suits the data
    config.momentum = 0.97  # Of batch norm's moving statistics, which are re-estimated at the end.
    config.max_train_images = 0  # Train on the first N images; 0: all.
    config.max_test_images = 0  # Test on the first N images; 0: all.
    config.patch_dtype = "float32"  # Type of the values in patch files.
    config.seeds = (0, 1)  # Seeds, a detector each, for example 0,1.
    return config
