"""One HTML file that shows maps: no network, no framework, nothing but the file."""
