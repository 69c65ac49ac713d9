"""What packages offer: listed, typed, imported on use, and never hidden behind a module."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from places import ROOT

import dpaudit
from dpaudit.accountants import Gaussian
from dpaudit.vocabulary.errors import InvalidArgument

LAZY = (
    "dpaudit",
    "dpaudit.trainer",
    "dpaudit.trainer.integrations",
    "dpaudit.attacks.membership",
)
OLD_RUN = ROOT / "tests" / "golden" / "version_0_1"
PARTS_OF_PROGRAMS = ("__main__", "sandbox_child")


MODULES = [
    found
    for found in pkgutil.walk_packages(dpaudit.__path__, "dpaudit.", onerror=lambda _: None)
    if not found.name.endswith(PARTS_OF_PROGRAMS)
]
"""Every module that can be imported with what is installed."""
PACKAGES = ["dpaudit", *(found.name for found in MODULES if found.ispkg)]


def imported(name: str) -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"needs an extra: {error}")
    except Exception as error:  # MissingExtra names the extra
        if type(error).__name__ == "MissingExtra":
            pytest.skip(str(error))
        raise


def typed_imports(package: types.ModuleType) -> set[str]:
    """Return the names that a package imports for type checkers alone."""
    tree = ast.parse(Path(str(package.__file__)).read_text())
    guarded = (
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    return {
        alias.asname or alias.name
        for node in guarded
        for inner in node.body
        if isinstance(inner, ast.ImportFrom)
        for alias in inner.names
    }


@pytest.mark.parametrize("name", LAZY)
def test_lazy_names_are_typed_listed_and_found(name: str) -> None:
    package = imported(name)
    assert typed_imports(package) == set(package._SOURCES)
    assert set(package._SOURCES) <= set(package.__all__) <= set(dir(package))
    assert package.__all__ == sorted(package.__all__)
    assert not {"TYPE_CHECKING", "lazy_exports", "find_spec", "MissingExtra"} & set(dir(package))
    scope: dict[str, object] = {}
    exec(f"from {name} import *", scope)
    assert set(package.__all__) <= set(scope)
    for one, module in package._SOURCES.items():
        assert getattr(package, one) is getattr(importlib.import_module(f"{name}.{module}"), one)


@pytest.mark.parametrize("name", LAZY)
def test_unknown_name_is_an_attribute_error_with_the_list(name: str) -> None:
    package = imported(name)
    assert not hasattr(package, "no_such_name")
    with pytest.raises(AttributeError, match=rf"{name} has no 'no_such_name'; it has"):
        _ = package.no_such_name


@pytest.mark.parametrize("name", [found.name for found in MODULES])
def test_import_of_a_module_by_its_full_name_gives_the_module(name: str) -> None:
    imported(name)
    scope: dict[str, object] = {}
    exec(f"import {name} as found", scope)
    assert scope["found"] is sys.modules[name]


@pytest.mark.parametrize("name", PACKAGES)
def test_no_public_name_equals_a_module_of_its_package(name: str) -> None:
    package = imported(name)
    modules = {found.name for found in pkgutil.iter_modules(package.__path__)}
    offered = set(getattr(package, "__all__", ())) | {
        one
        for one, value in vars(package).items()
        if not one.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert not modules & offered


@pytest.mark.parametrize("name", PACKAGES)
def test_package_with_public_names_lists_no_others(name: str) -> None:
    package = imported(name)
    offered = getattr(package, "__all__", dir(package))
    others = {one for one in dir(package) if not one.startswith("__")}.difference(offered)
    assert all(isinstance(getattr(package, one), types.ModuleType) for one in others), others


def test_import_of_dpaudit_loads_nothing_heavy() -> None:
    code = (
        "import sys, dpaudit; dir(dpaudit); print({'numpy', 'scipy', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.slow
@pytest.mark.needs("mypy", "torch")
def test_type_checkers_see_real_signatures(tmp_path: Path) -> None:
    (tmp_path / "use.py").write_text(
        "import dpaudit\nimport dpaudit.trainer\nfrom dpaudit.accountants import Gaussian\n"
        "reveal_type(dpaudit.epsilon(Gaussian(1.0), delta=1e-5))\n"
        "reveal_type(dpaudit.trainer.Poisson)\n"
        "dpaudit.epsilon(Gaussian(1.0), detla=1e-5)\n"
        "dpaudit.no_such_name\n"
        "reveal_type(dpaudit.make_private)\n"
    )
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--config-file=",
        "--ignore-missing-imports",
    ]
    cache = ("--cache-dir", str(ROOT / ".mypy_cache" / "public_api"))
    done = subprocess.run(
        [*command, *cache, "use.py"],
        cwd=tmp_path,
        env={"MYPYPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("use.py")]
    told = "\n".join(lines)
    assert 'use.py:4: note: Revealed type is "dpaudit.vocabulary.privacy_terms.Bound"' in told
    assert "dpaudit.trainer.batches.samplers.Poisson" in lines[1]
    assert 'Unexpected keyword argument "detla"' in told
    assert 'Module has no attribute "no_such_name"' in told
    assert "Any" not in next(line for line in lines if line.startswith("use.py:8")).split("def")[0]


# The functions of ``import dpaudit``.


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a small finished run; the working directory has a policy."""
    shutil.copytree(OLD_RUN, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    return Path("run")


def test_epsilon_delta_and_calibration_agree() -> None:
    found = dpaudit.calibrate(Gaussian, target_epsilon=1.0, delta=1e-5)
    spent = dpaudit.epsilon(Gaussian(found.value), delta=1e-5)
    assert spent == found.epsilon
    assert dpaudit.delta(Gaussian(found.value), epsilon=spent.upper).lower <= 1e-5
    assert dpaudit.epsilon(Gaussian(1.0), delta=1e-5, accountant="rdp").upper > 4.377


@pytest.mark.filterwarnings("ignore::dpaudit.vocabulary.renamed.OldNameWarning")
def test_a_run_is_opened_and_evaluated(run: Path) -> None:
    assert dpaudit.open_run(str(run)).read_finished().seal is not None
    verdict = dpaudit.evaluate_policy(run)
    assert (verdict.exit_code, verdict.claim is not None) == (0, True)
    assert dpaudit.evaluate_policy(dpaudit.open_run(run)).rules == verdict.rules
    with pytest.raises(InvalidArgument, match="no/such/run"):
        dpaudit.open_run("no/such/run")


@pytest.mark.needs("jinja2", "matplotlib")
@pytest.mark.filterwarnings("ignore::dpaudit.vocabulary.renamed.OldNameWarning")
def test_a_report_is_written_where_asked(run: Path) -> None:
    assert dpaudit.write_report(run) == run / "report.html"
    assert dpaudit.write_report(run, output="page.html").read_text().startswith("<!doctype html>")


@pytest.mark.needs("torch", "sklearn")
@pytest.mark.filterwarnings("ignore::dpaudit.vocabulary.renamed.OldNameWarning")
def test_a_run_is_audited_and_attacked(run: Path) -> None:
    report = dpaudit.audit_run(run, confidence=0.9)
    assert (run / "audit.json").exists()
    assert report.membership[0].attack == "loss threshold"
    attacked = dpaudit.attack_run(run, seed=0, attacks=["loss"])
    assert [result.attack for result in attacked.membership] == ["loss"]


@pytest.mark.needs("torch")
def test_a_function_needs_claim_and_records() -> None:
    with pytest.raises(InvalidArgument, match="claim must be given"):
        dpaudit.check_conformance(lambda records, seed: None)  # type: ignore[arg-type,return-value]


def test_a_run_in_place_of_a_mechanism_is_refused_with_the_remedy() -> None:
    with pytest.raises(InvalidArgument, match=r"read_finished\(\)\.mechanism"):
        dpaudit.epsilon("runs/mine", delta=1e-5)  # type: ignore[arg-type]


def test_a_module_that_was_not_imported_is_named_as_one() -> None:
    code = "import dpaudit; dpaudit.trainer"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "trainer is a module of dpaudit: import dpaudit.trainer" in done.stderr


@pytest.mark.parametrize("adjacency", ["replace-one", "zzz", None])
def test_adjacency_as_text_is_refused_and_never_taken_as_another(adjacency: object) -> None:
    mechanism = Gaussian(1.0)
    refused = pytest.raises(InvalidArgument, match="adjacency must be Adjacency")
    for accountant in ("pld", "rdp", "naive", "zcdp", "gdp"):
        with refused:
            dpaudit.epsilon(mechanism, delta=1e-5, accountant=accountant, adjacency=adjacency)  # type: ignore[arg-type]
    with refused:
        dpaudit.delta(mechanism, epsilon=1.0, adjacency=adjacency)  # type: ignore[arg-type]
    with refused:
        dpaudit.calibrate(Gaussian, target_epsilon=1.0, delta=1e-5, adjacency=adjacency)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="set_for must be Adjacency"):
        Gaussian(1.0, set_for=adjacency)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore::dpaudit.vocabulary.renamed.OldNameWarning")
