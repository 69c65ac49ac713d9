"""Run README's commands in a temporary folder and write their real output into it."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(```console\n\$ (dpaudit [^\n]*)\n)(.*?)```", re.DOTALL)


def main() -> None:
    """Rewrite README.md in place."""
    readme = ROOT / "README.md"
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(ROOT / "dpaudit.toml", folder)

        def fill(block: re.Match[str]) -> str:
            arguments = [sys.executable, "-m", *shlex.split(block[2])]
            done = subprocess.run(
                arguments, cwd=folder, stdout=subprocess.PIPE, text=True, check=True
            )
            return f"{block[1]}{done.stdout}```"

        readme.write_text(BLOCK.sub(fill, readme.read_text()))


if __name__ == "__main__":
    main()
