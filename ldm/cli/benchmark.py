"""How fast this machine trains and paints: the folder benchmarks/ of the clone, or of the wheel,
measures it."""

import sys

from ldm.files import ROOT
from ldm.program import result_is_printed


def main() -> None:
    sys.path.insert(0, str(ROOT))
    from benchmarks.suites import main

    result_is_printed()
    main()
