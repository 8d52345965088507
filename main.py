"""The command `artfusion train`, in a clone, and what published scripts import of `main`."""

from ldm.__main__ import run_command
from ldm.lazy import names_from

# Imported when asked for, as that takes seconds, in which Ctrl-C should end the command as well as
# later.
_ELSEWHERE = {
    "DataModuleFromConfig": "ldm.data.datamodule",
    "ImageLogger": "ldm.training.image_logger",
    "get_obj_from_str": "ldm.util",
    "instantiate_from_config": "ldm.util",
}


__getattr__ = names_from("main", _ELSEWHERE)


def __dir__() -> list[str]:
    return sorted([*globals(), *_ELSEWHERE])


if __name__ == "__main__":
    run_command("train")
