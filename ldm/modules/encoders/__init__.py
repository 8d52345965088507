"""Condition stages: classes, CLIP's texts and pictures, rescaled maps."""
