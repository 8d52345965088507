"""The command `artfusion interpolate`, in a clone."""

from ldm.__main__ import run_command

if __name__ == "__main__":
    run_command("interpolate")
