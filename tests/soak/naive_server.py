"""A server of many tasks without this package's server, to compare with: a bank behind `serve.batch`, images decoded one by one
in the event loop.

    python tests/soak/naive_server.py TRUNK FOLDER PORT
"""

import base64
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("RAY_worker_niceness", "0")  # As for the server that it is compared with.

import numpy as np
import ray
from ray import serve
from starlette.responses import JSONResponse

MAX_BATCH = 64


@serve.deployment(max_ongoing_requests=1024)
class Naive:
    def __init__(self, trunk: str, folder: str):
        import dataclasses

        import model_patch as mp

        opened = mp.open_trunk(trunk)
        self.prepare = opened.preprocessing
        self.tasks = {}
        files = sorted(Path(folder).glob("*.safetensors"))
        self.bank = mp.Bank(opened, capacity=len(files), classes=10)
        for file in files:
            patch = mp.Patch.load(file)
            self.tasks[file.stem] = dataclasses.replace(patch.task, name=file.stem)
            self.bank.add(dataclasses.replace(patch, task=self.tasks[file.stem]))
        self.bank.warm([2**i for i in range(7)])

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=0.005)
    async def answer(self, items):
        names, images = zip(*items, strict=True)
        size = 2 ** (len(names) - 1).bit_length()
        fill = size - len(names)
        pixels = np.stack([*images, *[images[0]] * fill])
        return list(np.asarray(self.bank(pixels, [*names, *[names[0]] * fill])))[: len(names)]

    async def __call__(self, request):
        import tensorflow as tf

        from model_patch.data.decoding import decode

        name = request.url.path.removeprefix("/v1/models/").removesuffix(":predict")
        image = decode(tf.constant(base64.b64decode((await request.json())["instances"][0]["b64"])))
        logits = await self.answer((name, self.prepare(image).numpy()))
        exponentials = np.exp(logits - logits.max())
        label = self.tasks[name].labels[int(logits.argmax())]
        probabilities = (exponentials / exponentials.sum()).tolist()
        row = {"logits": logits.tolist(), "probabilities": probabilities, "label": label}
        return JSONResponse({"predictions": [row]})


if __name__ == "__main__":
    trunk, folder, port = sys.argv[1:]
    ray.init("local", include_dashboard=False, num_cpus=2, object_store_memory=100 * 2**20)
    serve.start(http_options={"port": int(port)})
    serve.run(Naive.bind(trunk, folder))
    print("serving on", port, flush=True)
    while True:
        time.sleep(3600)
