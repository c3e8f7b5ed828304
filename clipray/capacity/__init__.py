"""What a collection takes before it is there: `clipray plan`."""
