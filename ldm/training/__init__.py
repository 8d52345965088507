"""The training command: from config files to Lightning's trainer, exact resuming."""

# A file of that name in a run's folder says that its time was used up: see budget.py.
FINISHED = "finished"
