"""Plugins by which other trainers use our architectures; each module imports the trainer that it is for."""
