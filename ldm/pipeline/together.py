"""Which pictures can be painted together: those whose settings differ in nothing but what each picture
of a batch may have of its own."""

from collections.abc import Sequence

from ldm.pipeline.settings import DIALS, Number, Settings

EACH = tuple(name for name, dial in DIALS.items() if isinstance(dial, Number) and dial.each)
_USUAL = {name: getattr(Settings(), name) for name in EACH}


def shared(settings: Settings) -> Settings:
    """What all pictures of a batch have to have in common."""
    return settings.but(**_USUAL)


def joined(settings: Sequence[Settings]) -> Settings:
    """The settings of a batch, of all its pictures' settings, which share the others."""
    first = settings[0]
    if all(each == first for each in settings):
        return first
    return first.but(**{name: [each.value(name) for each in settings] for name in EACH})
