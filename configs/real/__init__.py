"""The paper's experiments on real nets and pictures, sized for two CPU cores: docs/real_bench.md, times in docs/results.md.

`make real` fetches the packages to `model_patch.experiments.real_bench.FOLDER` and runs all.
"""
