"""Names and patterns of files."""

import fnmatch
import json
from pathlib import Path

import numpy as np
import pytest

from model_patch import ModelPatchError
from model_patch.export import export
from model_patch.files import matching, read_json
from model_patch.trunks import open_trunk

CHARACTERS = list("ab1[]*?!-{}()#%,;'$ é\\^.~")


def random_name(random: np.random.RandomState) -> str:
    return "x" + "".join(random.choice(CHARACTERS, random.randint(1, 7))) + random.choice([".png", "", "[1].jpg"])


def test_every_name_that_exists_is_that_file_whatever_else_is_beside_it(tmp_path):
    """Over 300 files whose names are patterns, for themselves or for others of them."""
    random, files = np.random.RandomState(0), set()
    for _ in range(60):
        folder = tmp_path / random_name(random) / random_name(random)
        folder.mkdir(parents=True, exist_ok=True)
        for _ in range(6):
            if not (path := folder / random_name(random)).exists():
                path.write_text("")
                files.add(str(path))
    assert len(files) > 300 and sum(len(fnmatch.filter(files, file)) != 1 for file in files) > 50
    for file in files:
        assert matching([file]) == [file]
    for folder in {Path(file).parent for file in files}:
        expected = sorted(file for file in files if Path(file).parent == folder)
        assert matching([f"{folder}/*"]) == expected
        assert matching([str(folder.parent / "*" / each.name) for each in map(Path, expected)])[0] in files
    assert set(matching([f"{tmp_path}/**/*"])) == files


def test_what_does_not_exist_is_a_pattern(tmp_path, monkeypatch):
    (tmp_path / "a[1]" / "deep").mkdir(parents=True)
    for name in ("1.png", "2.png", "10.png", "deep/3.png", "[12].txt"):
        (tmp_path / "a[1]" / name).write_text("")
    monkeypatch.chdir(tmp_path)
    assert matching(["a[1]/[12].png"]) == ["a[1]/1.png", "a[1]/2.png"]
    assert matching(["a[1]/[12].*"]) == ["a[1]/1.png", "a[1]/2.png"]
    assert matching(["a[1]/?.png", "./a[1]/10.png", "a*/1.png"]) == ["a[1]/1.png", "a[1]/2.png", "./a[1]/10.png"]
    assert matching(["**/*3.png"]) == ["a[1]/deep/3.png"]
    assert matching(["a[1]/*"]) == [f"a[1]/{name}" for name in ("1.png", "10.png", "2.png", "[12].txt")]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no file is given"),
        (["nowhere[1].png"], r"the image nowhere\[1\].png does not exist"),
        (["a[2]/*.png"], r"the image a\[2\]/\*.png does not exist"),
        (["a[1]"], r"a\[1\] is a folder: expected files, such as a\[1\]/\*.jpg"),
        (["a[1]/1.png/*"], "does not exist"),
    ],
)
def test_names_of_nothing_are_refused(tmp_path, monkeypatch, names, message):
    (tmp_path / "a[1]").mkdir()
    (tmp_path / "a[1]" / "1.png").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelPatchError, match=message):
        matching(names)


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.png").write_text("")
    assert matching(["~/a.png"]) == matching(["~/*.png"]) == [f"{tmp_path}/a.png"]


def test_json_is_read_in_any_unicode_and_refused_if_a_key_is_there_twice(tmp_path):
    path = tmp_path / "a.json"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        path.write_bytes(json.dumps({"é": [1]}, ensure_ascii=False).encode(encoding))
        assert read_json(path) == {"é": [1]}
    path.write_text('{"a": {"b": 1, "c": 2, "b": 3}}')
    with pytest.raises(
        ModelPatchError, match=r"a\.json is not a readable JSON file \(the key 'b' twice in one object\)"
    ):
        read_json(path)


def test_paths_that_tensorflow_would_take_for_patterns_are_refused(tmp_path):
    folder = tmp_path / "a[1]"
    folder.mkdir()
    for name in ("saved_model.pb", "model.ckpt.index"):
        (folder / name).write_text("")
    for use in (
        lambda: export("saved_model", [None], folder / "new"),
        lambda: export("bank", [None], tmp_path / "new*"),
        lambda: open_trunk(f"hub:{folder}"),
        lambda: open_trunk(f"slim:{folder}/model.ckpt"),
    ):
        with pytest.raises(
            ModelPatchError, match=r"the path .* has '[\[*]' in it, which TensorFlow takes for a pattern"
        ):
            use()
