"""
Between the eras: what a message of one is in the other. Pure; no state beyond what is passed in.
"""
