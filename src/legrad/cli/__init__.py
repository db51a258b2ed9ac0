"""The command line, a thin front door: parse, call the library, save, print. Nothing imports it."""