def test_variables_do_not_loosen_a_policy_that_is_named(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = Path("strict.toml")
    policy.write_text("[claim]\nmax_epsilon = 0.1\ndelta = 1e-5\n")
    monkeypatch.setenv("DPAUDIT_POLICY_CLAIM_MAX_EPSILON", "100")
    assert dpaudit.evaluate_policy(run, policy=policy).outcome.value == "FAIL"
    with pytest.warns(UserWarning, match=r"claim.max_epsilon is set by \$DPAUDIT_POLICY"):
        dpaudit.evaluate_policy(run)


@pytest.mark.needs("torch")
def test_default_attacks_are_those_of_the_command() -> None:
    from dpaudit.attacks.membership import attack_registry
    from dpaudit.cli.attack import DEFAULT_ATTACKS

    assert attack_registry.DEFAULT_ATTACKS == DEFAULT_ATTACKS


@pytest.mark.parametrize("wrong", ["1e-5", None, [1.0]])
def test_functions_refuse_what_is_no_number_by_a_typed_error(wrong: Any) -> None:
    calls: list[tuple[str, Callable[[], object]]] = [
        ("delta", lambda: dpaudit.epsilon(Gaussian(1.0), delta=wrong)),
        ("epsilon", lambda: dpaudit.delta(Gaussian(1.0), epsilon=wrong)),
        ("delta", lambda: dpaudit.calibrate(Gaussian, target_epsilon=1.0, delta=wrong)),
        ("target_epsilon", lambda: dpaudit.calibrate(Gaussian, target_epsilon=wrong, delta=1e-5)),
        ("noise_multiplier", lambda: Gaussian(wrong)),
        ("mechanism", lambda: dpaudit.epsilon(1.0, delta=1e-5)),
        ("run", lambda: dpaudit.open_run(1.0)),
    ]
    for name, call in calls:
        with pytest.raises(InvalidArgument, match=f"^{name} must be"):
            call()
