"""Looking at models from outside: cost, pictures, and what a prediction comes from."""
