"""Samplers side by side: response surfaces with a known optimum, tables of real trainings, and the runs on them.

Nothing here takes part in a search. The surfaces are drawn from seeds and know nothing of any sampler.
"""
