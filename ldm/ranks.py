"""Which of several processes this one is, as torchrun tells each in its environment; a process by
itself is the only one."""

import os

from ldm.errors import UserError


def rank_and_world() -> tuple[int, int]:
    """(RANK, WORLD_SIZE): this process's number from 0 on, and how many there are; (0, 1) alone.
    Raises UserError."""
    rank, world = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not (rank.isdecimal() and world.isdecimal() and int(rank) < int(world)):
        raise UserError(
            f"the environment says RANK {rank!r} of WORLD_SIZE {world!r}; set both, as torchrun does, or none"
        )
    return int(rank), int(world)


def local_rank() -> int | None:
    """LOCAL_RANK: this process's number among those of its machine; None where nobody has started
    several. Raises UserError."""
    number = os.environ.get("LOCAL_RANK")
    if not (number is None or number.isdecimal()):
        raise UserError(
            f"the environment says LOCAL_RANK {number!r}; set it to a number, as torchrun does, or not at all"
        )
    return None if number is None else int(number)


def torchrun_group() -> tuple[int, int]:
    """(processes of each machine, machines) that torchrun has started, this one included; (1, 1)
    without it."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return 1, 1
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return local, int(os.environ.get("WORLD_SIZE", 1)) // local
