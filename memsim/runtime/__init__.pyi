from memsim.runtime.capped_run import run as run
from memsim.runtime.config import RunConfig as RunConfig
from memsim.runtime.config import RunOutcome as RunOutcome
from memsim.runtime.config import RunProgress as RunProgress
