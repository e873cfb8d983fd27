"""A bank: one model that serves thousands of tasks, mixed in one batch."""

from model_patch.bank.bank import Bank

__all__ = ["Bank"]
