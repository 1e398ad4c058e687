"""Systems: one adapter a file. Each turns a Job into the program that a user of that system would write."""

from bench.systems.registry import System, family_names, named

__all__ = ["System", "family_names", "named"]
