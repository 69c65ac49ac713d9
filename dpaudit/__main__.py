"""``python -m dpaudit`` is the ``dpaudit`` command."""

from dpaudit.cli.main import main

if __name__ == "__main__":
    main()
