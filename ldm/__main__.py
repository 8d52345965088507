"""`python -m ldm` is the command `artfusion`."""

from ldm.cli.main import main

if __name__ == "__main__":
    main()
