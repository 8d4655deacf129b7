"""The ladder of checks and the three proxies behind it."""
