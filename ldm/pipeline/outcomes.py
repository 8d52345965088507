"""How tasks end."""

from dataclasses import dataclass

from ldm.pipeline.tasks import Task


@dataclass(frozen=True)
class Outcome:
    """How a task ended: painted, there (already) or failed, and then why. content, style and output
    are names. is_unread: the trouble is with a file, which other tasks may have, too. may_pass: it may
    be over by the next time. pack: the file that the result is in, where it is none by itself."""

    content: str
    style: str
    output: str
    status: str
    seconds: float = 0.0
    problem: str | None = None
    is_unread: bool = False
    may_pass: bool = False
    pack: str | None = None

    @property
    def line(self) -> str:
        """What went wrong, and with what; the same for all tasks that have the same trouble."""
        is_named = self.is_unread or self.output in str(self.problem)
        return str(self.problem) if is_named else f"{self.output}: {self.problem}"


def outcome_of(task: Task, status: str, seconds: float = 0.0, problem: str | None = None) -> Outcome:
    """The outcome of a task."""
    return Outcome(str(task.content), task.style_name, str(task.output), status, seconds, problem)
