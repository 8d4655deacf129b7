"""Between one session and one link: ids, routes, deadlines and recovery."""
