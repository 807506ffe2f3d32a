"""Secure rounds in the vocabulary of other libraries, each in a module named after its own.

A module imports its library, so it needs the extra ``interop``; this package imports none.
"""
