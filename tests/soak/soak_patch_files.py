"""The long form of `tests/test_patch_fuzz.py`: 10,000 files."""

import os

from hypothesis import given, settings

from tests.test_patch_fuzz import check, damaged, forged, path  # noqa: F401 (a fixture)

FILES = int(os.environ.get("PATCH_FILES", "10000"))


@settings(max_examples=FILES * 7 // 10, deadline=None, database=None)
@given(damaged())
def test_every_damaged_file_loads_exactly_or_is_refused(path, contents):  # noqa: F811
    check(contents, path, is_signed=False)


@settings(max_examples=FILES * 3 // 10, deadline=None, database=None)
@given(forged())
def test_every_forged_file_loads_exactly_or_is_refused(path, contents):  # noqa: F811
    check(contents, path, is_signed=True)
