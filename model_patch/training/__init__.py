"""Training: recipes, loops, and the runs that scripts start."""
