"""Knowledge: what is transferred. One method, one file."""
