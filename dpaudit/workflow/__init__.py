"""The action of each command: joins trainer, accountants, attacks, gate and report."""
