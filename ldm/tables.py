"""Tables as people paste them."""

from collections.abc import Iterable, Sequence


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], names: int = 1) -> str:
    """A Markdown table; its first `names` columns are text, the others numbers. Bars within cells are escaped."""
    rule = ["---"] * names + ["---:"] * (len(head) - names)
    lines = ([cell.replace("|", "\\|") for cell in cells] for cells in (head, rule, *rows))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
