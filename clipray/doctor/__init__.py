"""`clipray doctor`: what is installed, what the machines have, and whether they see each other."""
