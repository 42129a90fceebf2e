"""The experiments, one module each.

Every module has `run`, which measures and returns what JSON can hold; `draw`, which makes figures of that;
and `tell`, which says in Markdown what came out. The last two use nothing but the result of the first.
"""
