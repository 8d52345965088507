"""The command `artfusion styles`, in a clone."""

from ldm.cli.main import run_command

if __name__ == "__main__":
    run_command("styles")
