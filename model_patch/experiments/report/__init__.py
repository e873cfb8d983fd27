"""Tables, figures and claims computed from results."""
