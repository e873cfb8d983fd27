import pytest

from model_patch import ModelPatchError
from model_patch.spec import parse


def test_a_spec_has_scheme_rest_options_and_fragment():
    spec = parse("keras:MobileNetV2?alpha=0.35&weights=/a/b.h5#out_relu")
    assert (spec.scheme, spec.rest, spec.fragment) == ("keras", "MobileNetV2", "out_relu")
    assert spec.options == {"alpha": "0.35", "weights": "/a/b.h5"}


def test_a_bare_name_is_a_scheme():
    spec = parse("digits")
    assert (spec.scheme, spec.rest, spec.options, spec.fragment) == ("digits", "", {}, "")


def test_a_url_keeps_its_colons():
    assert parse("hub:https://example.org/net/1").rest == "https://example.org/net/1"


@pytest.mark.parametrize("text", ["", ":x", "#y"])
def test_a_spec_that_names_nothing_is_refused(text):
    with pytest.raises(ModelPatchError, match=f"'{text}' names nothing"):
        parse(text)


def test_plus_and_percent_stay_as_written():
    assert parse("tfds:x?train=a[:10%]+b&data_dir=/c d+e").options == {"train": "a[:10%]+b", "data_dir": "/c d+e"}
    assert parse("folder:/a+b/100%25").rest == "/a+b/100%25"


@pytest.mark.parametrize("query", ["alpha", "=1", "a=1&", "a=1&b"])
def test_an_option_without_name_or_value_is_refused(query):
    with pytest.raises(ModelPatchError, match="'keras:X.*' has options that are not written"):
        parse(f"keras:X?{query}")


def test_an_option_given_twice_is_refused():
    with pytest.raises(ModelPatchError, match="more than once"):
        parse("keras:X?a=1&a=2")


def test_options_are_taken_over_defaults_and_unknown_ones_named():
    assert parse("idx:p?a=1").take(a="0", b="2") == {"a": "1", "b": "2"}
    with pytest.raises(ModelPatchError, match="unknown option 'c' in 'idx:p.c=1': expected one of a, b"):
        parse("idx:p?c=1").take(a="0", b="2")


def test_a_tilde_is_the_home_folder_where_a_path_begins(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert parse("folder:~/photos").rest == "/home/me/photos"
    spec = parse("scenes:idx:~/x?data_dir=~/a&weights=~&other=a~b")
    assert parse(spec.rest).rest == "/home/me/x"
    assert spec.options == {"data_dir": "/home/me/a", "weights": "/home/me", "other": "a~b"}
    for url in ("hub:https://example.org/~me/net", "folder:a/~/b"):
        assert parse(url).rest == url.partition(":")[2]
    assert parse("folder:~/photos").text == "folder:~/photos"
