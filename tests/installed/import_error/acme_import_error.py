"""A plugin whose own dependency is broken."""

raise ImportError("libacme.so.3: cannot open shared object file")
