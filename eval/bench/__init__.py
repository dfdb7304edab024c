"""Benchmarks of speed and memory: each says what is done, beside what, and prints a table."""
