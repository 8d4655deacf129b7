"""Who may come in and how much they may bring: hosts, principals, policy, limits."""
