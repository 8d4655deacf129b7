"""
The floors: what a bare `twisted.web` Resource costs that does the same job without any care.

No checks, no limits, no back-pressure, no recovery, no deadlines; a stock Site, and no access log
since that alone is half of the rest.
"""
