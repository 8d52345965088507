"""All that measures speed, memory and accuracy: the suites of `artfusion benchmark`, and programs
for a short time on a GPU."""
