"""Command lines, one module for each, whose `main(argv)` returns the exit status; `tools/` has a door to each.

A module's docstring is its help: the first line says what the command does, the rest how it is called. Modules with a
leading underscore hold what several commands share.
"""
