"""How nothing is lost."""
