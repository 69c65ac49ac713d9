"""What each command does, without its words: joins trainer, accountants, attacks and gate."""
