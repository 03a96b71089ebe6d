"""Looking at models from outside: cost and pictures."""
