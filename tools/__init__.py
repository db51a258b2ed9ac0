"""Scripts that write documents."""
