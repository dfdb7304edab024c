"""Benchmarks of speed and memory. Each compares variants side by side and prints a table."""
