"""Hooks on SGLang, one file per SGLang module; SGLang's own files are never edited.

Every file here has ``SEAMS``, the names that it relies on, and ``apply()``, which registers its hooks. It says what it
changes, why, and for which versions of SGLang. ``seams.py`` collects and checks the names.
"""
