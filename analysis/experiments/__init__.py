"""The experiments, one module each.

Every module has three functions. `run` measures and returns a result that JSON can hold. `draw` makes figures
from that result. `tell` describes the result in Markdown. `draw` and `tell` read nothing but the result.
"""
