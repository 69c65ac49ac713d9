"""The checks of prose and docstrings find what they are for."""

from __future__ import annotations

import ast

import check_docstrings
import check_prose
import pytest


def found(text: str, path: str = "docs/page.md") -> list[str]:
    passage = check_prose.Passage(path, 1, text, whole=True)
    return [
        one.text
        for check in (check_prose.phrases, check_prose.long_sentences)
        for one in check(passage)
    ]


@pytest.mark.parametrize(
    "text",
    [
        "A release is booked before its noise is used.",
        "The run HOLDS.",
        "It prints a loss a record.",
        "Options stand above the file.",
        "Whoever reads it, and lest they err.",
        "The bound would be seen 95 times in 100.",
        "Say how the number was come by.",
    ],
)
def test_replaced_phrases_are_found(text: str) -> None:
    assert found(text)


@pytest.mark.parametrize(
    "text", ["Record the release in the ledger.", "The lower bound holds.", "Open the book."]
)
def test_plain_prose_passes(text: str) -> None:
    assert not found(text)


def test_long_sentence_is_found_and_two_short_ones_are_not() -> None:
    half = " ".join(["word"] * 25)
    assert found(f"{half} {half}.")
    assert not found(f"{half}. {half}.")


def test_old_names_are_allowed_where_they_are_mapped() -> None:
    assert not found("HOLDS", "dpaudit/vocabulary/renamed.py")


def missing(code: str, *, public: bool = True) -> tuple[str, ...]:
    trees = {"dpaudit.a": ast.parse(f"__all__ = {['f'] if public else []}\n{code}")}
    (one,) = check_docstrings.functions(trees)
    assert one.public is public
    return one.missing


@pytest.mark.parametrize(
    ("body", "sections"),
    [
        ('"""Do it."""', ("Args", "Returns")),
        ('"""Do it.\n\n    Args:\n        x: A number.\n    """', ("Returns",)),
        ('"""Do it."""\n    raise ValueError', ("Args", "Returns", "Raises")),
        ("return x", ("summary",)),
    ],
)
def test_missing_sections_are_named(body: str, sections: tuple[str, ...]) -> None:
    assert missing(f"def f(x: int) -> int:\n    {body}") == sections


def test_one_line_is_enough_where_the_signature_says_all() -> None:
    assert missing('def f(x: int) -> int:\n    """Do it."""', public=False) == ()
    assert missing('def f(x: int, y: int) -> int:\n    """Do it."""', public=False) != ()


def test_public_names_without_example_are_found() -> None:
    trees = {"dpaudit.a": ast.parse('__all__ = ["f"]\ndef f():\n    """Do it."""')}
    assert check_docstrings.lacking_examples(trees) == ["dpaudit.a.f"]
