from memsim.api.planning import Planned as Planned
from memsim.api.planning import plan as plan
from memsim.api.replaying import ReplayedCapture as ReplayedCapture
from memsim.api.replaying import ReplayedRun as ReplayedRun
from memsim.api.replaying import replay as replay
from memsim.api.simulation import Simulated as Simulated
from memsim.api.simulation import simulate as simulate
from memsim.errors import InputError as InputError
from memsim.errors import LimitError as LimitError
from memsim.errors import MemsimError as MemsimError
from memsim.errors import UsageError as UsageError
from memsim.errors import WorkerError as WorkerError
from memsim.models.lora import LoraConfig as LoraConfig
from memsim.result_file import read_result as read_result
from memsim.results import Result as Result
from memsim.schedules.optimizers import OptimizerConfig as OptimizerConfig

__version__: str
