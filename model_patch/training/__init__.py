"""Training: recipes and loops, on one device or several."""

STRATEGIES = ("default", "mirrored", "multi_worker", "tpu")
"""`default`: what Keras finds. `mirrored`: all devices of this computer. `multi_worker`: computers that TF_CONFIG names.
`tpu`: the one that TPU_NAME names, or the local one."""
