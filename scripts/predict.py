"""Prints what each task sees in each image: top labels, for any number of patches on one trunk.

    python scripts/predict.py --trunk=bundled --images=a.png,b.jpg \
        --patches=runs/digits/patches/scale_bias+last-seed0.safetensors,runs/faces/patches/scale_bias+last-seed0.safetensors
"""

from model_patch.experiments import cli

_TRUNK = cli.flags.DEFINE_string("trunk", None, "The trunk that the patches were made on, scheme:rest.", required=True)
_PATCHES = cli.flags.DEFINE_list("patches", None, "Patch files.", required=True)
_IMAGES = cli.flags.DEFINE_list(
    "images", None, "Image files: JPEG, PNG, BMP, GIF or WebP; patterns such as photos/*.jpg too.", required=True
)
_TASKS = cli.flags.DEFINE_list("tasks", None, "Names of the tasks to ask; by default all.")
_PICK_RESOLUTION = cli.flags.DEFINE_bool(
    "pick_resolution", False, "Ask of the patches only the one whose image size is nearest to the image's."
)
_TOP = cli.flags.DEFINE_integer("top", 3, "Labels per task.", lower_bound=1)


def main():
    """Opens trunk and patches, and prints a line per image and task."""
    from model_patch.predict import choose_tasks, open_tasks, predict

    tasks = choose_tasks(open_tasks(_TRUNK.value, _PATCHES.value), _TASKS.value)
    for answer in predict(tasks, _IMAGES.value, _TOP.value, _PICK_RESOLUTION.value):
        labels = "  ".join(f"{label} {probability:.3f}" for label, probability in answer.top)
        print(f"{answer.file}  {answer.task}: {labels}")


if __name__ == "__main__":
    cli.run(main)
