"""A real S3 server on 127.0.0.1 for tests, in a process of its own: moto's, behind a switch that makes it fail.

python -m tests.s3_server       prints its port
GET /switch?every=3             answers every third request with 503, as stores do under load; 0 for none
GET /switch?uploads=2           refuses all uploads after two more, as for a process that is cut off; -1 for none
"""

import itertools
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from urllib.parse import parse_qs

ROOT = Path(__file__).resolve().parents[1]


class Switched:
    """A WSGI application that may fail before it calls another."""

    def __init__(self, application):
        self.application, self.every, self.uploads, self.number = application, 0, -1, itertools.count(1)

    def __call__(self, environ, start_response):
        if environ["PATH_INFO"] == "/switch":
            given = parse_qs(environ["QUERY_STRING"])
            self.every, self.uploads = int(given.get("every", ["0"])[0]), int(given.get("uploads", ["-1"])[0])
            start_response("200 OK", [])
            return [b""]
        is_upload = environ["REQUEST_METHOD"] in ("PUT", "POST")
        failure = "503 Slow Down" if self.every and next(self.number) % self.every == 0 else None
        if is_upload and self.uploads == 0:
            failure = "403 Forbidden"
        elif is_upload and self.uploads > 0:
            self.uploads -= 1
        if failure is None:
            return self.application(environ, start_response)
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start_response(failure, [])
        return [b""]


class Server:
    """The running server; `environment` are the variables by which programs find it."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.s3_server"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.url = f"http://127.0.0.1:{int(self.process.stdout.readline())}"
        self.environment = {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def switch(self, every: int = 0, uploads: int = -1):
        urllib.request.urlopen(f"{self.url}/switch?every={every}&uploads={uploads}").read()

    def make_bucket(self, name: str):
        import s3fs

        s3fs.S3FileSystem(client_kwargs={"endpoint_url": self.url}, key="test", secret="test").mkdir(name)

    def stop(self):
        self.process.kill()
        self.process.wait()


def main():
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    server = make_server("127.0.0.1", 0, Switched(DomainDispatcherApplication(create_backend_app)), threaded=True)
    print(server.port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    os.environ.setdefault("MOTO_ACCOUNT_ID", "123456789012")
    main()
