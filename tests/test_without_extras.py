"""What --core skips, and what it does not."""

from __future__ import annotations

import pytest
from without_extras import CORE, SkipWithoutExtras, is_core, missing_library

from dpaudit.vocabulary.errors import MissingExtra

pytest_plugins = ["pytester"]

ABSENT = "a_library_that_nobody_has"


def raised(code: str) -> BaseException:
    try:
        exec(code, {"MissingExtra": MissingExtra})
    except Exception as error:
        return error
    raise AssertionError(code)


@pytest.mark.parametrize(
    ("code", "library"),
    [
        (f"import {ABSENT}.part", ABSENT),
        ("raise MissingExtra('scikit-learn', 'train')", "scikit-learn"),
        (f"try:\n import {ABSENT}\nexcept ImportError as e: raise OSError('no') from e", ABSENT),
        ("import json.no_such_part", None),  # a broken import of what is installed
        ("from json import no_such_name", None),
        ("raise AssertionError('torch is not installed: pip install it')", None),
    ],
)
def test_only_an_import_of_what_is_not_installed_names_a_library(
    code: str, library: str | None
) -> None:
    assert missing_library(raised(code)) == library


def test_the_core_folders_exist() -> None:
    for folder in CORE:
        assert folder.is_dir()
        assert is_core(folder / "test_any.py")
    assert not is_core(CORE[0].parent / "trainer" / "test_any.py")


def test_a_missing_library_skips_and_every_other_failure_stays_one(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(
        test_module=f"import {ABSENT}\ndef test_never(): pass",
        test_broken="import json.no_such_part",
        test_mixed=f"""
import pytest

@pytest.fixture
def library():
    import {ABSENT}

def test_fixture(library): pass
def test_body(): import {ABSENT}
@pytest.mark.needs("{ABSENT}")
def test_named(): raise OSError
@pytest.mark.needs("json")
def test_runs(): pass
def test_fails(): assert False
""",
    )
    arguments = ("--continue-on-collection-errors", "-rs", "-p", "no:cacheprovider")
    done = pytester.runpytest_inprocess(*arguments, plugins=[SkipWithoutExtras()])
    done.assert_outcomes(passed=1, failed=1, errors=1, skipped=4)
    done.stdout.fnmatch_lines([f"SKIPPED*{ABSENT} is not installed"])
