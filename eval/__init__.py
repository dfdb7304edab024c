"""Evaluation: exact metrics, a runner that knows no model, and the benchmark."""
