"""How the generated pages are made: `make docs`."""
