"""``dpaudit completion``: what a shell needs to complete commands and options."""

from __future__ import annotations

import click
from click.shell_completion import BashComplete, FishComplete, ZshComplete

from dpaudit.cli.printing import say

SHELLS = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}


@click.command()
@click.argument("shell", type=click.Choice(list(SHELLS)))
@click.pass_context
def completion(ctx: click.Context, /, shell: str) -> None:
    """Print the script that completes dpaudit's commands in SHELL.

    \b
    dpaudit completion bash >> ~/.bashrc
    dpaudit completion zsh >> ~/.zshrc
    dpaudit completion fish > ~/.config/fish/completions/dpaudit.fish
    """
    script = SHELLS[shell](ctx.find_root().command, {}, "dpaudit", "_DPAUDIT_COMPLETE")
    say(script.source())
