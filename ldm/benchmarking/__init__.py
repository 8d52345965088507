"""What artfusion benchmark measures: training steps, whole pictures, how fast the samplers converge."""
