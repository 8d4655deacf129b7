"""Run a load client."""

import asyncio
import resource

from benchmarks.load.commands import serve

soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
asyncio.run(serve())
