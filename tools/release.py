"""Check a release, and give README.md and pyproject.toml the address of the repository.

    python tools/release.py check v0.2.0
    python tools/release.py publishable https://example.com/owner/dpaudit

README.md has relative links: they work in every clone and fork. A package index shows README.md
without the repository around it. So ``publishable`` makes the links absolute, and adds the
addresses to pyproject.toml, in the working tree that a release is built from. Do not commit the
result.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>(?![a-z]+:|#)[^)]+)\)")


def version_of(root: Path) -> str:
    """Return the version that a source tree declares."""
    text = (root / "dpaudit" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    if found is None:
        raise SystemExit("dpaudit/__init__.py has no __version__")
    return found[1]


def problems(root: Path, tag: str) -> list[str]:
    """Return what keeps a tag from being released: files whose version differs from it."""
    version = tag.removeprefix("v")
    wanted = {
        "dpaudit/__init__.py": f'__version__ = "{version}"',
        "CITATION.cff": f"version: {version}",
        "CHANGELOG.md": f"## {version} - ",
    }
    found = [
        f"{name} lacks {text!r}"
        for name, text in wanted.items()
        if text not in (root / name).read_text(encoding="utf-8")
    ]
    return found if tag.startswith("v") else [*found, f"a tag must be v and a version, got {tag!r}"]


def absolute(text: str, address: str, tag: str) -> str:
    """Return Markdown with absolute links in place of relative ones.

    Args:
        text: The Markdown.
        address: Of the repository, without a slash at its end.
        tag: The tag whose files the links lead to.
    """

    def link(found: re.Match[str]) -> str:
        kind = "raw" if found["image"] else "blob"
        return f"{found['image']}[{found['text']}]({address}/{kind}/{tag}/{found['target']})"

    return LINK.sub(link, text)


def with_urls(text: str, address: str, tag: str) -> str:
    """Return pyproject.toml with a table of addresses."""
    urls = {
        "Repository": address,
        "Documentation": f"{address}/blob/{tag}/docs/index.md",
        "Changelog": f"{address}/blob/{tag}/CHANGELOG.md",
        "Issues": f"{address}/issues",
    }
    table = "".join(f'{name} = "{url}"\n' for name, url in urls.items())
    return text.replace("[project.scripts]\n", f"[project.urls]\n{table}\n[project.scripts]\n")


def main(action: str, argument: str) -> None:
    """Check a tag, or rewrite README.md and pyproject.toml for a release."""
    if action == "check":
        if found := problems(ROOT, argument):
            raise SystemExit("\n".join(found))
    else:
        address, tag = argument.rstrip("/"), f"v{version_of(ROOT)}"
        for name, change in (("README.md", absolute), ("pyproject.toml", with_urls)):
            path = ROOT / name
            path.write_text(
                change(path.read_text(encoding="utf-8"), address, tag), encoding="utf-8"
            )


if __name__ == "__main__":
    main(*sys.argv[1:])
