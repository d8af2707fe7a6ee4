"""Experiments: programs that measure the method. Not part of the installed package.

Each uses only the public API of `forgetting`, as a script of your own would.
"""
