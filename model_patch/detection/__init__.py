"""Detection as a task: SSD heads (Liu et al. 2016) on the feature maps of any trunk, so that patches apply to it, too."""

CONFIDENCES = {
    "softmax": "classes and background by softmax, with hard negative mining (Liu et al. 2016, section 2.2)",
    "focal": "classes by sigmoids, with the focal loss (Lin et al. 2017, alpha 0.25, gamma 2)",
}
"""How the classes are predicted and trained."""
