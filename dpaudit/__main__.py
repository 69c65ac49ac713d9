"""``python -m dpaudit`` is the ``dpaudit`` command."""

from dpaudit.cli.entry_point import main

if __name__ == "__main__":
    main()
