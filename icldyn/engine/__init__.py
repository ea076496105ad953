"""How it runs: `descend` one seed, `ensemble` many, `flow` the exact equations."""
