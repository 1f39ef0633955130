"""By whose rates schedules are compared."""

from memsim.simulator.device import Device
from memsim.simulator.device_file import HOST, find_device, host_file

STAND_IN = "mac-m4"
"""Whose rates serve until this machine is measured."""


def rates_of(name: str) -> tuple[Device, str]:
    """Return (device, remark): a stand-in for this machine while it is not measured, and why.

    Raises:
        InputError: No such device, or its file cannot be used.
    """
    if name == HOST and not host_file().is_file():
        remark = f"this machine is not measured: predicted by the rates of {STAND_IN}; run `memsim devices calibrate`"
        return find_device(STAND_IN), remark
    return find_device(name), ""
