"""
What a call costs: the gateway beside its floors and its peers, on one machine, in one run.

`python -m benchmarks --help`; README.md beside this file tells how to read what it prints.
"""
