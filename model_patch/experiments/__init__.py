"""The runs that the scripts start: the paper's experiments, what is measured, and the folders they write.

Nothing outside of this package imports from it.
"""
