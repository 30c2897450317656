"""Many runs: what a sweep is, who executes its points, and what came out."""
