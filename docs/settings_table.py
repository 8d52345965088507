"""Writes docs/settings.md from the dials themselves: `python docs/settings_table.py`, after a change of one."""

from pathlib import Path

from ldm.cli.options import option_name, told
from ldm.pipeline.looks import looks_table
from ldm.pipeline.settings import DIALS, Settings
from ldm.text import markdown_table

PAGE = Path(__file__).with_name("settings.md")
INTRODUCTION = """# Settings

Every dial of painting: as an option of `artfusion stylize` and `interpolate`, of `video` (but for `--face-detail`), or by its name in Python,
`pipeline(photo, painting, style_scale=2.0)`. `artfusion grid` and `samples` take those that they do not vary themselves.
These tables are made by `docs/settings_table.py`.

"""
LOOKS = """
## Looks

A look is a set of settings with a name, `--look free`; whatever is given besides has its own value. `artfusion info looks` shows this
table, too.

"""


def page() -> str:
    """The whole of docs/settings.md."""
    rows = []
    for name, dial in DIALS.items():
        default = getattr(Settings, name)
        shown = dial.default_help if default is None else told(default) or "no"
        rows.append([f"`{name}`", f"`{option_name(name)}`", f"{shown}", dial.range_help, dial.help])
    return (
        INTRODUCTION
        + markdown_table(["setting", "option", "default", "possible", "what it does"], rows, 5)
        + "\n"
        + LOOKS
        + markdown_table(looks_table()[0], looks_table()[1:], 6)
        + "\n"
    )


if __name__ == "__main__":
    PAGE.write_text(page())
