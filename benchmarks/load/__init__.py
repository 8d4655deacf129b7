"""
The load client: one process that drives what is measured, and checks every answer.

`python -m benchmarks.load` takes commands on stdin, a JSON object a line, and answers each with a
line on stdout; `commands.py` lists them. It ends with its stdin.
"""
