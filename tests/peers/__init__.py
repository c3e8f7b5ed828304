"""clipray beside the tools its users come from; they live in an environment of their own."""
