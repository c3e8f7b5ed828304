"""Data for the demo: pictures with captions that a package brings along, as img2dataset output."""
