"""Benchmarks of infini and of its peers."""
