"""Bringing a device to its desired state: loading beside what runs, probing, swapping, rolling back."""
