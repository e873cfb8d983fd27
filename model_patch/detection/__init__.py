"""Detection as a task: SSD heads (Liu et al. 2016) on the feature maps of any trunk, so that patches apply to it, too."""
