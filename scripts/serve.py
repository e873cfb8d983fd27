"""Serves a folder of patch files behind one address, with TensorFlow Serving's REST and gRPC interfaces, on Ray Serve.

    python scripts/serve.py --trunk=bundled --patches=runs/digits/patches
    python scripts/serve.py --trunk=bundled --patches=s3://bucket/patches --replicas=4 --max_tasks=5000

Each file is the task of its name: FOLDER/digits.safetensors is /v1/models/digits. Files that appear, change or go while it
serves are followed. Needs `pip install 'model_patch[serve]'`. See docs/serving.md.
"""

from model_patch.experiments import cli

_TRUNK = cli.flags.DEFINE_string("trunk", None, "The trunk that the patches were made on, scheme:rest.", required=True)
_PATCHES = cli.flags.DEFINE_string("patches", None, "Folder of the patch files, a path or a URL.", required=True)
_HOST = cli.flags.DEFINE_string("host", "127.0.0.1", "Address to listen on.")
_PORT = cli.flags.DEFINE_integer("port", 8501, "Port of HTTP.", 1, 65535)
_GRPC_PORT = cli.flags.DEFINE_integer("grpc_port", 0, "Port of gRPC; 0 for none.", 0, 65535)
_REPLICAS = cli.flags.DEFINE_integer("replicas", 1, "Processes that answer.", 1)
_ADDRESS = cli.flags.DEFINE_string("address", "", "Ray cluster to run on, such as auto; by default a new one.")
_KINDS = cli.flags.DEFINE_string("kinds", "", "Patch kinds that tasks may have; by default those of the files.")
_CLASSES = cli.flags.DEFINE_integer("classes", 0, "Classes of the widest head; 0 for that of the files.", 0)
_POOLING = cli.flags.DEFINE_string(
    "pooling", "", "Pooling of all tasks on a trunk that gives tokens; by default that of the first file."
)
_MAX_TASKS = cli.flags.DEFINE_integer("max_tasks", 1000, "Tasks in memory; the least recently used leave.", 1)
_MAX_BATCH_SIZE = cli.flags.DEFINE_integer("max_batch_size", 64, "Images that are computed at once.", 1)
_MAX_WAIT_MS = cli.flags.DEFINE_float("max_wait_ms", 5.0, "How long an image waits for others, in milliseconds.", 0.0)
_MAX_QUEUE = cli.flags.DEFINE_integer("max_queue", 1024, "Images that wait; further ones are refused (503).", 1)
_MAX_BODY_MB = cli.flags.DEFINE_float("max_body_mb", 16.0, "Size of a request, in MiB.", 0.001)
_MAX_PIXELS = cli.flags.DEFINE_integer("max_pixels", 2**24, "Pixels of an image.", 1)
_POLL_SECONDS = cli.flags.DEFINE_float("poll_seconds", 2.0, "From one look at the folder to the next.", 0.05)
_TOKEN_FILE = cli.flags.DEFINE_string(
    "token_file", "", "File with the token that PUT and DELETE must show; without it they are off."
)


def main():
    """Serves until it is ended."""
    from model_patch.files import read_secret
    from model_patch.serving.deployment import run_until_signalled

    run_until_signalled(
        host=_HOST.value,
        port=_PORT.value,
        grpc_port=_GRPC_PORT.value,
        replicas=_REPLICAS.value,
        address=_ADDRESS.value,
        trunk=_TRUNK.value,
        patches=_PATCHES.value,
        kinds=_KINDS.value,
        classes=_CLASSES.value,
        pooling=_POOLING.value,
        max_tasks=_MAX_TASKS.value,
        max_batch_size=_MAX_BATCH_SIZE.value,
        max_wait_ms=_MAX_WAIT_MS.value,
        max_queue=_MAX_QUEUE.value,
        max_body_mb=_MAX_BODY_MB.value,
        max_pixels=_MAX_PIXELS.value,
        poll_seconds=_POLL_SECONDS.value,
        token=read_secret(_TOKEN_FILE.value) if _TOKEN_FILE.value else "",
    )


if __name__ == "__main__":
    cli.run(main)
