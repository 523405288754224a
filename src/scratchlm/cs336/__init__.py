"""Adapters between Stanford's course CS336 and this library: the functions that its test suites call.

basics: assignment 1, every function of tests/adapters.py. serialization: its checkpoints, in one file.
systems: assignment 2, its FlashAttention and parallel training. alignment_2025, alignment_2026: assignment 5.
Nothing is computed here; each function arranges its arguments and calls the part of the library it is about.
"""
