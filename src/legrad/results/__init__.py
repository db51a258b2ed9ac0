"""The result: an ``Explanation``, how it is assembled, and its folder of files."""
