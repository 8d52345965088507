"""The index beside a pack, which says that the pack is whole, what it was made of and what is in it."""

import json
from collections.abc import Sequence
from typing import Any

from ldm.media.places import Place, is_there, name_within, place_of, read_bytes, size_of, write_bytes
from ldm.pipeline.outcomes import Outcome

_KEYS = {"made", "rows", "bytes", "again"}


def write_index(pack: Place, made_of: Any, outcomes: Sequence[Outcome]) -> None:
    """Write the index of a pack that is there. Raises UserError."""
    again = any(one.may_pass for one in outcomes)
    rows = [_row(one, pack) for one in outcomes]
    told = {"made": made_of, "rows": rows, "bytes": size_of(pack), "again": again}
    write_bytes(_index_of(pack), json.dumps(told, sort_keys=True).encode())


def outcomes_of(pack: Place, made_of: Any) -> list[Outcome] | None:
    """What is in a pack; None where there is none that was made like this, that has come to no harm
    since, and that lacks nothing that may be there by now."""
    if not is_there(pack):
        return None
    try:
        index = json.loads(read_bytes(_index_of(pack)))
    except ValueError:  # as UserErrors are
        return None
    if not isinstance(index, dict) or not _KEYS <= index.keys() or index["again"]:
        return None
    is_same = index["bytes"] == size_of(pack) and index["made"] == json.loads(json.dumps(made_of))
    return [_told_again(row, pack) for row in index["rows"]] if is_same else None


def _index_of(pack: Place) -> Place:
    return pack.with_suffix(".json")


def _row(outcome: Outcome, pack: Place) -> dict[str, Any]:
    """What is the same whenever it is painted, and wherever the folder is."""
    output = name_within(pack.parent, place_of(outcome.output))
    row = {"content": outcome.content, "style": outcome.style, "output": output}
    if outcome.problem is None:
        return row
    return row | {"status": "failed", "problem": outcome.problem, "is_unread": outcome.is_unread}


def _told_again(row: dict[str, Any], pack: Place) -> Outcome:
    """The outcome that a row tells of."""
    output = str(pack.parent / row["output"])
    return Outcome(**{"status": "there", **row, "output": output}, pack=str(pack))
