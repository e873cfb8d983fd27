"""model_patch: one trunk, many tasks, a small patch for each.

Reference implementation of Mudrakarta, Sandler, Zhmoginov and Howard, "K for the Price of 1: Parameter-efficient
Multi-task and Transfer Learning", ICLR 2019.
"""

from model_patch.bank.bank import Bank
from model_patch.bind import BoundTask, bind, bind_patch
from model_patch.detection.task import DetectionTask
from model_patch.errors import ModelPatchError, PatchError
from model_patch.fold import Folded, fold
from model_patch.join import JoinedTasks, join
from model_patch.patch import Patch
from model_patch.preprocessing import Preprocessing
from model_patch.tasks import Task
from model_patch.trunk import Trunk

__version__ = "0.1.0"

__all__ = [
    "Bank",
    "BoundTask",
    "DetectionTask",
    "Folded",
    "JoinedTasks",
    "ModelPatchError",
    "Patch",
    "PatchError",
    "Preprocessing",
    "Task",
    "Trunk",
    "bind",
    "bind_patch",
    "fold",
    "join",
]
