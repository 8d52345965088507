"""What writing any file here needs."""

import os


def usual_mode() -> int:
    """The permissions that a new file gets; those of temporary files are the owner's alone."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
