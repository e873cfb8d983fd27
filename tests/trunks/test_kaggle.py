import sys

import pytest

from model_patch import ModelPatchError, open_trunk
from model_patch.trunks import hub, kaggle

HANDLE = "google/mobilenet-v2/tensorFlow2/035-96-feature-vector"


@pytest.mark.parametrize(
    ("text", "handle"),
    [
        (f"https://www.kaggle.com/models/{HANDLE}/2", f"{HANDLE}/2"),
        (f"https://www.kaggle.com/models/{HANDLE}/versions/2", f"{HANDLE}/2"),
        (f"https://kaggle.com/models/{HANDLE}/", HANDLE),
        (f"kaggle://{HANDLE}/2", f"{HANDLE}/2"),
        (HANDLE, HANDLE),
        (f"{HANDLE}/2", f"{HANDLE}/2"),
        ("https://tfhub.dev/google/imagenet/mobilenet_v2/classification/4", None),
        ("/a/b/c/d", None),
        ("./a/b/c/d", None),
        ("a/b", None),
    ],
)
def test_handles_and_urls_are_told_from_folders_and_other_urls(text, handle):
    assert kaggle.handle_of(text) == handle


def test_a_folder_of_that_path_is_no_handle(tmp_path, monkeypatch):
    (tmp_path / HANDLE).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert kaggle.handle_of(HANDLE) is None


def test_a_model_in_the_cache_opens_without_kagglehub_and_the_newest_whole_version_is_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    folder = tmp_path / "models" / HANDLE
    for version in (2, 10, 11):
        (folder / str(version)).mkdir(parents=True)
        (folder / str(version) / "saved_model.pb").touch()
    for version in (2, 10):
        (folder / f"{version}.complete").touch()
    assert hub.resolve(f"kaggle://{HANDLE}") == folder / "10"
    assert hub.resolve(f"{HANDLE}/2") == folder / "2"
    with pytest.raises(ModelPatchError, match=r"needs kagglehub: pip install 'model_patch\[kaggle\]', or fetch it on"):
        open_trunk(f"hub:{HANDLE}/11")
    (folder / "10" / "saved_model.pb").unlink()
    with pytest.raises(ModelPatchError, match=r"10\) is not a folder with a SavedModel: it has no saved_model.pb"):
        open_trunk(f"hub:https://www.kaggle.com/models/{HANDLE}/10")


def test_offline_the_error_says_what_to_fetch_and_where_to_put_it(tmp_path, monkeypatch):
    pytest.importorskip("kagglehub", reason="kagglehub is optional: make test-kerashub has it")
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # Nobody listens there.
    with pytest.raises(ModelPatchError) as raised:
        open_trunk(f"hub:{HANDLE}/2")
    message = str(raised.value)
    assert f"is not in the cache {tmp_path}/models (KAGGLEHUB_CACHE) and cannot be downloaded (" in message
    assert f"kagglehub.model_download('{HANDLE}/2'), and copy its files to {tmp_path}/models/{HANDLE}/2" in message
    assert (
        message.endswith("with an empty file 2.complete beside that folder, or give hub:FOLDER") and "\n" not in message
    )
