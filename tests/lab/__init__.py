"""
The fault laboratory: scripted servers that fail on demand, a proxy that harms connections, and
the ledger, which proves that nothing was lost, doubled, crossed or run twice.

    python -m tests.lab.ledger --help
    python -m tests.lab.soak --help
    python -m tests.lab.peers --help
"""

import sys
from pathlib import Path

# The tests' helper modules know each other by name.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
