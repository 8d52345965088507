"""The training command: from config files to Lightning's trainer, exact resuming."""
