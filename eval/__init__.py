"""Evaluation: exact metrics, a runner independent of any model, and the benchmark."""
