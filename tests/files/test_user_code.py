"""Errors of a user's own code are reported as that, with their cause."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from dpaudit.files import user_code
from dpaudit.files.user_code import (
    call_factory,
    call_user_function,
    describe_user_error,
    import_object,
)
from dpaudit.vocabulary.errors import IntegrityError, InvalidArgument, UserCodeError

MODULE = """
class Net:
    def __init__(self, width=3): self.width = width
    class Inner: pass
def fails(): raise ZeroDivisionError("by zero")
value = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    name = f"user_{tmp_path.name}"
    Path(f"{name}.py").write_text(MODULE)
    Path(f"{name}_broken.py").write_text("1 / 0")
    Path(f"{name}_ends.py").write_text("raise SystemExit")
    Path(f"{name}_zero.py").write_text("import sys\nsys.exit(0)")
    Path(f"{name}_stops.py").write_text("raise KeyboardInterrupt")
    return name


def test_an_attribute_is_imported_from_the_working_directory(module: str) -> None:
    assert import_object("model", f"{module}:value", "a name") == 3
    assert import_object("model", f"{module}:Net.Inner", "a name").__name__ == "Inner"


@pytest.mark.parametrize("name", ["", "a", ":", "a:", ":b", "nowhere_at_all:x", "{}:gone", "..:x"])
def test_what_cannot_be_imported_is_refused(module: str, name: str) -> None:
    with pytest.raises(InvalidArgument, match="model must be a name"):
        import_object("model", name.format(module), "a name")


def test_an_error_while_a_module_is_imported_is_its_own(module: str) -> None:
    with pytest.raises(UserCodeError, match="ZeroDivisionError: division by zero"):
        import_object("model", f"{module}_broken:x", "a name")


@pytest.mark.parametrize(("suffix", "cause"), [("ends", "SystemExit"), ("zero", "SystemExit: 0")])
def test_a_module_that_ends_the_process_is_an_error(module: str, suffix: str, cause: str) -> None:
    with pytest.raises(UserCodeError, match=cause):
        import_object("model", f"{module}_{suffix}:x", "a name")


def test_an_interruption_is_no_error_of_the_user(module: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        import_object("model", f"{module}_stops:x", "a name")
    for function in (call_factory, call_user_function):
        arguments = ("model", "a:b") if function is call_factory else ("the model",)
        with pytest.raises(KeyboardInterrupt):
            function(*arguments, raising(KeyboardInterrupt()))


def no_arguments() -> str:
    return "none"


def two(shape: object, classes: object) -> tuple[object, object]:
    return shape, classes


def optional(shape: object = None, classes: object = None, more: int = 0) -> tuple[object, object]:
    return shape, classes


@pytest.mark.parametrize(
    ("factory", "expected"),
    [
        (no_arguments, "none"),
        (two, ((4,), 2)),
        (optional, ((4,), 2)),
        (functools.partial(two, classes=5), "refused"),
        (lambda a, b, c: None, "refused"),
        (lambda a: None, "refused"),
        (3, "refused"),
    ],
)
def test_a_factory_gets_what_its_signature_takes(factory: object, expected: object) -> None:
    if expected == "refused":
        with pytest.raises(InvalidArgument, match="model must be a function"):
            call_factory("model", "a:b", factory, (4,), 2)  # type: ignore[arg-type]
    else:
        assert call_factory("model", "a:b", factory, (4,), 2) == expected  # type: ignore[arg-type]


def raising(error: BaseException) -> Callable[[], object]:
    def fail() -> object:
        raise error

    return fail


@pytest.mark.parametrize(
    "error",
    [
        TypeError("no"),
        RuntimeError("shapes\n(3x4)"),
        KeyError("x"),
        SystemExit(0),
        SystemExit("bye"),
    ],
)
def test_an_error_of_a_factory_or_model_has_its_type_and_text(error: BaseException) -> None:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    with pytest.raises(UserCodeError) as caught:
        call_factory("model", "a:b", raising(error))
    assert text in str(caught.value)
    with pytest.raises(UserCodeError) as caught:
        call_user_function("the model", raising(error))
    assert text in str(caught.value)


def test_an_error_of_ours_stays_what_it_is() -> None:
    with pytest.raises(IntegrityError, match="own"):
        call_factory("model", "a:b", raising(IntegrityError("own")))


def test_an_error_is_the_users_if_it_came_through_an_imported_module(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_code, "_modules", set())  # other tests name modules of theirs
    fails = import_object("trainer", f"{module}:fails", "a name")
    with pytest.raises(ZeroDivisionError) as caught:
        fails()
    found = describe_user_error(caught.value)
    assert found is not None
    assert f"{module}.fails raised ZeroDivisionError: by zero" in str(found)
    with pytest.raises(ZeroDivisionError) as caught:
        raising(ZeroDivisionError("ours"))()
    assert describe_user_error(caught.value) is None
