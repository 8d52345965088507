"""What `artfusion`, `python -m ldm` and the scripts of a clone start with."""

from typing import NoReturn

from ldm.early import stop_at_once


def main() -> NoReturn:
    """The command `artfusion`."""
    stop_at_once()
    from ldm.cli.main import main as artfusion

    artfusion()


def run_command(name: str) -> NoReturn:
    """One of its sub-commands, with the program's own arguments."""
    stop_at_once()
    from ldm.cli.main import run_command as run

    run(name)


if __name__ == "__main__":
    main()
