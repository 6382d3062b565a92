"""The public loss functions, one file per family."""
