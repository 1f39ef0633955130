from memsim.runtime.capped_run import run as run
from memsim.runtime.config import RunConfig as RunConfig
from memsim.runtime.outcome import RunOutcome as RunOutcome
from memsim.runtime.run_progress import RunProgress as RunProgress
