"""Detection at the paper's scale: SSDLite on MobileNetV2 1.0 at 320 px, from ImageNet weights, on COCO 2017.

Command: `python scripts/detect.py train --config=configs/detect_coco.py --workdir=runs/coco`
Data: TensorFlow Datasets' coco/2017, 118,287 training images, 27 GB; or COCO as downloaded, with
`--data='coco:FOLDER?train=annotations/instances_train2017.json&train_images=train2017&test=annotations/instances_val2017.json&test_images=val2017'`.
The paper's detector is that of the Object Detection API (ssd_mobilenet_v2); Sandler et al. 2018, table 6, give SSDLite on
MobileNetV2 an mAP of 22.1 on test-dev. Not run here: it needs a GPU.
"""

from ml_collections import ConfigDict

from configs import detect_scenes


def get_config() -> ConfigDict:
    """Returns the configuration, with the fields of `configs/detect_scenes.py`."""
    config = detect_scenes.get_config()
    config.trunk = "keras:MobileNetV2?weights=imagenet"
    config.data = "tfds:coco/2017"
    config.image_size = 320
    # Maps of 20, 10, 5, 3, 2 and 1 cells: strides 16 to 512.
    config.num_trunk_maps = 2
    config.num_maps = 6
    config.width = 1.0
    config.max_scale = 0.95
    config.aspect_ratios = (1.0, 2.0, 1 / 2, 3.0, 1 / 3)
    config.reduce_lowest = True
    config.epochs = 60
    config.batch_size = 64
    config.optimizer = "adamw"
    config.learning_rate = 0.001
    config.augmentation = "crop+flip+colour"
    config.momentum = 0.99
    config.seeds = (0,)
    return config
