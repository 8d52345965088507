"""What scripts/benchmark.py measures: training steps, whole pictures, how fast the samplers converge."""
